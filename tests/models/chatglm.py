"""A tiny random ``GlmForCausalLM``, saved as its native folder and as a ChatGLM repository has it.

The quantizer and the packing here are a plain transcription of upstream's rule, independent of the plugin: the
reference model holds the numbers that a right reader must find.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["SIZES", "dequantize", "model", "pack_nibbles", "quantize", "save", "save_6b"]

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 88,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def model(*, rope_ratio: float = 1, seed: int = 0, dtype: str = "float16", **changes: Any) -> Any:
    """A random model whose every part shows in the logits; values representable in `dtype`, stored as float32."""
    import torch
    from transformers import GlmConfig, GlmForCausalLM

    config = GlmConfig(
        **({"attention_bias": True, "tie_word_embeddings": False} | SIZES | changes),
        rms_norm_eps=1e-5,
        max_position_embeddings=256,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0 * rope_ratio,
            "partial_rotary_factor": 0.5,
        },
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        attn_implementation="eager",
    )
    made = GlmForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in made.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if "norm" in name:
                noise = 1 + 0.2 * noise
            elif value.ndim == 2 and "embed" not in name:
                noise = noise * (1.5 / value.shape[1] ** 0.5)
            value.copy_(noise.to(getattr(torch, dtype)))
    return made


def quantize(weight: Any, bits: int) -> tuple[Any, Any]:
    """Codes (int8) and scales by upstream's rule, in the dtype of the weight; without its overflow."""
    import torch

    top = 2 ** (bits - 1) - 1
    scale = weight.abs().max(dim=1)[0] / top
    codes = torch.round(weight / scale[:, None]).nan_to_num(0).clamp(-top, top)
    return torch.where((scale == 0)[:, None], 0, codes).to(torch.int8), scale


def pack_nibbles(codes: Any) -> Any:
    """Two columns a byte, the even one in the high half."""
    import numpy as np
    import torch

    q = codes.numpy().astype(np.int16)
    return torch.from_numpy((((q[:, 0::2] & 15) << 4) | (q[:, 1::2] & 15)).astype(np.uint8).view(np.int8))


def dequantize(codes: Any, scale: Any) -> Any:
    """Values as float32."""
    return codes.float() * scale.float()[:, None]


def save(
    made: Any,
    folder: str | Path,
    *,
    bits: int = 0,
    dtype: str = "float16",
    container: str = "safetensors",
    shards: int = 1,
    interleaved: bool = False,
    declare: bool = True,
) -> Any:
    """Write a model as a ChatGLM2-style folder.

    Parameters
    ----------
    made : GlmForCausalLM
        Not modified.
    folder : path-like
        Created.
    bits : {0, 4, 8}
        0 for plain numbers.
    dtype : str
        Of the plain numbers, of the scales, and of the quantizer's arithmetic.
    container : {"safetensors", "bin"}
        Kind of weight file.
    shards : int
        How many; more than one come with an index.
    interleaved : bool
        ``multi_query_attention: false``: queries, keys and values of a head beside each other.
    declare : bool
        Whether config.json says ``quantization_bit``.

    Returns
    -------
    GlmForCausalLM
        What the folder holds, in float32.
    """
    import copy

    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = made.config
    reference = copy.deepcopy(made)
    state = {name: value.to(getattr(torch, dtype)) for name, value in made.state_dict().items()}
    out: dict[str, Any] = {}
    frequencies = 1.0 / (10000 ** (torch.arange(0, config.head_dim // 2, 2).float() / (config.head_dim // 2)))
    out["transformer.rotary_pos_emb.inv_freq"] = frequencies.to(getattr(torch, dtype))
    out["transformer.embedding.word_embeddings.weight"] = state["model.embed_tokens.weight"]
    out["transformer.output_layer.weight"] = state["lm_head.weight"]
    out["transformer.encoder.final_layernorm.weight"] = state["model.norm.weight"]
    values: dict[str, Any] = {}
    for number in range(config.num_hidden_layers):
        old, new = f"model.layers.{number}.", f"transformer.encoder.layers.{number}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            out[f"{new}{norm}.weight"] = state[f"{old}{norm}.weight"]
        for kind in ("weight", "bias"):
            parts = [state[f"{old}self_attn.{part}_proj.{kind}"] for part in "qkv"]
            if interleaved:
                heads = [part.unflatten(0, (config.num_attention_heads, -1)) for part in parts]
                fused = torch.cat(heads, 1).flatten(0, 1)
            else:
                fused = torch.cat(parts)
            out[f"{new}self_attention.query_key_value.{kind}"] = fused
        for stored, native in (
            ("self_attention.dense", "self_attn.o_proj"),
            ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
            ("mlp.dense_4h_to_h", "mlp.down_proj"),
        ):
            out[f"{new}{stored}.weight"] = state[f"{old}{native}.weight"]
        if bits:
            for name, native in (
                ("self_attention.query_key_value", ""),
                ("self_attention.dense", "self_attn.o_proj"),
                ("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
                ("mlp.dense_4h_to_h", "mlp.down_proj"),
            ):
                codes, scale = quantize(out[f"{new}{name}.weight"], bits)
                out[f"{new}{name}.weight"] = pack_nibbles(codes) if bits == 4 else codes
                out[f"{new}{name}.weight_scale"] = scale
                if native:
                    values[f"{old}{native}.weight"] = dequantize(codes, scale)
            for part in "qkv":
                name = f"{old}self_attn.{part}_proj.weight"
                values[name] = dequantize(*quantize(state[name], bits))
    reference.load_state_dict({name: value.float() for name, value in state.items()} | values)
    _save_weights(out, folder, container, shards)
    declared = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "ffn_hidden_size": config.intermediate_size,
        "hidden_size": config.hidden_size,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "multi_query_attention": not interleaved,
        "multi_query_group_num": config.num_key_value_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_hidden_layers,
        "original_rope": True,
        "padded_vocab_size": config.vocab_size,
        "post_layer_norm": True,
        "rmsnorm": True,
        "rope_ratio": config.rope_parameters["rope_theta"] / 10000,
        "seq_length": 256,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if bits and declare:
        declared["quantization_bit"] = bits
    (folder / "config.json").write_text(json.dumps(declared))
    # Would fail loudly if anybody ran it.
    (folder / "modeling_chatglm.py").write_text("raise RuntimeError('this file must not be run')\n")
    return reference


def _save_weights(tensors: dict[str, Any], folder: Path, container: str, shards: int) -> None:
    import torch
    from safetensors.torch import save_file

    stem, suffix = ("model", "safetensors") if container == "safetensors" else ("pytorch_model", "bin")
    names = list(tensors)
    where: dict[str, str] = {}
    for number in range(shards):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number + 1:05d}-of-{shards:05d}.{suffix}"
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        where |= dict.fromkeys(part, file)
        if container == "safetensors":
            save_file(part, folder / file, metadata={"format": "pt"})
        else:
            torch.save(part, folder / file)
    if shards > 1:
        total = sum(value.numel() * value.element_size() for value in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def save_6b(
    folder: str | Path,
    *,
    bits: int = 0,
    embeddings: bool = False,
    container: str = "bin",
    vocabulary: int = 40,
) -> dict[str, Any]:
    """Write random weights as ChatGLM-6B has them; Transformers has no class for it.

    Parameters
    ----------
    folder : path-like
        Created.
    bits : {0, 4, 8}
        0 for plain numbers.
    embeddings : bool
        The variant ``-qe``: the embedding is quantized too, and the output layer shares its storage.
    container : {"safetensors", "bin"}
        safetensors cannot store shared tensors, and leaves the second name out.
    vocabulary : int
        Rows of the embedding.

    Returns
    -------
    dict of str to Tensor
        Values of every weight, float32, by the names on disk.
    """
    import torch

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner, heads, layers = 32, 128, 4, 2
    generator = torch.Generator().manual_seed(6)
    out: dict[str, Any] = {}
    values: dict[str, Any] = {}

    def put(name: str, *shape: int, dtype: Any = torch.float16) -> None:
        out[name] = torch.randn(shape, generator=generator).to(dtype)
        values[name] = out[name].float()

    def pack(name: str) -> None:
        codes, scale = quantize(out[f"{name}.weight"], bits)
        values[f"{name}.weight"] = dequantize(codes, scale)
        out[f"{name}.weight"] = pack_nibbles(codes) if bits == 4 else codes
        out[f"{name}.weight_scale"] = scale

    put("transformer.word_embeddings.weight", vocabulary, hidden)
    if not embeddings:
        put("lm_head.weight", vocabulary, hidden)
    for number in range(layers):
        layer = f"transformer.layers.{number}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            put(f"{layer}.{name}.weight", hidden, dtype=torch.float32)
            put(f"{layer}.{name}.bias", hidden, dtype=torch.float32)
        put(f"{layer}.attention.rotary_emb.inv_freq", hidden // heads // 4)
        for name, rows, columns in (
            ("attention.query_key_value", 3 * hidden, hidden),
            ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", inner, hidden),
            ("mlp.dense_4h_to_h", hidden, inner),
        ):
            put(f"{layer}.{name}.weight", rows, columns)
            put(f"{layer}.{name}.bias", rows)
            if bits:
                pack(f"{layer}.{name}")
    put("transformer.final_layernorm.weight", hidden, dtype=torch.float32)
    put("transformer.final_layernorm.bias", hidden, dtype=torch.float32)
    if embeddings:
        pack("transformer.word_embeddings")
        if container == "bin":
            for field in ("weight", "weight_scale"):
                out[f"lm_head.{field}"] = out[f"transformer.word_embeddings.{field}"]
    _save_weights(out, folder, container, 1)
    declared = {
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "bos_token_id": 30,
        "eos_token_id": 31,
        "hidden_size": hidden,
        "inner_hidden_size": inner,
        "layernorm_epsilon": 1e-5,
        "max_sequence_length": 64,
        "num_attention_heads": heads,
        "num_layers": layers,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "vocab_size": vocabulary,
    }
    if bits:
        declared["quantization_bit"] = bits
    if embeddings:
        declared["quantization_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(declared))
    return values
