"""Tiny random models that make embeddings of texts, saved as sentence-transformers keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models import tokenizers
from models.architectures import randomize

__all__ = ["ENCODERS", "build_encoder"]

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}

ENCODERS: dict[str, tuple[str, str, str, str]] = {
    "bert": ("bert", "BertModel", "wordpiece", "cls_token"),
    "bert-cased": ("bert", "BertModel", "wordpiece-cased", "mean_tokens"),
    "roberta": ("roberta", "RobertaModel", "roberta", "cls_token"),
    "xlm_roberta": ("xlm-roberta", "XLMRobertaModel", "unigram", "cls_token"),
    "nomic_bert": ("nomic_bert", "NomicBertModel", "wordpiece", "mean_tokens"),
}
"""Model type, class of Transformers, tokenizer, and how its tokens become one embedding."""


def build_encoder(name: str, folder: Path, cls: str | None = None, **changes: Any) -> Path:
    """Write the model `name` into `folder`, with other keys of its configuration; `cls` is a class with a head."""
    import torch
    import transformers
    from transformers import AutoConfig

    model_type, own, kind, pooling = ENCODERS[name]
    special = tokenizers.build(kind, folder)
    keys = {"vocab_size": special["size"], "pad_token_id": special["pad"], **_SIZES, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, cls or own)(AutoConfig.for_model(model_type, **keys)).float()
    randomize(model, torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    modules = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    listed = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{each}"}
        for n, (path, each) in enumerate(modules.items())
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    flags = {f"pooling_mode_{mode}": mode == pooling for mode in modes}
    content = {"word_embedding_dimension": keys["hidden_size"], **flags}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))
    return folder
