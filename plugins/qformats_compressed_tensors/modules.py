"""What the stored tensors of a module tell: layout, shape, width and groups.

A module is quantized if its fields are there, whatever is declared; what is declared decides where shapes leave a
choice.
"""

from __future__ import annotations

import struct

from qformats import Packer
from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_compressed_tensors.floats import STRATEGIES, FloatPacker
from qformats_compressed_tensors.integers import BITS, BytePacker, OrderedPacker, PackedPacker, older_words
from qformats_compressed_tensors.microscaling import MicroscalingPacker
from qformats_compressed_tensors.nvfp4 import NvidiaPacker
from qformats_compressed_tensors.scheme import Declared, Scheme

__all__ = ["FIELDS", "examine"]

FIELDS = (
    *("weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    "weight_global_scale",
)
"""Names of all layouts."""
_SCALES = ("f16", "bf16", "f32")
_INSTEAD = "use the model before it was quantized"


def examine(module: ModuleFields, declared: Declared) -> tuple[Packer, tuple[int, int]] | None:
    """Format and shape of the weight of a module; ``None`` if it is plain.

    Raises
    ------
    ConfigError
        If fields are missing or contradict each other, or are of a layout that is not read.
    """
    stored, scheme = module.stored, declared.scheme(module.name)
    if "weight_packed" in stored:
        return _packed(module, scheme, declared.version)
    weight = stored.get("weight")
    if weight is not None and weight[1] == "i8":
        return _bytes(module, scheme)
    if weight is not None and weight[1] == "f8_e4m3" and len(weight[0]) == 2 and "weight_scale" in stored:
        return _floats(module, scheme)
    if weight is None and len(stored) > 0:
        found = Described("only " + ", ".join(sorted(stored)))
        raise ConfigError(f"fields of {module.name}", found, "weight_packed or weight as well")
    if "weight_scale" in stored:
        found = Described(f"a weight_scale beside a weight of {weight[1] if weight else 'no dtype'}")
        raise ConfigError(f"fields of {module.name}", found, "a scale for codes only", _INSTEAD)
    return None


def _packed(module: ModuleFields, scheme: Scheme | None, version: str) -> tuple[Packer, tuple[int, int]]:
    stored = module.stored
    words, kind = stored["weight_packed"]
    if kind == "u8":
        return _floats4(module)
    _need(module, ("weight_packed", "weight_scale", "weight_shape"))
    if kind != "i32" or len(words) != 2 or not all(words):
        allowed = "i32 of shape (N, words)"
        raise ConfigError(f"weight_packed of {module.name}", Described(f"{kind} of shape {words}"), allowed)
    shape = _shape(module)
    if shape[0] != words[0]:
        found = Described(f"{words[0]} rows")
        raise ConfigError(f"weight_packed of {module.name}", found, f"{shape[0]}, as weight_shape says")
    bits = _bits(module, shape[1], words[1], scheme, version)
    symmetric = "weight_zero_point" not in stored
    group, dtype = _groups(module, shape, scheme)
    if not symmetric:
        # Both streams are of one age.
        older = words[1] != -(-shape[1] * bits // 32)
        rows = older_words(shape[0], bits) if older else -(-shape[0] * bits // 32)
        found_zero, kind = stored["weight_zero_point"]
        groups = stored["weight_scale"][0][1]
        if kind != "i32" or found_zero != (rows, groups):
            expected = f"i32 of shape ({rows}, {groups})"
            found = Described(f"{kind} of shape {found_zero}")
            raise ConfigError(f"weight_zero_point of {module.name}", found, expected)
    if "weight_g_idx" in stored:
        order, kind = stored["weight_g_idx"]
        if order != (shape[1],) or kind not in ("i32", "i64"):
            expected = f"i32 of shape ({shape[1]},)"
            found = Described(f"{kind} of shape {order}")
            raise ConfigError(f"weight_g_idx of {module.name}", found, expected)
        if not _in_order(module, group or shape[1]):
            return OrderedPacker(bits, group, symmetric, dtype), shape
    return PackedPacker(bits, group, symmetric, dtype), shape


def _floats4(module: ModuleFields) -> tuple[Packer, tuple[int, int]]:
    _need(module, ("weight_packed", "weight_scale"))
    words, _ = module.stored["weight_packed"]
    whole = module.stored.get("weight_global_scale")
    packer = MicroscalingPacker() if whole is None else NvidiaPacker()
    block, kinds = (32, ("u8", "f8_e8m0")) if whole is None else (16, ("f8_e4m3",))
    shape = (words[0], 2 * words[1]) if len(words) == 2 else (0, 0)
    wanted = (shape[0], shape[1] // block)
    scales, kind = module.stored["weight_scale"]
    if not all(shape) or packer.veto(shape) or scales != wanted or kind not in kinds:
        found = Described(f"{kind} of shape {scales} beside weight_packed of shape {words}")
        expected = f"{kinds[0]}, one for each {block} columns"
        raise ConfigError(f"weight_scale of {module.name}", found, expected, _INSTEAD)
    if whole is not None and (whole[0] not in ((), (1,)) or whole[1] not in _SCALES):
        found = Described(f"{whole[1]} of shape {whole[0]}")
        raise ConfigError(f"weight_global_scale of {module.name}", found, "f32 of shape (1,)", _INSTEAD)
    return packer, shape


def _bytes(module: ModuleFields, scheme: Scheme | None) -> tuple[Packer, tuple[int, int]]:
    stored = module.stored
    _need(module, ("weight", "weight_scale"))
    found_shape, _ = stored["weight"]
    if len(found_shape) != 2 or not all(found_shape):
        raise ConfigError(f"weight of {module.name}", Described(f"shape {found_shape}"), "(N, K)")
    shape = (found_shape[0], found_shape[1])
    group, dtype = _groups(module, shape, scheme)
    symmetric = "weight_zero_point" not in stored
    if not symmetric:
        zero, kind = stored["weight_zero_point"]
        if kind != "i8" or zero != stored["weight_scale"][0]:
            expected = f"i8 of shape {stored['weight_scale'][0]}"
            found = Described(f"{kind} of shape {zero}")
            raise ConfigError(f"weight_zero_point of {module.name}", found, expected)
    return BytePacker(group, symmetric, dtype), shape


def _floats(module: ModuleFields, scheme: Scheme | None) -> tuple[Packer, tuple[int, int]]:
    (rows, columns), _ = module.stored["weight"]
    found, dtype = module.stored["weight_scale"]
    if dtype not in _SCALES or not rows or not columns:
        expected = f"{' or '.join(_SCALES)}, for a weight that is not empty"
        raise ConfigError(f"weight_scale of {module.name}", Described(f"{dtype} of shape {found}"), expected)
    if "weight_zero_point" in module.stored:
        found_zero = Described("a zero point")
        raise ConfigError(f"weight_zero_point of {module.name}", found_zero, "none, beside floats", _INSTEAD)
    height, width = scheme.block if scheme is not None and scheme.block else STRATEGIES["block"]
    blocks = (-(-rows // height), -(-columns // width))
    # A matrix of one block, or of one row, has scales of the same shape under several strategies: the declared counts.
    shapes = {"block": (blocks,), "tensor": ((), (1,), (1, 1)), "channel": ((rows, 1), (rows,))}
    if scheme is None or not scheme.block:
        shapes = {name: shapes[name] for name in ("tensor", "channel", "block")}
    for strategy, fits in shapes.items():
        if found in fits:
            if strategy == "block" and (height, width) != STRATEGIES["block"]:
                told = Described(f"blocks of {height} x {width}")
                raise ConfigError(f"weight_scale of {module.name}", told, "blocks of 128 x 128", _INSTEAD)
            return FloatPacker(strategy, dtype), (rows, columns)
    expected = f"one scale, ({rows}, 1) or {blocks} for a weight of ({rows}, {columns})"
    raise ConfigError(f"weight_scale of {module.name}", Described(f"shape {found}"), expected)


def _need(module: ModuleFields, fields: tuple[str, ...]) -> None:
    missing = [field for field in fields if field not in module.stored]
    if missing:
        raise ConfigError(f"fields of {module.name}", sorted(module.stored), "also " + ", ".join(missing))


def _shape(module: ModuleFields) -> tuple[int, int]:
    """``(N, K)`` of ``weight_shape``."""
    found, kind = module.stored["weight_shape"]
    if found != (2,) or kind not in ("i64", "i32"):
        allowed = "i64 of shape (2,)"
        raise ConfigError(f"weight_shape of {module.name}", Described(f"{kind} of shape {found}"), allowed)
    rows, columns = struct.unpack("<2q" if kind == "i64" else "<2i", module.read("weight_shape"))
    if not (0 < rows < 1 << 31 and 0 < columns < 1 << 31):
        raise ConfigError(f"weight_shape of {module.name}", (rows, columns), "two positive whole numbers")
    return rows, columns


def _bits(module: ModuleFields, columns: int, words: int, scheme: Scheme | None, version: str) -> int:
    """Width of a code: the declared one if that many words hold the columns, or the only one that fits."""
    wanted = scheme.bits if scheme is not None and scheme.kind == "int" else None
    dense = [bits for bits in BITS if -(-columns * bits // 32) == words]
    older = [bits for bits in BITS if 32 % bits and older_words(columns, bits) == words]
    fits = [*dense, *(bits for bits in older if bits not in dense)]
    if wanted in fits or len(fits) == 1:
        bits = wanted if wanted in fits else fits[0]
        assert bits is not None
        if bits in dense and bits in older and columns * bits > 32:
            # Both layouts take as many words: nothing tells them apart.
            found = Described(f"{columns} columns of {bits} bits in {words} words, as two layouts have it")
            raise ConfigError(f"weight_packed of {module.name}", found, "a layout that shapes tell", _INSTEAD)
        return bits
    found = Described(f"{words} words for {columns} columns" + (f" of {wanted} bits" if wanted else ""))
    expected = f"as many as codes of {', '.join(map(str, BITS[:-1]))} or {BITS[-1]} bits take"
    raise ConfigError(f"weight_packed of {module.name}", found, expected)


def _groups(module: ModuleFields, shape: tuple[int, int], scheme: Scheme | None) -> tuple[int, str]:
    """Columns of a group (0 for the whole row), and the dtype of scales."""
    found, dtype = module.stored["weight_scale"]
    if dtype not in _SCALES:
        raise ConfigError(f"weight_scale of {module.name}", dtype, " or ".join(_SCALES))
    if found in ((), (1,), (1, 1)) or found in ((shape[0],), (shape[0], 1)):
        whole = scheme is not None and scheme.group_size == shape[1] and len(found) == 2
        return (shape[1] if whole else 0), dtype
    if len(found) != 2 or found[0] != shape[0] or not found[1] or shape[1] % found[1]:
        expected = f"({shape[0]}, groups that divide {shape[1]} columns)"
        raise ConfigError(f"weight_scale of {module.name}", Described(f"shape {found}"), expected)
    return shape[1] // found[1], dtype


def _in_order(module: ModuleFields, group: int) -> bool:
    import numpy as np

    _, kind = module.stored["weight_g_idx"]
    order = np.frombuffer(module.read("weight_g_idx"), "int32" if kind == "i32" else "int64")
    return bool((order == np.arange(len(order)) // group).all())
