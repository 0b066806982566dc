"""Tiny random mixtures of experts, saved as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["MOE", "build"]

_SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "num_experts_per_tok": 2,
}


def _mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**_SIZES, num_local_experts=4))


def _qwen2() -> Any:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    more = {"num_experts": 4, "moe_intermediate_size": 64, "shared_expert_intermediate_size": 64}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**_SIZES, **more))


def _gpt_oss() -> Any:
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(GptOssConfig(**_SIZES, num_local_experts=4, head_dim=16))


MOE = {"mixtral": _mixtral, "qwen2-moe": _qwen2, "gpt-oss": _gpt_oss}
"""Name: what makes the model. The experts of gpt-oss have biases, and are stored stacked."""


def build(name: str, folder: str | Path) -> Path:
    """Write the model `name`, float32, without a tokenizer."""
    import torch

    model = MOE[name]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for values in model.parameters():
            noise = torch.randn(values.shape, generator=generator) * 0.15
            values.copy_(1 + noise if values.ndim == 1 else noise)
    model.save_pretrained(folder)
    return Path(folder)
