"""The family ``bitsandbytes``: names of its variants, and what folders of Transformers declare."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qformats import Family, Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_bitsandbytes.packers import FourBitPacker, Int8Packer
from qformats_bitsandbytes.quant_state import BLOCK_SIZES, KEY, LONGEST, QuantState
from qformats_bitsandbytes.variant import FAMILY, STORAGE, four_bit_variant

__all__ = ["BitsAndBytes"]

_KINDS = ("nf4", "fp4")
_METHODS = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")
_PLAIN = ("weight", "weight.absmax", "weight.quant_map")
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
_INT8 = ("SCB", "weight_format")


_NOT_LINEAR = re.compile(r"(?:^|\.)(?:wte|wpe|embed_\w+|\w*embeddings?)$")
"""Modules that Transformers never reads as bitsandbytes layers: it replaces linear ones."""
_HEADS = ("lm_head", "score", "output_layer", "embed_out")
"""Modules that Transformers leaves out by itself where a configuration has no list of its own."""


class BitsAndBytes(Family):
    """The usual variants; block sizes and storage dtypes can be added to the names of 4-bit ones."""

    name = FAMILY
    packers = (
        FourBitPacker("nf4"),
        FourBitPacker("fp4"),
        Int8Packer(),
        FourBitPacker("nf4", nested=True),
        FourBitPacker("fp4", nested=True),
    )
    other_names = ("bnb",)
    programs = ("vllm", "transformers")
    aliases = MappingProxyType(
        {
            **dict.fromkeys(("4bit", "bnb4", "bnb-4bit", "normalfloat4"), "nf4"),
            **dict.fromkeys(("8bit", "bnb8", "bnb-8bit", "llm.int8", "llm-int8"), "int8"),
            **dict.fromkeys(("qlora", "nf4-double", "nf4-nested"), "nf4-dq"),
        }
    )
    similar = MappingProxyType({"fp8": ("int8",), "nf5": ("nf4",)})

    def hub_name(self, packer: Packer) -> str:
        """``bnb-nf4``."""
        return f"bnb-{packer.spec.variant}"

    def parse(self, variant: str) -> Packer:
        """Packer of ``int8``, or of ``nf4`` or ``fp4`` with any of ``-dq``, ``-bs32`` to ``-bs4096``, ``-bf16``."""
        kind, *parts = variant.lower().split("-")
        if kind == "int8" and not parts:
            return Int8Packer()
        blocks = {f"bs{size}": size for size in BLOCK_SIZES}
        nested = [part for part in parts if part == "dq"]
        sizes = [blocks[part] for part in parts if part in blocks]
        storage = [part for part in parts if part in STORAGE]
        known = len(nested) + len(sizes) + len(storage) == len(parts)
        if kind not in _KINDS or not known or max(len(nested), len(sizes), len(storage)) > 1:
            raise self.unknown(variant, ["nf4-bs32 to nf4-bs4096", "nf4-bf16", "nf4-f16", "nf4-f32"])
        return FourBitPacker(kind, bool(nested), [*sizes, 64][0], [*storage, "u8"][0])

    def detect(self, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of most modules of such a folder; :meth:`locate` decides for each one."""
        config = quantization_config
        four, eight = (config.get(f"load_in_{bits}bit", config.get(f"_load_in_{bits}bit")) for bits in (4, 8))
        method = config.get("quant_method")
        if method not in _METHODS and (method is not None or not (four is True or eight is True)):
            return None
        if four and eight:
            raise ConfigError(
                "load_in_4bit and load_in_8bit", Described("both true"), "only one of them to be true"
            )
        if eight:
            return self.parse("int8")
        kind = config.get("bnb_4bit_quant_type")
        stored = str(config.get("bnb_4bit_quant_storage")).removeprefix("torch.")
        storage = next((short for short, name in STORAGE.items() if name == stored), "u8")
        nested = config.get("bnb_4bit_use_double_quant") is True
        return self.parse(four_bit_variant(kind if kind in _KINDS else "nf4", nested, 64, storage))

    def undeclared(self, module: ModuleFields) -> dict[str, Any] | None:
        """What a folder with such a module would declare: a description or a scale beside the weight says it all."""
        for kind in _KINDS:
            if KEY + kind in module.stored:
                return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        if module.stored.keys() >= {"weight", "SCB"}:
            return {"quant_method": "bitsandbytes", "load_in_8bit": True}
        return None

    def to_config(
        self,
        packer: Packer,
        *,
        dense_modules: Sequence[str] = (),
        packed_modules: Sequence[str] = (),
        dtype: str = "float32",
    ) -> dict[str, Any]:
        """``quantization_config`` with the keys and in the order of Transformers."""
        for module in packed_modules:
            if isinstance(packer, Int8Packer) and _NOT_LINEAR.search(module):
                expected = (
                    "plain numbers, or nf4: Transformers would take the codes for weights, without an error"
                )
                raise ConfigError(f"type of {module}.weight", packer.name, expected)
        skipped: list[str] | None = [*dense_modules]
        # A list, also an empty one, replaces what Transformers leaves out by itself.
        if not any(module.rpartition(".")[2] in _HEADS for module in packed_modules):
            skipped = [*dict.fromkeys((*dense_modules, "lm_head"))] if dense_modules else None
        usual = {
            "_load_in_4bit": False,
            "_load_in_8bit": False,
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "fp4",
            "bnb_4bit_use_double_quant": False,
            "llm_int8_enable_fp32_cpu_offload": False,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": skipped,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": False,
            "load_in_8bit": False,
            "quant_method": "bitsandbytes",
        }
        if isinstance(packer, FourBitPacker):
            return usual | {
                "_load_in_4bit": True,
                "load_in_4bit": True,
                "bnb_4bit_quant_type": packer.kind,
                "bnb_4bit_use_double_quant": packer.nested,
                "bnb_4bit_quant_storage": STORAGE[packer.storage],
            }
        return usual | {"_load_in_8bit": True, "load_in_8bit": True, "bnb_4bit_compute_dtype": "float32"}

    def limits(self, packed_modules: Sequence[str]) -> str:
        """Embeddings, which are refused there: Transformers replaces linear modules only."""
        found = [module for module in packed_modules if _NOT_LINEAR.search(module)]
        told = " and ".join(found) + (" is" if len(found) == 1 else " are")
        return f"{told} quantized, which qformats loads and Transformers does not" if found else ""

    def suffixes(self, packer: Packer) -> frozenset[str]:
        """Names of all variants."""
        return frozenset((*_PLAIN, *_NESTED, *_INT8, *(KEY + kind for kind in _KINDS)))

    def locate(self, packer: Packer, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape of the weight of a module; see :meth:`~qformats.Family.locate`."""
        stored = module.stored
        states = [kind for kind in _KINDS if KEY + kind in stored]
        others = sorted(stored.keys() - {"weight"})
        if not others:
            _refuse_codes(module)
            return None
        if stored.keys() & {*_INT8}:
            return _locate_int8(module)
        if len(states) != 1:
            found = Described(
                " and ".join(states) if states else f"{', '.join(others)} without a quant_state"
            )
            raise ConfigError(f"type of {module.name}", found, f"either {KEY}nf4 or {KEY}fp4")
        return _locate_four_bit(module, states[0])


def _refuse_codes(module: ModuleFields) -> None:
    """Refuse codes without the fields that belong to them; a weight alone must hold plain numbers."""
    _, dtype = module.stored["weight"]
    if dtype in ("u8", "i8"):
        missing = f"SCB and {_INT8[1]}" if dtype == "i8" else f"absmax, quant_map and {KEY}nf4 (or fp4)"
        raise ConfigError(f"weight of {module.name}", Described(f"only {dtype} codes"), f"{missing} as well")


def _expect(module: ModuleFields, field: str, shape: tuple[int, ...], dtype: str, why: str = "") -> None:
    found_shape, found = module.stored[field]
    if (found_shape, found) != (shape, dtype):
        allowed = f"{dtype} of shape {shape}{why}"
        raise ConfigError(f"{field} of {module.name}", Described(f"{found} of shape {found_shape}"), allowed)


def _complete(module: ModuleFields, fields: Sequence[str]) -> None:
    missing = [field for field in fields if field not in module.stored]
    if missing:
        raise ConfigError(f"fields of {module.name}", sorted(module.stored), "also " + ", ".join(missing))
    surplus = sorted(module.stored.keys() - {*fields})
    if surplus:
        raise ConfigError(f"fields of {module.name}", surplus, "only " + ", ".join(fields))


def _locate_int8(module: ModuleFields) -> tuple[Packer, tuple[int, int]]:
    optional = [field for field in _INT8[1:] if field in module.stored]
    _complete(module, ["weight", "SCB", *optional])
    shape, dtype = module.stored["weight"]
    if len(shape) != 2 or dtype != "i8" or not all(shape):
        raise ConfigError(
            f"weight of {module.name}", Described(f"{dtype} of shape {shape}"), "i8 of shape (N, K)"
        )
    _expect(module, "SCB", shape[:1], "f32", ", one per row")
    if optional:
        # Files of versions before 0.38 do not have it.
        _expect(module, "weight_format", (), "u8")
        layout = module.read("weight_format")
        if layout != b"\0":
            raise ConfigError(
                f"weight_format of {module.name}", layout[0], "0 (rows)", "other layouts are for old GPUs"
            )
    return Int8Packer(), (shape[0], shape[1])


def _locate_four_bit(module: ModuleFields, kind: str) -> tuple[Packer, tuple[int, int]]:
    nested = any(field in module.stored for field in _NESTED)
    key = KEY + kind
    _complete(module, [*_PLAIN, *(_NESTED if nested else ()), key])
    (length, *more), dtype = module.stored[key] if module.stored[key][0] else ((0, 0), "")
    if more or dtype != "u8" or not 0 < length <= LONGEST:
        found = Described(f"{dtype} of shape {module.stored[key][0]}")
        raise ConfigError(f"{key} of {module.name}", found, f"1 to {LONGEST} bytes of JSON")
    state = QuantState.parse(module.read(key), kind)
    if (state.offset is not None) != nested:
        found = Described("no nested_offset" if nested else "a nested_offset")
        allowed = "one, since scales are nested" if nested else "none, since scales are not nested"
        raise ConfigError(f"{key} of {module.name}", found, allowed)
    told = f" for a weight of {state.shape}"
    codes, storage = module.stored["weight"]
    if storage not in STORAGE or len(codes) != 2 or codes[1] != 1:
        raise ConfigError(
            f"weight of {module.name}",
            Described(f"{storage} of shape {codes}"),
            "packed bytes of shape (n, 1)",
        )
    packer = FourBitPacker(kind, nested, state.block_size, storage)
    problem = packer.veto(state.shape)
    if problem:
        raise ConfigError(
            f"weight of {module.name}", Described(f"{storage}{told}"), f"another storage dtype ({problem})"
        )
    for field, (shape, dtype) in packer.stored(state.shape).items():
        if field != key:
            _expect(module, field, shape, dtype, f"{told} in blocks of {state.block_size}")
    return packer, state.shape
