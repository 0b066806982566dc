"""Which tensors of a GGUF file are quantized, and which type each one gets: llama.cpp's rules.

Source: llama.cpp:src/llama-quant.cpp (``llama_tensor_get_type``) and its converter's rule for plain tensors.
"""

from __future__ import annotations

from qformats import Packer

__all__ = ["fallback", "keep", "role"]

_ROLES = {"output.weight": "output", "token_embd.weight": "token_embedding"}
_NEVER = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "attn_rel_b.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "time_mix_",
)
_NEVER_WHOLE = ("position_embd.weight", "token_types.weight")


def role(name: str) -> str | None:
    """Role by which options address a tensor."""
    return _ROLES.get(name)


def keep(name: str, dimensions: int) -> str | None:
    """Why a tensor is not quantized, or ``None`` if it is."""
    if dimensions < 2:
        return "vector"
    if not name.endswith("weight"):
        return "not a weight matrix"
    if name in _NEVER_WHOLE or any(part in name for part in _NEVER):
        return "kept in full precision by llama.cpp"
    return None


_SMALLER_BLOCKS = {
    "q2_k": "q4_0",
    "q3_k": "q4_0",
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    "iq4_xs": "iq4_nl",
    "tq1_0": "q4_0",
    "tq2_0": "q4_0",
}
"""Types with blocks of 256, and those with blocks of 32 that llama.cpp takes where rows do not divide into such."""


def fallback(packer: Packer) -> tuple[str, ...]:
    """Types for rows that do not divide into blocks, the first that fits: one of smaller blocks, then f16."""
    if not packer.quantizes:
        return ()
    smaller = _SMALLER_BLOCKS.get(packer.spec.variant)
    return (f"gguf:{smaller}", "gguf:f16") if smaller else ("gguf:f16",)
