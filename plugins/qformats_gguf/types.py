"""The tensor types of GGUF, as data: which bytes one block of each type is made of.

Adding a type is adding a row. A block's size is the sum of its fields, so layout and size cannot disagree.

Source: llama.cpp:ggml/src/ggml-common.h (blocks), ggml/include/ggml.h (ids) and
src/llama-model-loader.cpp (file types), at ggml-org/llama.cpp@0c1e570.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from qformats.errors import ConfigError, UnknownFormatError

__all__ = ["REMOVED", "TYPES", "Field", "GGMLType", "by_name", "row_bytes"]

_ITEM_BYTES = {
    "bfloat16": 2,
    "float16": 2,
    "float32": 4,
    "float64": 8,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "int8": 1,
    "uint16": 2,
    "uint8": 1,
}

_SCALES = ("d", "m", "dmin")
_HALF_FIRST = ("iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq3_s", "iq2_s")
"""Types with one opaque field that begins with a float16 scale."""

Field = tuple[str, str, int]
"""Name as in llama.cpp's structure, dtype (NumPy's name, or ``bfloat16``), count. Little-endian, unpadded."""


@dataclass(frozen=True)
class GGMLType:
    """One tensor type.

    Attributes
    ----------
    id : int
        Number stored in a tensor's entry of the header.
    name : str
        Lower-case name, as in ``--type``.
    block_size : int
        Elements in one block, along the contiguous dimension; blocks never cross a row.
    fields : tuple of Field
        What one block is made of, in byte order. Types that only gguf-py decodes have one opaque field.
    file_type : int or None
        ``general.file_type`` of a file whose weights are mostly of this type, as llama.cpp guesses it;
        ``None`` if there is no such number. Informational: the types of the tensors decide.
    in_files : bool
        False for types in which llama.cpp only keeps activations while it computes.
    """

    id: int
    name: str
    block_size: int
    fields: tuple[Field, ...]
    file_type: int | None = None
    in_files: bool = True

    @cached_property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return sum(_ITEM_BYTES[dtype] * count for _, dtype, count in self.fields)

    @cached_property
    def scales(self) -> tuple[tuple[int, str], ...]:
        """Where the scale and the minimum of a block begin, and their short dtypes; empty if they are not floats."""
        if self.name in _HALF_FIRST:
            return ((0, "f16"),)
        starts = accumulate((_ITEM_BYTES[dtype] * count for _, dtype, count in self.fields), initial=0)
        named = zip(self.fields, starts, strict=False)
        short = {"float16": "f16", "float32": "f32"}
        return tuple(
            (at, short[dtype]) for (name, dtype, _), at in named if name in _SCALES and dtype in short
        )

    @property
    def bits_per_weight(self) -> float:
        """Bits per element, including scales."""
        return 8 * self.block_bytes / self.block_size


def _plain(dtype: str) -> tuple[Field, ...]:
    return (("values", dtype, 1),)


def _opaque(size: int) -> tuple[Field, ...]:
    return (("block", "uint8", size),)


_D: Field = ("d", "float16", 1)
_M: Field = ("m", "float16", 1)
_DMIN: Field = ("dmin", "float16", 1)


def _u8(name: str, count: int) -> Field:
    return (name, "uint8", count)


_TABLE = (
    GGMLType(0, "f32", 1, _plain("float32"), 0),
    GGMLType(1, "f16", 1, _plain("float16"), 1),
    GGMLType(2, "q4_0", 32, (_D, _u8("qs", 16)), 2),
    GGMLType(3, "q4_1", 32, (_D, _M, _u8("qs", 16)), 3),
    GGMLType(6, "q5_0", 32, (_D, _u8("qh", 4), _u8("qs", 16)), 8),
    GGMLType(7, "q5_1", 32, (_D, _M, _u8("qh", 4), _u8("qs", 16)), 9),
    GGMLType(8, "q8_0", 32, (_D, ("qs", "int8", 32)), 7),
    # gguf-py 0.19 says 40 bytes, from the time when d and s were float32.
    GGMLType(9, "q8_1", 32, (_D, ("s", "float16", 1), ("qs", "int8", 32)), in_files=False),
    GGMLType(10, "q2_k", 256, (_u8("scales", 16), _u8("qs", 64), _D, _DMIN), 10),
    GGMLType(11, "q3_k", 256, (_u8("hmask", 32), _u8("qs", 64), _u8("scales", 12), _D), 12),
    GGMLType(12, "q4_k", 256, (_D, _DMIN, _u8("scales", 12), _u8("qs", 128)), 15),
    GGMLType(13, "q5_k", 256, (_D, _DMIN, _u8("scales", 12), _u8("qh", 32), _u8("qs", 128)), 17),
    GGMLType(14, "q6_k", 256, (_u8("ql", 128), _u8("qh", 64), ("scales", "int8", 16), _D), 18),
    GGMLType(
        15,
        "q8_k",
        256,
        (("d", "float32", 1), ("qs", "int8", 256), ("bsums", "int16", 16)),
        in_files=False,
    ),
    GGMLType(16, "iq2_xxs", 256, _opaque(66), 19),
    GGMLType(17, "iq2_xs", 256, _opaque(74), 20),
    GGMLType(18, "iq3_xxs", 256, _opaque(98), 23),
    GGMLType(19, "iq1_s", 256, _opaque(50), 24),
    GGMLType(20, "iq4_nl", 32, (_D, _u8("qs", 16)), 25),
    GGMLType(21, "iq3_s", 256, _opaque(110), 26),
    GGMLType(22, "iq2_s", 256, _opaque(82), 28),
    GGMLType(23, "iq4_xs", 256, (_D, ("scales_h", "uint16", 1), _u8("scales_l", 4), _u8("qs", 128)), 30),
    GGMLType(24, "i8", 1, _plain("int8")),
    GGMLType(25, "i16", 1, _plain("int16")),
    GGMLType(26, "i32", 1, _plain("int32")),
    GGMLType(27, "i64", 1, _plain("int64")),
    GGMLType(28, "f64", 1, _plain("float64")),
    GGMLType(29, "iq1_m", 256, _opaque(56), 31),
    GGMLType(30, "bf16", 1, _plain("bfloat16"), 32),
    GGMLType(34, "tq1_0", 256, (_u8("qs", 48), _u8("qh", 4), _D), 36),
    GGMLType(35, "tq2_0", 256, (_u8("qs", 64), _D), 37),
    GGMLType(39, "mxfp4", 32, (_u8("e", 1), _u8("qs", 16)), 38),
    GGMLType(40, "nvfp4", 64, (_u8("d", 4), _u8("qs", 32)), 39),
    GGMLType(41, "q1_0", 128, (_D, _u8("qs", 16)), 40),
    GGMLType(42, "q2_0", 64, (_D, _u8("qs", 16)), 41),
)

TYPES: dict[int, GGMLType] = {row.id: row for row in _TABLE}
"""Every type by its id."""

REMOVED: dict[int, str] = {
    4: "q4_2",
    5: "q4_3",
    31: "q4_0_4_4",
    32: "q4_0_4_8",
    33: "q4_0_8_8",
    36: "iq4_nl_4_4",
    37: "iq4_nl_4_8",
    38: "iq4_nl_8_8",
}
"""Ids that old files used and whose data no current reader decodes."""

_BY_NAME = {row.name: row for row in _TABLE}


def by_name(name: str) -> GGMLType:
    """Type of this name, in any case.

    Raises
    ------
    UnknownFormatError
        If there is none; the message names the closest.
    """
    try:
        return _BY_NAME[name.lower()]
    except KeyError:
        raise UnknownFormatError(name, _BY_NAME, kind="GGUF tensor type") from None


def row_bytes(type: GGMLType, k: int) -> int:
    """Bytes of one row of `k` elements.

    Raises
    ------
    ConfigError
        If `k` is not a multiple of the type's block.
    """
    if k < 0 or k % type.block_size:
        raise ConfigError(
            f"row length for {type.name}",
            k,
            f"a multiple of {type.block_size}",
            "use a type with a smaller block for this tensor (q8_0 and q4_0 have 32, f16 has 1)",
        )
    return k // type.block_size * type.block_bytes
