"""The vision model of a multimodal folder, as the file that llama.cpp's ``--mmproj`` takes: Gemma 3's.

It holds the SigLIP encoder and what maps its patches to tokens of the language model, which is another file.

Source: ggml-org/llama.cpp:conversion/{base,gemma}.py, tools/mtmd/clip.cpp, tools/mtmd/models/siglip.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from qformats import Checkpoint, StoredTensor
from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.folder import config_class, read_json
from qformats.interfaces import Draft, Values
from qformats_gguf.metadata import Metadata, ValueType, array, boolean, f32, string, u32
from qformats_gguf.rearrange import shifted

__all__ = ["projector_drafts", "projector_metadata"]

_TYPE = "gemma3"
_VISION = re.compile(r"(?:model\.)?vision_tower\.(?:vision_model\.)?")
_PROJECTOR = re.compile(r"(?:model\.)?multi_modal_projector\.")
_BLOCK = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_USUAL_SCALE = 4
"""Patches that llama.cpp makes one token of, along each side, where a file does not say."""


def projector_drafts(source: Checkpoint) -> list[Draft]:
    """Tensors of the file.

    Raises
    ------
    UnsupportedModelError
        If llama.cpp has no such vision model, or this is none.
    CheckpointError
        If a tensor is missing, unknown, or of another shape than the configuration gives.
    """
    expected = _expected(_Sizes(source))
    found: dict[str, StoredTensor] = {}
    drafts = []
    for name, tensor in source.tensors.items():
        own = (
            _VISION.sub("v.", name, count=1) if _VISION.match(name) else _PROJECTOR.sub("mm.", name, count=1)
        )
        if own == name:
            drafts.append(
                Draft(name, tensor, left_out="part of the language model, which is a file by itself")
            )
            continue
        if own.startswith("v.head."):
            drafts.append(Draft(name, tensor, left_out="a head that the language model does not use"))
            continue
        if own not in expected:
            raise CheckpointError(
                tensor.file, "unknown", "only tensors of Gemma 3's vision model", tensor=name
            )
        gguf, shape = expected[own]
        if tensor.shape != shape:
            hint = "the weights and the configuration belong to different models"
            raise CheckpointError(tensor.file, f"shape {tensor.shape}", str(shape), tensor=name, hint=hint)
        found[gguf] = tensor
    for own, (gguf, _) in expected.items():
        if gguf not in found:
            raise CheckpointError(source.path, f"no tensor {own}", "all tensors of the vision model")
        drafts.append(_draft(gguf, found[gguf]))
    return drafts


def _draft(name: str, tensor: StoredTensor) -> Draft:
    if name == "mm.soft_emb_norm.weight":
        # Gemma's norms multiply by 1 + weight.
        tensor = shifted(tensor, 1.0)
    if name == "mm.input_projection.weight":
        # llama.cpp turns it, which it can do with plain numbers only.
        return Draft(name, tensor, None, "gguf:f16", "kept in half precision by llama.cpp", cast_along=True)
    if len(tensor.shape) == 2 and name != "v.position_embd.weight":
        return Draft(name, tensor)
    return Draft(name, tensor, None, "gguf:f32", "kept in full precision by llama.cpp")


def projector_metadata(source: Checkpoint) -> Metadata:
    """Metadata of the file, without ``general.file_type``."""
    sizes = _Sizes(source)
    vision = "clip.vision."
    found: Metadata = {
        "general.architecture": string("clip"),
        "general.type": string("mmproj"),
        "general.name": string(source.name),
        "clip.has_vision_encoder": boolean(True),
        "clip.projector_type": string(_TYPE),
        "clip.use_gelu": boolean(True),
        f"{vision}projection_dim": u32(sizes.text),
        f"{vision}image_size": u32(sizes.image),
        f"{vision}patch_size": u32(sizes.patch),
        f"{vision}embedding_length": u32(sizes.hidden),
        f"{vision}feed_forward_length": u32(sizes.inner),
        f"{vision}block_count": u32(sizes.layers),
        f"{vision}attention.head_count": u32(sizes.heads),
        f"{vision}attention.layer_norm_epsilon": f32(sizes.epsilon),
        f"{vision}image_mean": array(ValueType.F32, sizes.mean),
        f"{vision}image_std": array(ValueType.F32, sizes.std),
        "general.quantization_version": u32(2),
    }
    if sizes.scale != _USUAL_SCALE:
        found[f"{vision}projector.scale_factor"] = u32(sizes.scale)
    return found


class _Sizes:
    """What config.json and the image processor's configuration say, checked."""

    def __init__(self, source: Checkpoint) -> None:
        config, where = source.config, f"{source.path}/config.json"
        if config.get("model_type") != _TYPE or not isinstance(config.get("vision_config"), Mapping):
            hint = "--mmproj is for folders that hold a vision model"
            raise UnsupportedModelError(f"{where}: model_type", config.get("model_type"), (_TYPE,), hint)
        own = config["vision_config"]
        given = Values(config_class("siglip_vision_model").defaults | dict(own), where)
        text = Values(config_class("gemma3_text").defaults | dict(config.get("text_config") or {}), where)
        self.text = text.integer("hidden_size", minimum=1)
        self.hidden = given.integer("hidden_size", minimum=1)
        self.inner = given.integer("intermediate_size", minimum=1)
        self.layers = given.integer("num_hidden_layers", minimum=1, maximum=1 << 16)
        self.heads = given.integer("num_attention_heads", minimum=1)
        self.image = given.integer("image_size", minimum=1)
        self.patch = given.integer("patch_size", minimum=1)
        self.epsilon = given.number("layer_norm_eps", above=0.0)
        for key, allowed in (
            ("model_type", ("siglip_vision_model",)),
            ("hidden_act", ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")),
            ("num_channels", (3,)),
        ):
            if given.get(key) not in (*allowed, None):
                raise UnsupportedModelError(
                    f"{where}: vision_config.{key}", given.get(key), map(str, allowed)
                )
        side = self.image // self.patch
        tokens = math.isqrt(Values(config, where).integer("mm_tokens_per_image", 256, minimum=1))
        self.scale, rest = divmod(side, tokens)
        if self.scale < 1 or rest or self.image % self.patch:
            found = f"{side} patches and {tokens} tokens on each side of an image"
            raise UnsupportedModelError(where, found, ("a whole number of patches for each token",))
        self._processor(source)

    def _processor(self, source: Checkpoint) -> None:
        """How images become numbers."""
        names = ("preprocessor_config.json", "processor_config.json")
        file = next((source.path / name for name in names if (source.path / name).is_file()), None)
        if file is None:
            expected = "how the model's images are scaled and normalized"
            raise CheckpointError(
                source.path, f"no {names[0]}", expected, hint="fetch it from the same model"
            )
        content: dict[str, Any] = read_json(file, source.path)
        content = content.get("image_processor") or content
        given = Values(content, str(file))
        size = content.get("size") or {}
        if {size.get("height", self.image), size.get("width", self.image)} != {self.image}:
            raise UnsupportedModelError(f"{file}: size", size, (f"{self.image}, vision_config.image_size",))
        if content.get("do_pan_and_scan"):
            hint = "llama.cpp takes an image as a whole"
            raise UnsupportedModelError(f"{file}: do_pan_and_scan", True, ("false",), hint)
        self.mean, self.std = (given.numbers(key) for key in ("image_mean", "image_std"))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise CheckpointError(file, f"{len(self.mean)} means", "one for each of three colours")


def _expected(sizes: _Sizes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name in GGUF and shape of every tensor, by its name on disk without the prefix."""
    h, ff = sizes.hidden, sizes.inner
    patches = (sizes.image // sizes.patch) ** 2
    found: dict[str, tuple[str, tuple[int, ...]]] = {
        "v.embeddings.patch_embedding.weight": ("v.patch_embd.weight", (h, 3, sizes.patch, sizes.patch)),
        "v.embeddings.patch_embedding.bias": ("v.patch_embd.bias", (h,)),
        "v.embeddings.position_embedding.weight": ("v.position_embd.weight", (patches, h)),
        "v.post_layernorm.weight": ("v.post_ln.weight", (h,)),
        "v.post_layernorm.bias": ("v.post_ln.bias", (h,)),
        "mm.mm_input_projection_weight": ("mm.input_projection.weight", (h, sizes.text)),
        "mm.mm_soft_emb_norm.weight": ("mm.soft_emb_norm.weight", (h,)),
    }
    shapes = {"ln1": (h,), "ln2": (h,), "ffn_up": (ff, h), "ffn_down": (h, ff)}
    for layer in range(sizes.layers):
        for own, to in _BLOCK.items():
            shape = shapes.get(to, (h, h))
            found[f"v.encoder.layers.{layer}.{own}.weight"] = (f"v.blk.{layer}.{to}.weight", shape)
            found[f"v.encoder.layers.{layer}.{own}.bias"] = (f"v.blk.{layer}.{to}.bias", shape[:1])
    return found
