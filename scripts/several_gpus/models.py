"""Models of random weights that are large on a GPU and small on disk: all their layers are the same bytes.

A file of `torch.save` holds tensors that share memory once. So a layer is made, quantized by an export where a format
is wanted, and named as often as the model has layers; loading gives each layer memory of its own.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bench_decode import tokenizer
from safetensors.torch import load_file

import qformats

__all__ = ["GLM_130B", "LLAMA_8B", "LLAMA_405B", "SMALL_GLM", "SMALL_LLAMA", "Sizes", "glm", "llama"]


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model: hidden and inner features, heads, heads of keys, layers, vocabulary."""

    hidden: int
    inner: int
    heads: int
    keys: int
    layers: int
    vocabulary: int


GLM_130B = Sizes(12288, 32768, 96, 96, 70, 150528)
LLAMA_405B = Sizes(16384, 53248, 128, 8, 126, 128256)
LLAMA_8B = Sizes(4096, 14336, 32, 8, 32, 128256)
SMALL_GLM = Sizes(256, 512, 8, 8, 4, 1024)
SMALL_LLAMA = Sizes(256, 512, 8, 4, 6, 1024)


_SPREAD = 0.008
"""Standard deviation of weights. With 0.02 a layer of GLM-130B's width outweighs what it is added to, and 70 of them
make unrelated numbers of two inputs that differ by a rounding: nothing could be compared."""


def _random(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {}
    for name, shape in shapes.items():
        plain = torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.zeros(shape)
        value = plain if len(shape) == 1 else torch.randn(shape, device=device, dtype=torch.float16) * _SPREAD
        found[name] = value.half().cpu()
    return found


def _repeated(layer: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """The same tensors under the names of all layers."""
    found = {}
    for name, value in layer.items():
        for number in range(layers if ".layers.0." in name else 1):
            found[name.replace(".layers.0.", f".layers.{number}.")] = value
    return found


def glm(folder: Path, sizes: Sizes, layers: int, bits: int) -> Path:
    """The file of one rank, as GLM-130B's were published.

    Parameters
    ----------
    folder : Path
        Of all models.
    sizes : Sizes
        Of the model; `layers` counts, not theirs.
    layers, bits : int
        16 bits are plain float16, 4 are ``glm:int4``.
    """
    target = folder / f"glm-{sizes.hidden}-{layers}-{bits}"
    if target.exists():
        return target
    one = folder / f"glm-{sizes.hidden}-layer"
    if not one.exists():
        width, within = sizes.hidden, "transformer.layers.0"
        shapes: dict[str, tuple[int, ...]] = {"transformer.word_embeddings.weight": (sizes.vocabulary, width)}
        for name, shape in {
            "attention.query_key_value": (3 * width, width), "attention.dense": (width, width),
            "mlp.dense_h_to_4h": (2 * sizes.inner, width), "mlp.dense_4h_to_h": (width, sizes.inner),
        }.items():  # fmt: skip
            shapes |= {f"{within}.{name}.weight": shape, f"{within}.{name}.bias": shape[:1]}
        for name in (f"{within}.input_layernorm", f"{within}.post_attention_layernorm"):
            shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        shapes |= {f"transformer.final_layernorm.{part}": (width,) for part in ("weight", "bias")}
        _write_rank(one, _random(shapes), sizes)
    source = one
    if bits == 4:
        source = folder / f"glm-{sizes.hidden}-layer-int4"
        if not source.exists():
            options = {"tensor-parallel": "1", "heads": str(sizes.heads)}
            qformats.export(one, source, format="glm:int4", quantizer="rtn", options=options)
    file = next(source.rglob("mp_rank_00_model_states.pt"))
    layer = torch.load(file, mmap=True, weights_only=True)["module"]
    _write_rank(target, _repeated(layer, layers), sizes)
    return target


def _write_rank(folder: Path, module: dict[str, torch.Tensor], sizes: Sizes) -> None:
    place = folder / "1"
    place.mkdir(parents=True)
    (folder / "latest").write_text("1")
    told: dict[str, Any] = {"num_attention_heads": sizes.heads}
    if sizes.vocabulary < 150000:
        first = sizes.vocabulary - 20
        named = (
            "mask_token_id",
            "gmask_token_id",
            "smask_token_id",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
        )
        told |= {name: first + number for number, name in enumerate(named)}
    (folder / "model_config.json").write_text(json.dumps(told))
    torch.save({"module": module}, place / "mp_rank_00_model_states.pt")


def llama(folder: Path, sizes: Sizes, format: str) -> Path:
    """A folder with ``pytorch_model.bin``.

    Parameters
    ----------
    folder : Path
        Of all models.
    sizes : Sizes
        Of the model.
    format : str
        Of its linear layers: one that an export writes into safetensors, or ``dense``.
    """
    target = folder / f"llama-{sizes.hidden}-{format.replace(':', '-')}"
    if target.exists():
        return target
    one = folder / f"llama-{sizes.hidden}-layer"
    if not one.exists():
        width, kept, within = sizes.hidden, sizes.hidden // sizes.heads * sizes.keys, "model.layers.0"
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (sizes.vocabulary, width),
            "lm_head.weight": (sizes.vocabulary, width),
            "model.norm.weight": (width,),
            f"{within}.input_layernorm.weight": (width,),
            f"{within}.post_attention_layernorm.weight": (width,),
        }
        for name, shape in {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (kept, width), "self_attn.v_proj": (kept, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (sizes.inner, width),
            "mlp.up_proj": (sizes.inner, width), "mlp.down_proj": (width, sizes.inner),
        }.items():  # fmt: skip
            shapes[f"{within}.{name}.weight"] = shape
        one.mkdir(parents=True)
        torch.save(_random(shapes), one / "pytorch_model.bin")
        (one / "config.json").write_text(json.dumps(_llama_config(sizes, 1)))
        tokenizer(one, sizes.vocabulary)
    if format == "dense":
        return _written(
            target, torch.load(one / "pytorch_model.bin", mmap=True, weights_only=True), one, sizes
        )
    packed = folder / f"llama-{sizes.hidden}-layer-packed"
    qformats.export(one, packed, format=format, quantizer="rtn", force=True)
    layer: dict[str, torch.Tensor] = {}
    for file in packed.glob("*.safetensors"):
        layer |= load_file(file)
    _written(target, layer, packed, sizes)
    shutil.rmtree(packed)
    return target


def _written(target: Path, layer: dict[str, torch.Tensor], like: Path, sizes: Sizes) -> Path:
    """A folder with all layers, and the other files of one with a single layer."""
    target.mkdir(parents=True)
    torch.save(_repeated(layer, sizes.layers), target / "pytorch_model.bin")
    config = json.loads((like / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": sizes.layers}))
    for file in like.glob("*.json"):
        if file.name.startswith(("tokenizer", "quantize_config")):
            shutil.copyfile(file, target / file.name)
    return target


def _llama_config(sizes: Sizes, layers: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner, "num_hidden_layers": layers, "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.keys, "vocab_size": sizes.vocabulary, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192, "rope_theta": 500000.0, "hidden_act": "silu", "dtype": "float16",
        "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "attention_bias": False,
        "mlp_bias": False, "head_dim": sizes.hidden // sizes.heads,
    }  # fmt: skip
