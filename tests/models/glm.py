"""Tiny random GLM models as Transformers has them, with the tokenizers of ChatGLM2, ChatGLM3 and GLM-4.

The weights are scaled as those of `models.tiny`, so that every piece shows in the logits.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.text import CORPUS

__all__ = ["COMMANDS", "GLM", "PIECES", "ROLES", "SIZE", "build", "tokenizer"]

PIECES = 640
"""Tokens of the SentencePiece model; the special ones follow."""
SIZE = 672
"""Rows of the embedding: more than there are tokens, as in the published models."""
COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

_GLM4_SPECIAL = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *(*ROLES, "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
_GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The published template of ChatGLM3.
_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}[gMASK]sop{% endif %}<|{{ message['role'] }}|>\n "
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Teaches "op" and "oph", so that the special token "sop" is in "philosophy" but does not come of its pieces.
_WORDS = "hop, pop, mop, cop, fop, lop, top, copy, open; trophy, gopher, zoophyte, neophyte, bryophyte, siphophore.\n"

_LINEAR = {"rope_type": "linear", "factor": 4.0}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

GLM: dict[str, tuple[str, dict[str, Any]]] = {
    "chatglm2": ("chatglm2", {}),
    "chatglm3-rope-ratio": ("chatglm3", {"rope_parameters": {"rope_theta": 500000.0}}),
    "glm4": ("glm4", {"rms_norm_eps": 1.5625e-7, "num_key_value_heads": 4}),
    "glm-plain": ("chatglm3", {"attention_bias": False, "tie_word_embeddings": True}),
    "glm-head-dim": ("chatglm2", {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}),
    "glm-more-rotary": ("chatglm2", {"rope_parameters": {"partial_rotary_factor": 0.75}}),
    "glm-rope-linear": ("chatglm2", {"rope_parameters": _LINEAR}),
    "glm-rope-yarn": ("chatglm2", {"rope_parameters": _YARN}),
}
"""Name: the kind of its tokenizer, and what its configuration has else than the others'."""


def build(name: str, folder: str | Path, dtype: str = "float32", **changes: Any) -> Path:
    """Write the model `name` as a folder of Transformers' class ``GlmForCausalLM``.

    Parameters
    ----------
    name : str
        A key of `GLM`.
    folder : path-like
        Created; its files are overwritten.
    dtype : {"float32", "bfloat16", "float16"}
        Type of the stored weights.
    **changes
        What the configuration shall say otherwise.
    """
    import torch
    from transformers import GlmConfig, GlmForCausalLM

    folder = Path(folder)
    kind, own = GLM[name]
    changes = own | changes
    special = tokenizer(kind, folder)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    values = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "attention_bias": True,
        # Transformers' own defaults for these ids lie beyond a small vocabulary.
        **special,
        **changes,
        "rope_parameters": rope | changes.get("rope_parameters", {}),
    }
    model: Any = GlmForCausalLM(GlmConfig(**values))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim == 1:
                weight.copy_(1 + drawn.clamp(-2, 2) * 0.3 if key.endswith("weight") else drawn * 0.3)
            else:
                weight.copy_(drawn * 0.15)
    model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(folder)
    return folder


def tokenizer(kind: str, folder: Path) -> dict[str, Any]:
    """Write the tokenizer ``chatglm2``, ``chatglm3`` or ``glm4``; return the ids and size for the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    return _KINDS[kind](folder)


def _chatglm(folder: Path, more: dict[str, Any]) -> dict[str, Any]:
    """As published: the model, and a configuration that mostly names a Python class."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*(line for line in CORPUS.splitlines() if line), *[_WORDS] * 2]),
        model_writer=written,
        model_type="bpe",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=0.99,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    config = {
        "remove_space": False,
        "do_lower_case": False,
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
        **more,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return {"vocab_size": SIZE, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}


def _chatglm2(folder: Path) -> dict[str, Any]:
    return _chatglm(folder, {"name_or_path": "THUDM/chatglm2-6b"})


def _chatglm3(folder: Path) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "special"), False) | {"normalized": True}
    # Only those that its template needs, and not as special ones.
    listed = {"[gMASK]": 1, "sop": 3, "<|user|>": 6, "<|assistant|>": 7}
    decoder = {str(PIECES + at): {"content": text} | flags for text, at in listed.items()}
    names = {"eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    return _chatglm(folder, {"chat_template": _TEMPLATE, "added_tokens_decoder": decoder, **names})


def _glm4(folder: Path) -> dict[str, Any]:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )

    built: Any = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_GLM4_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=520, initial_alphabet=alphabet, show_progress=False)
    built.train_from_iterator([CORPUS, _WORDS], trainer)
    state = json.loads(built.to_str())
    # Made from ranks, the published file has words that no merge leads to.
    state["model"]["vocab"]["Ġqformats"] = len(state["model"]["vocab"])
    state["model"]["ignore_merges"] = True
    built = Tokenizer.from_str(json.dumps(state))
    built.add_special_tokens([AddedToken(text, normalized=False) for text in _GLM4_SPECIAL])
    ids = {text: built.token_to_id(text) for text in _GLM4_SPECIAL}
    prefix = [("[gMASK]", ids["[gMASK]"]), ("<sop>", ids["<sop>"])]
    built.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="[gMASK]:0 <sop>:0 $A:0", pair="[gMASK]:0 <sop>:0 $A:0 $B:1", special_tokens=prefix
            ),
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.save(str(folder / "tokenizer.json"))
    config = {
        "additional_special_tokens": list(_GLM4_SPECIAL),
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    end = ids["<|endoftext|>"]
    ends = [end, ids["<|user|>"], ids["<|observation|>"]]
    return {"vocab_size": SIZE, "pad_token_id": end, "eos_token_id": ends, "bos_token_id": None}


_KINDS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "chatglm2": _chatglm2,
    "chatglm3": _chatglm3,
    "glm4": _glm4,
}
