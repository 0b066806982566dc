"""Tiny random models of the architectures that GGUF knows, saved as Hugging Face folders, one for each feature.

Sizes differ from each other wherever a model allows it, so that an exchanged or transposed dimension shows; windows are
shorter than the texts of the tests; weights are large enough that attention, rotation and experts matter.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models import tokenizers

__all__ = ["CASES", "TRAPS", "Case", "build"]

_DENSE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_WIDE = {"head_dim": 32}
"""A head size other than hidden_size / num_attention_heads."""
_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}


@dataclass(frozen=True)
class Case:
    """One folder.

    Attributes
    ----------
    model_type, cls : str
        Model type, and class of Transformers.
    config : dict
        Keys beside or instead of those of every model.
    tokenizer : str
        Kind of its tokenizer.
    """

    model_type: str
    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "smollm"


def _rope(kind: str = "default", theta: float = 10000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


_YARN = _rope("yarn", 50000.0, factor=4.0, original_max_position_embeddings=64)

CASES: dict[str, Case] = {
    "olmo2": Case("olmo2", "Olmo2ForCausalLM"),
    "olmo2-yarn": Case("olmo2", "Olmo2ForCausalLM", _YARN),
    "qwen3_moe": Case("qwen3_moe", "Qwen3MoeForCausalLM", {**_EXPERTS, **_WIDE, "norm_topk_prob": True}),
    "qwen2_moe": Case(
        "qwen2_moe", "Qwen2MoeForCausalLM", {**_EXPERTS, "shared_expert_intermediate_size": 56}, "qwen2"
    ),
    "qwen2_moe-tied": Case(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        {**_EXPERTS, "shared_expert_intermediate_size": 56, "tie_word_embeddings": True},
    ),
    "mixtral": Case(
        "mixtral", "MixtralForCausalLM", {"num_local_experts": 6, "sliding_window": None}, "llama-spm"
    ),
    "seed_oss": Case("seed_oss", "SeedOssForCausalLM", {**_WIDE, "attention_bias": True, **_rope(theta=1e6)}),
}

TRAPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    "qwen3_moe-dense-layer": ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    "qwen2_moe": ("qwen2_moe", {"norm_topk_prob": True}, "norm_topk_prob"),
    "mixtral": ("mixtral", {"sliding_window": 16}, "sliding_window"),
}
"""Model, keys of its configuration, and the one of them that llama.cpp does not compute: it has to be refused."""


def build(name: str, folder: Path, dtype: str = "float32", **changes: Any) -> Path:
    """Write the model `name` into `folder`, with other keys of its configuration."""
    import torch
    import transformers
    from transformers import AutoConfig

    case = CASES[name]
    special = tokenizers.build(case.tokenizer, folder)
    keys = {"vocab_size": special["size"], "bos_token_id": special["bos"], "eos_token_id": special["eos"]}
    keys |= copy.deepcopy({**_DENSE, **case.config, **changes})
    model = getattr(transformers, case.cls)(AutoConfig.for_model(case.model_type, **keys)).float()
    _randomize(model, torch.Generator().manual_seed(0))
    model.to(getattr(torch, dtype))
    model.config.dtype = dtype
    model.save_pretrained(folder)
    return folder


def _randomize(model: Any, generator: Any) -> None:
    """Make every number of the model random, and large enough that attention and experts matter."""
    import torch

    state = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(state):
            tensor = state[name]
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim < 2:
                tensor.add_(0.1 * noise)
            elif "embed" in name:
                tensor.copy_(0.5 * noise)
            else:
                tensor.copy_(noise / tensor.shape[-1] ** 0.5)
