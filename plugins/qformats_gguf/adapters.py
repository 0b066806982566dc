"""LoRA adapters as PEFT saves them, as the files that llama.cpp's ``--lora`` takes.

Such a file holds, for each adapted matrix ``W``, ``W.lora_a`` and ``W.lora_b`` under its GGUF name, and one ``alpha``
for all: llama.cpp adds ``alpha / rank * b @ a``. Rows of ``b`` are in the order of the rows of ``W``; ``a`` of the
token embedding is transposed, as llama.cpp looks its rows up.

Source: ggml-org/llama.cpp:convert_lora_to_gguf.py, src/llama-adapter.cpp, src/llama-graph.cpp.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import qformats
from qformats import PackedTensor, Packer, StoredTensor
from qformats.errors import CheckpointError, ConfigError, QFormatsError, UnsupportedModelError
from qformats.folder import STARTS, AdapterCheckpoint, base_name, read_json
from qformats.interfaces import Draft, Values, dense, same_values

if TYPE_CHECKING:
    from torch import Tensor

    from qformats_gguf.architectures import Architecture, TensorMapping
    from qformats_gguf.metadata import Metadata

__all__ = ["adapter_drafts", "adapter_metadata", "require_type"]

_NAME = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<table>embedding_)?(?P<half>[AB])(?:\.default)?(?:\.weight)?"
)
_READ = (
    *("base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("peft_type", "bias", "init_lora_weights"),
)
_HARMLESS = (
    # What was adapted and how it was trained: the tensors tell the result.
    *("task_type", "auto_mapping", "peft_version", "revision", "inference_mode", "target_modules"),
    *("exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern"),
    *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
)
_WRAPPED = "base_model.model."
_WHOLE = (".base_layer.weight", "embed_tokens.weight", "lm_head.weight")
_MERGE = "merge it into its base instead (qformats merge)"
_TYPES = ("f32", "f16", "bf16", "q8_0")
"""Those that llama.cpp's converter writes."""


@dataclass(frozen=True)
class _Pair:
    """Both halves of what is added to a matrix, and by what their product is multiplied."""

    a: StoredTensor
    b: StoredTensor
    scale: float
    table: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def adapter_drafts(source: AdapterCheckpoint, options: Mapping[str, str]) -> list[Draft]:
    """Tensors of the file.

    Raises
    ------
    UnsupportedModelError
        If the adapter is more than a sum of products, or llama.cpp adapts no such tensor.
    CheckpointError
        If its tensors do not fit the base, or nothing is known of the base.
    """
    architecture = _architecture(source, options)
    copies = _copies(source, options)
    pairs = _pairs(source, copies)
    alpha = _alpha(pairs)
    drafts = [Draft(name, source.tensors[name], left_out=reason) for name, reason in copies.items()]
    for module, pair in pairs.items():
        found = _mappings(architecture, module, pair)
        if not found:
            reason = architecture.why_left_out(f"{module}.weight")
            drafts += [Draft(half.name, half, left_out=reason) for half in (pair.a, pair.b)]
        for mapping in found:
            a = _transposed(pair.a) if pair.table else pair.a
            # llama.cpp divides by the rank of each tensor; where that gives another scale, the values make up for it.
            factor = pair.scale * pair.rank / alpha
            b = pair.b if factor == 1 else _scaled(pair.b, factor)
            if mapping.piece is not None:
                b = b.take_rows(np.arange(mapping.piece.start, mapping.piece.stop))
            if mapping.permute is not None:
                b = b.take_rows(mapping.permute.rows(b.rows))
            drafts += [Draft(f"{mapping.gguf}.lora_a", a), Draft(f"{mapping.gguf}.lora_b", b)]
    return drafts


def adapter_metadata(source: AdapterCheckpoint, options: Mapping[str, str]) -> Metadata:
    """Metadata of the file, without ``general.file_type``."""
    from qformats_gguf.metadata import f32, string, u32

    return {
        "general.architecture": string(_architecture(source, options).arch),
        "general.type": string("adapter"),
        "adapter.type": string("lora"),
        "adapter.lora.alpha": f32(_alpha(_pairs(source, _copies(source, options)))),
        "general.name": string(source.name),
        "general.quantization_version": u32(2),
    }


def require_type(packer: Packer) -> None:
    """Refuse types that adapters do not have.

    Raises
    ------
    ConfigError
        If the type is another.
    """
    if packer.spec.variant not in _TYPES:
        raise ConfigError("type", packer.name, f"{', '.join(_TYPES)} for an adapter, as llama.cpp has them")


def _base(source: AdapterCheckpoint, options: Mapping[str, str]) -> Path:
    """Configuration of the model that the adapter was trained on."""
    given = options.get("base") or base_name(source.config)
    path = Path(given).expanduser()
    config = path / "config.json" if path.is_dir() else path
    if not given or not config.is_file() or config.suffix != ".json":
        found = f"{given}, whose config.json is not here" if given else "no base_model_name_or_path"
        hint = "--base FOLDER says which model it was trained on; its config.json is enough"
        raise CheckpointError(source.path, found, "the folder of the base", hint=hint)
    return config


def _architecture(source: AdapterCheckpoint, options: Mapping[str, str]) -> Architecture:
    from qformats_gguf.architectures import Architecture

    config = _base(source, options)
    # What llama.cpp computes otherwise than Transformers matters when the base is written, not here.
    return Architecture.from_config(
        read_json(config, config.parent), override=options.get("arch"), source=str(config), force=True
    )


def _copies(source: AdapterCheckpoint, options: Mapping[str, str]) -> dict[str, str]:
    """Weights of the base that PEFT saves beside an adapted embedding, and why they are left out.

    Raises
    ------
    UnsupportedModelError
        If one is not the base's: it was trained, or has rows for new tokens.
    """
    whole = {name: tensor for name, tensor in source.tensors.items() if name.endswith(_WHOLE)}
    if not whole:
        return {}
    try:
        base = qformats.open(_base(source, options).parent).tensors
    except QFormatsError:
        # Its config.json alone, for instance.
        return dict.fromkeys(whole, "the base's own weight, which is not there to compare")
    for name, tensor in whole.items():
        twin = base.get(name.removeprefix(_WRAPPED).replace(".base_layer.", "."))
        if twin is None or not same_values(tensor, twin):
            found = f"{name}, which differs from the base's"
            raise UnsupportedModelError(f"{tensor.file}: tensor", found, ("lora_A and lora_B",), _MERGE)
    return dict.fromkeys(whole, "a copy of the base's weight")


def _pairs(source: AdapterCheckpoint, copies: Collection[str]) -> dict[str, _Pair]:
    """What is added, by the names of modules."""
    _check_config(source)
    halves: dict[str, dict[str, StoredTensor]] = {}
    tables = set()
    for name, tensor in source.tensors.items():
        if name in copies:
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnsupportedModelError(f"{tensor.file}: tensor", name, ("lora_A and lora_B",), _MERGE)
        halves.setdefault(match["module"], {})[match["half"]] = tensor
        if match["table"]:
            tables.add(match["module"])
    if not halves:
        raise CheckpointError(source.path, "has no tensors", "the matrices of an adapter")
    pairs = {}
    for module, found in halves.items():
        if len(found) != 2:
            lacking = "B" if "A" in found else "A"
            raise CheckpointError(
                source.path, f"{module} has no lora_{lacking}", "both halves of each product"
            )
        a, b = found["A"], found["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            expected = "[rank, in] and [out, rank]"
            raise CheckpointError(
                source.path, f"lora_A {a.shape} and lora_B {b.shape}", expected, tensor=module
            )
        pairs[module] = _Pair(a, b, _scale(source, module, a.shape[0]), module in tables)
    return pairs


def _check_config(source: AdapterCheckpoint) -> None:
    config, where = source.config, f"{source.path / 'adapter_config.json'}"
    if source.architecture != "lora":
        raise UnsupportedModelError(f"{where}: peft_type", config.get("peft_type"), ("LORA",), _MERGE)
    if config.get("bias", "none") != "none":
        raise UnsupportedModelError(f"{where}: bias", config["bias"], ("none",), _MERGE)
    if config.get("init_lora_weights", True) not in STARTS:
        hint = "save it as plain LoRA (PEFT: path_initial_model_for_weight_conversion)"
        allowed = map(str, STARTS)
        raise UnsupportedModelError(f"{where}: init_lora_weights", config["init_lora_weights"], allowed, hint)
    for key, value in config.items():
        if value and key not in _READ and key not in _HARMLESS:
            raise UnsupportedModelError(f"{where}: {key}", value, ("null",), _MERGE)


def _scale(source: AdapterCheckpoint, module: str, rank: int) -> float:
    """By what PEFT multiplies the product of a module."""
    config = Values(source.config, str(source.path / "adapter_config.json"))
    told = _pattern(source, "rank_pattern", module)
    expected = config.integer("r", rank, minimum=1) if told is None else told
    if expected != rank:
        raise CheckpointError(
            source.path, f"rank {rank}", f"{expected}, as its configuration says", tensor=module
        )
    told = _pattern(source, "alpha_pattern", module)
    alpha = config.number("lora_alpha", 8.0, above=0.0) if told is None else float(told)
    return alpha / (math.sqrt(rank) if config.flag("use_rslora", False) else rank)


def _pattern(source: AdapterCheckpoint, key: str, module: str) -> Any:
    """Number that a pattern gives for a module, as PEFT matches them."""
    patterns = source.config.get(key) or {}
    file = source.path / "adapter_config.json"
    if not isinstance(patterns, Mapping):
        raise CheckpointError(file, f"{key} {patterns!r}", "an object")
    for pattern in patterns:
        try:
            matches = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            found = f"{key} {pattern!r} ({error})"
            raise CheckpointError(file, found, "regular expressions") from error
        if matches:
            return Values(patterns, str(file), key).number(pattern, above=0.0)
    return None


def _alpha(pairs: Mapping[str, _Pair]) -> float:
    """The one number of the file: that of most tensors."""
    return Counter(pair.scale * pair.rank for pair in pairs.values()).most_common(1)[0][0]


def _mappings(architecture: Architecture, module: str, pair: _Pair) -> list[TensorMapping]:
    """Tensors of GGUF that the matrix of a module becomes; none if it is part of a vision model."""
    name, tied = f"{module}.weight", bool(architecture.config.get("tie_word_embeddings"))
    first = architecture.map_tensor(name)
    if first is None or (pair.table and tied):
        if first is None and architecture.home_of(name) is None:
            return []
        found = f"{module}, whose weight is both embedding and output layer"
        raise UnsupportedModelError("adapter of", found, ("a layer with a weight of its own",), _MERGE)
    shape = (pair.b.shape[0], pair.a.shape[1])
    architecture.check_shape(first, shape[::-1] if pair.table else shape, name)
    mappings = [each for each in architecture.expected_tensors() if each.canonical == first.canonical]
    if any(each.stack or (each.piece is not None and not each.piece.whole_rows) for each in mappings):
        raise UnsupportedModelError("adapter of", module, ("a matrix that GGUF keeps by itself",), _MERGE)
    return mappings


def _scaled(tensor: StoredTensor, factor: float) -> StoredTensor:
    return _changed(tensor, tensor.shape, lambda: tensor.dequantize() * factor)


def _transposed(tensor: StoredTensor) -> StoredTensor:
    return _changed(tensor, tensor.shape[::-1], lambda: tensor.dequantize().T.contiguous())


def _changed(tensor: StoredTensor, shape: tuple[int, ...], values: Callable[[], Tensor]) -> StoredTensor:
    """Other numbers, in float32: adapters are small."""
    plain = dense("f32")

    def load(start: int, stop: int) -> PackedTensor:
        part = values()[start:stop]
        return PackedTensor(plain, tuple(part.shape), {"weight": part})

    origin = tensor.stored_packer if tensor.stored_format != plain.name else None
    return replace(tensor, shape=shape, packer=plain, nbytes=4 * tensor.numel, load=load, origin=origin)
