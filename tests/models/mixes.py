"""Small random models, as GGUF files of float16, on which llama.cpp's choice of types can be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MODELS", "importance", "tensors", "write", "write_importance"]

MODELS: dict[str, dict[str, Any]] = {
    "gqa2": {"layers": 8, "heads": 4, "groups": 2},
    "gqa4": {"layers": 17, "heads": 8, "groups": 2, "tied": True},
    "wide": {"layers": 9, "heads": 9, "groups": 3, "hidden": 576, "inner": 1536, "tied": True},
    "odd": {"layers": 2, "heads": 4, "groups": 2, "inner": 320},
    "experts8": {"layers": 8, "heads": 4, "groups": 1, "experts": 8},
    "experts4": {"layers": 8, "heads": 4, "groups": 2, "experts": 4},
    "seventy": {"layers": 80, "heads": 4, "groups": 1},
    "sixty-five": {"layers": 80, "heads": 4, "groups": 4},
    "falcon": {"layers": 16, "heads": 4, "groups": 1, "architecture": "falcon"},
    "chatglm": {"layers": 12, "heads": 4, "groups": 2, "architecture": "chatglm"},
    "qwen2": {"layers": 12, "heads": 4, "groups": 2, "architecture": "qwen2"},
}
"""What differs from 256 hidden and 512 inner features, 96 tokens and an output layer of its own."""
_VOCABULARY = 96


def tensors(model: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape (rows first) of every tensor."""
    said = MODELS[model]
    hidden, inner = said.get("hidden", 256), said.get("inner", 512)
    head = hidden // said["heads"]
    kv = said["groups"] * head
    architecture, experts = said.get("architecture", "llama"), said.get("experts", 0)
    yield "token_embd.weight", (_VOCABULARY, hidden)
    for layer in range(said["layers"]):
        block = f"blk.{layer}."
        yield f"{block}attn_norm.weight", (hidden,)
        if architecture in ("falcon", "chatglm"):
            yield f"{block}attn_qkv.weight", (hidden + 2 * kv, hidden)
        else:
            yield f"{block}attn_q.weight", (hidden, hidden)
            yield f"{block}attn_k.weight", (kv, hidden)
            yield f"{block}attn_v.weight", (kv, hidden)
            if architecture == "qwen2":
                yield f"{block}attn_q.bias", (hidden,)
        yield f"{block}attn_output.weight", (hidden, hidden)
        if experts:
            yield f"{block}ffn_gate_inp.weight", (experts, hidden)
            for part in ("gate", "up"):
                yield f"{block}ffn_{part}_exps.weight", (experts, 256, hidden)
            yield f"{block}ffn_down_exps.weight", (experts, hidden, 256)
        else:
            if architecture == "llama" or architecture == "qwen2":
                yield f"{block}ffn_gate.weight", (inner, hidden)
            yield f"{block}ffn_up.weight", (inner * (2 if architecture == "chatglm" else 1), hidden)
            yield f"{block}ffn_down.weight", (hidden, inner)
        yield f"{block}ffn_norm.weight", (hidden,)
    yield "output_norm.weight", (hidden,)
    if not said.get("tied"):
        yield "output.weight", (_VOCABULARY, hidden)


def write(model: str, path: Path) -> Path:
    """Write the model: matrices in float16, the rest in float32."""
    import gguf

    said = MODELS[model]
    architecture, hidden = said.get("architecture", "llama"), said.get("hidden", 256)
    random = np.random.Generator(np.random.PCG64(5))
    out = gguf.GGUFWriter(path, architecture)
    out.add_block_count(said["layers"])
    out.add_context_length(64)
    out.add_embedding_length(hidden)
    out.add_feed_forward_length(256 if said.get("experts") else said.get("inner", 512))
    out.add_head_count(said["heads"])
    out.add_head_count_kv(said["groups"])
    out.add_rope_dimension_count(hidden // said["heads"])
    out.add_layer_norm_rms_eps(1e-5)
    out.add_layer_norm_eps(1e-5)
    out.add_vocab_size(_VOCABULARY)
    if said.get("experts"):
        out.add_expert_count(said["experts"])
        out.add_expert_used_count(2)
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list([f"t{at}" for at in range(_VOCABULARY)])
    out.add_token_scores([0.0] * _VOCABULARY)
    out.add_token_types([1] * _VOCABULARY)
    for name, shape in tensors(model):
        # Integers alone are the same in every version of NumPy: a triangle of 16 bits, heavier in some columns.
        drawn = random.integers(0, 1 << 16, size=(2, *shape)).astype(np.float32)
        values = (drawn[0] - drawn[1]) * np.float32(2.0**-20)
        values[..., ::37] *= 8
        kind = np.float16 if len(shape) > 1 and "ffn_gate_inp" not in name else np.float32
        out.add_tensor(name, values.astype(kind))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def importance(model: str) -> dict[str, np.ndarray]:
    """Weights of the columns of every matrix but the embedding, one after the other for each expert."""
    found = {}
    for name, shape in tensors(model):
        if len(shape) > 1 and name.endswith("weight") and "ffn_gate_inp" not in name:
            columns = shape[-1] * (shape[0] if len(shape) == 3 else 1)
            steps = np.arange(columns, dtype=np.float32)
            found[name] = 0.25 + (steps * 7919 % 1013) / np.float32(1013)
    found.pop("token_embd.weight")
    return found


def write_importance(model: str, path: Path) -> Path:
    """Write :func:`importance` as an importance matrix of one token for each expert."""
    import gguf

    shapes = dict(tensors(model))
    out = gguf.GGUFWriter(path, "")
    out.add_type("imatrix")
    out.add_array("imatrix.datasets", ["steps"])
    out.add_uint32("imatrix.chunk_count", 1)
    out.add_uint32("imatrix.chunk_size", 1)
    for name, values in importance(model).items():
        matrices = values.size // shapes[name][-1]
        out.add_tensor(f"{name}.in_sum2", values.reshape(matrices, -1))
        out.add_tensor(f"{name}.counts", np.ones((matrices, 1), np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
