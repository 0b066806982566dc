"""What folders declare: ``quantization_config`` of config.json, and quantize_config.json, which holds the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import qformats
from qformats.errors import ConfigError, Described
from qformats.interfaces import Values
from qformats_gptq.zeros import VERSIONS

__all__ = ["BITS", "Declared", "declared", "overridden", "overrides", "written"]

_BLOCK = re.compile(r"^.*?\.\d+\.")
"""What the name of a module in a block begins with."""
BITS = (2, 3, 4, 8)
"""Code widths of the family."""
_WIDEST = 2**31 - 1
"""Columns that a matrix can have."""
_HINTS = ("desc_act", "damp_percent", "true_sequential", "static_groups")
"""Keys that no other method has: files of the first versions do not name theirs."""
_PLAIN = ("bits", "group_size", "sym", "checkpoint_format", "format", "pack_dtype", "dataset", "tokenizer")
"""Keys of configurations that name no method; one with others (MLX's ``mode``, AWQ's ``zero_point``) is not GPTQ's."""
_METHODS = ("gptq", "marlin", "gptqmodel", "autogptq", "auto_gptq")
_WORDS = (
    "quant_method",
    "method",
    "checkpoint_format",
    "format",
    "packing_format",
    "backend",
    "data_type",
    "pack_dtype",
)
"""Keys whose values are words, which programs have written in capitals too, and as lists of one."""
_AUTO_ROUND = re.compile(r"(?:intel/)?auto[-_]round")
"""Writes several layouts, of which two are GPTQ's."""


@dataclass(frozen=True)
class Declared:
    """What a configuration says; ``None`` for what it does not.

    Attributes
    ----------
    bits : int or None
        Width of a code.
    group_size : int or None
        Columns of a group; 0 for the whole row.
    symmetric : bool or None
        Whether all zero points are the middle code.
    actorder : bool
        Whether columns were quantized in another order.
    version : str
        ``"gptq"`` or ``"gptq_v2"``, see :mod:`qformats_gptq.zeros`.
    inorder : bool
        Whether ``desc_act`` says that columns are in order; it may also say nothing.
    """

    bits: int | None
    group_size: int | None
    symmetric: bool | None
    actorder: bool
    version: str
    inorder: bool = False


def declared(config: Mapping[str, Any]) -> Declared | None:
    """Read a configuration; ``None`` if it is of another method.

    Raises
    ------
    ConfigError
        If a value is not possible, or stands for a layout that is not supported.
    """
    config = {**config, **{key: _word(config[key]) for key in _WORDS if key in config}}
    named = config.get("quant_method", config.get("method"))
    method = None if named is None else str(named)
    stored: str | None = None
    if method is None and not any(key in config for key in _HINTS):
        if not {"bits", "group_size"} <= config.keys() <= {*_PLAIN}:
            return None
    elif method is not None and _AUTO_ROUND.fullmatch(method):
        stored = _auto_round(config)
        if stored is None:
            return None
    elif method not in (None, *_METHODS):
        return None
    values = Values(config)
    stored = stored or values.text("checkpoint_format", values.text("format", "")) or "gptq"
    if method == "marlin" or config.get("is_marlin_format") is True:
        stored = "marlin"
    if stored not in VERSIONS:
        hint = "Save the model again in checkpoint_format gptq with the program that wrote it"
        raise ConfigError("checkpoint_format", stored, " or ".join(VERSIONS), hint)
    words = config.get("pack_dtype") or "int32"
    if str(words).removeprefix("torch.") != "int32":
        raise ConfigError("pack_dtype", words, "int32", "Save the model again with words of 32 bits")
    bits = _number(config, "bits", "w_bit")
    if bits is not None and bits not in BITS:
        raise ConfigError("bits", bits, "one of " + ", ".join(map(str, BITS)))
    group = _number(config, "group_size", "q_group_size")
    if group is not None and not -1 <= group <= _WIDEST:
        raise ConfigError("group_size", group, "-1 (the whole row) or the number of columns of a group")
    symmetric = values.flag("sym", None)
    # -1, 0 and the width of a row have all been written for one group a row; a row's width is settled by the shapes.
    size = None if group is None else max(group, 0)
    return Declared(
        bits, size, symmetric, config.get("desc_act") is True, stored, config.get("desc_act") is False
    )


def _word(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.strip().lower() if isinstance(value, str) else value


def _auto_round(config: Mapping[str, Any]) -> str | None:
    """How AutoRound has stored zero points, by the name of its layout; ``None`` if the layout is not GPTQ's.

    ``auto_round:auto_gptq`` takes 1 off as AutoGPTQ does, ``auto_round`` and ``auto_round:gptqmodel`` do not
    (auto_round/export in 0.16). Where all zero points are the middle code, the tensors decide in any case.
    """
    kind = config.get("data_type") or "int"
    if not str(kind).startswith("int"):
        raise ConfigError("data_type", kind, "int", "Use the model before it was quantized")
    layout = str(config.get("packing_format") or config.get("backend") or "")
    if not layout or re.search(r"auto_gptq|(?:^|:)gptq(?:$|:)", layout):
        if not layout and config.get("sym") is False:
            hint = 'say which with -O quantization-config=\'{"packing_format": "auto_round:auto_gptq"}\''
            found = Described("none, of an asymmetric model")
            raise ConfigError("packing_format", found, "auto_round or auto_round:auto_gptq", hint)
        return "gptq"
    own = re.fullmatch(
        r"auto_round(?::(?:auto_round|gptqmodel|(?:exllamav2|triton|marlin|cuda|ipex|hpu)\b.*))?", layout
    )
    return "gptq_v2" if own else None


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            # As some JSON writers put every number.
            return int(value)
        if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}", value, re.ASCII):
            return int(value)
        return Values(config).integer(key)
    return None


Kept = tuple[int, int | None, bool | None]
"""Width, columns of a group, and whether zero points are all the middle code."""


def overrides(config: Mapping[str, Any]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """Modules with a width or groups of their own: GPTQModel's ``dynamic``, and AutoRound's ``extra_config``.

    Raises
    ------
    ConfigError
        If a pattern is not a regular expression, or an entry is not an object.
    """
    found: list[tuple[str, Mapping[str, Any]]] = []
    for key in ("dynamic", "extra_config"):
        entries = config.get(key) or {}
        if not isinstance(entries, Mapping):
            raise ConfigError(key, entries, "an object, with a name or pattern for each entry")
        for name, own in entries.items():
            if str(name).startswith("-:"):
                continue
            pattern = str(name).removeprefix("+:")
            if not isinstance(own, Mapping):
                raise ConfigError(f"{key}.{name}", own, 'an object such as {"bits": 8}')
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(key, name, f"names or regular expressions ({error})") from error
            found.append((pattern, own))
    return tuple(found)


def overridden(entries: Sequence[tuple[str, Mapping[str, Any]]], module: str, usual: Kept) -> Kept:
    """What is declared of one module: of the entry with its name, or else the first whose pattern matches."""
    exact = [own for pattern, own in entries if pattern == module]
    found = exact or [own for pattern, own in entries if re.match(pattern, module)]
    if not found:
        return usual
    own, (bits, group, symmetric) = found[0], usual
    wide, size, sym = _number(own, "bits"), _number(own, "group_size"), own.get("sym")
    if wide is not None and wide not in BITS:
        # Left plain, as AutoRound says with 16 bits; the tensors tell.
        wide = None
    return (
        bits if wide is None else wide,
        group if size is None else max(size, 0),
        sym if isinstance(sym, bool) else symmetric,
    )


def written(own: Declared, dense_modules: Sequence[str], packed_modules: Sequence[str]) -> dict[str, Any]:
    """``quantization_config`` of a folder, in both spellings that programs look for.

    Parameters
    ----------
    own : Declared
        What is stored.
    dense_modules : sequence of str
        Linear modules that are left plain. The head is by default; others are listed for GPTQModel.
    packed_modules : sequence of str
        Modules that are quantized, the head included. If others in their blocks are not, they are listed for
        Transformers, which takes every linear module of a block for quantized otherwise.
    """
    config: dict[str, Any] = {
        "bits": own.bits,
        "group_size": own.group_size or -1,
        "desc_act": own.actorder,
        "static_groups": False,
        "sym": own.symmetric,
        "lm_head": "lm_head" in packed_modules,
        "quant_method": "gptq",
        "method": "gptq",
        "checkpoint_format": own.version,
        "format": own.version,
        "pack_dtype": "int32",
        "meta": {"quantizer": [f"qformats:{qformats.__version__}"]},
    }
    skipped = [name for name in dense_modules if name != "lm_head"]
    if skipped:
        config["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in skipped}
        config["modules_in_block_to_quantize"] = [_in_blocks(packed_modules, skipped)]
    return config


def _in_blocks(packed: Sequence[str], dense: Sequence[str]) -> list[str]:
    """Names by which Transformers tells quantized modules, as ends of their names.

    Names within a block serve all blocks; if a plain module ends like one of them, whole names are needed.
    """
    packed = [name for name in packed if _BLOCK.match(name)]
    short = list(dict.fromkeys(_BLOCK.sub("", name, count=1) for name in packed))
    return list(packed) if any(name.endswith(tuple(short)) for name in dense) else short
