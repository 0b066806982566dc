"""Codes and scales to GGUF blocks and back, for the processor: bytes move, no number is rounded.

Layouts as in :mod:`qformats_gguf.kernels`. This module imports numba. Import it inside functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformats.errors import ShapeError
from qformats.kernels import cpu, lanes
from qformats.kernels.lanes import I64, Lanes
from qformats_gguf.kernels import BLOCK, LAYOUTS, BlockLayout

__all__ = ["pack", "unpack"]

_I8, _I16, _I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
_ORDER = tuple(LAYOUTS.values())


def _emit_pack(builder: Any, kind: BlockLayout, codes: Any, block: Any) -> None:
    values = lanes.load(builder, codes, 0, _I8, BLOCK)
    if kind.bits == 8:
        lanes.store(values ^ 0x80, block, kind.codes_at)
        return
    if kind.fifth:
        lanes.store((values & 16).eq(16).mask(), block, kind.codes_at - 4)
    low, high = values.part(0, 16), values.part(16, 16)
    lanes.store((low & 15) | (high << 4), block, kind.codes_at)


def _emit_unpack(builder: Any, kind: BlockLayout, block: Any, codes: Any) -> None:
    if kind.bits == 8:
        lanes.store(lanes.load(builder, block, kind.codes_at, _I8, BLOCK) ^ 0x80, codes, 0)
        return
    packed = lanes.load(builder, block, kind.codes_at, _I8, 16)
    values = (packed & 15).then(packed >> 4)
    if kind.fifth:
        word = lanes.load(builder, block, kind.codes_at - 4, _I32)
        values = values | (word.as_type(ir.VectorType(ir.IntType(1), BLOCK)).resize(8) << 4)
    lanes.store(values, codes, 0)


def _typer(
    typingctx: Any,
    number: Any,
    packing: Any,
    stamp: Any,
    codes: Any,
    scale: Any,
    minimum: Any,
    blocks: Any,
    count: Any,
) -> Any:
    kind, to_blocks = _ORDER[number.literal_value], bool(packing.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, _, codes_at, scale_at, minimum_at, blocks_at, total = args
        with cgutils.for_range(builder, total) as loop:

            def at(base: Any, stride: int) -> Any:
                return builder.add(base, builder.mul(loop.index, I64(stride)))

            block, row = at(blocks_at, kind.size), at(codes_at, BLOCK)
            halves = [(at(scale_at, 2), 0)] + ([(at(minimum_at, 2), 2)] if kind.minimum else [])
            for place, offset in halves:
                if to_blocks:
                    lanes.store(lanes.load(builder, place, 0, _I16), block, offset)
                else:
                    lanes.store(lanes.load(builder, block, offset, _I16), place, 0)
            (_emit_pack if to_blocks else _emit_unpack)(
                builder, kind, *((row, block) if to_blocks else (block, row))
            )
        return Lanes(builder, total).value

    return types.int64(number, packing, stamp, *(types.int64,) * 5), codegen


_recode: Any = intrinsic(prefer_literal=True)(_typer)


@functools.cache
def _kernel(number: int, packing: int) -> Callable[[int, int, int, int, int], int]:
    stamp = cpu.source_stamp()

    @cpu.jit()
    def recode_blocks(codes: int, scale: int, minimum: int, blocks: int, count: int) -> Any:
        return _recode(number, packing, stamp, codes, scale, minimum, blocks, count)

    return recode_blocks


def _run(
    type_name: str,
    packing: int,
    codes: NDArray[np.uint8],
    scale: NDArray[np.uint16],
    minimum: NDArray[np.uint16] | None,
    blocks: NDArray[np.uint8],
) -> None:
    kind = LAYOUTS[type_name]
    rows, columns = codes.shape
    count = columns // BLOCK
    halves = [scale] + ([minimum] if minimum is not None else [])
    shapes: list[tuple[NDArray[Any], tuple[int, int]]]
    shapes = [(codes, (rows, count * BLOCK)), (blocks, (rows, count * kind.size))]
    shapes += [(half, (rows, count)) for half in halves]
    for array, shape in shapes:
        if array.shape != shape or not array.flags.c_contiguous:
            raise ShapeError(f"a part of {type_name}", array.shape, f"{shape}, C-contiguous")
    if kind.minimum != (minimum is not None):
        raise ShapeError(f"minimum of {type_name}", None, "one value a block" if kind.minimum else "none")
    second = 0 if minimum is None else cpu.address(minimum)
    places = (cpu.address(codes), cpu.address(scale), second, cpu.address(blocks))
    _kernel(list(LAYOUTS).index(type_name), packing)(*places, rows * count)


def pack(
    type_name: str,
    codes: NDArray[np.uint8],
    scale: NDArray[np.uint16],
    minimum: NDArray[np.uint16] | None,
    out: NDArray[np.uint8],
) -> None:
    """Codes and scales to blocks.

    Parameters
    ----------
    type_name : str
        ``q4_0``, ``q4_1``, ``q5_0``, ``q5_1`` or ``q8_0``.
    codes : ndarray
        ``(rows, K)``, unsigned; those of q8_0 are 128 more than what is stored.
    scale, minimum : ndarray
        fp16 bits, ``(rows, K / 32)``.
    out : ndarray
        ``(rows, K / 32 * TYPES[type_name])``; overwritten.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or are not C-contiguous.
    """
    _run(type_name, 1, codes, scale, minimum, out)


def unpack(
    type_name: str,
    packed: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    scale: NDArray[np.uint16],
    minimum: NDArray[np.uint16] | None,
) -> None:
    """Blocks to codes and scales, the inverse of :func:`pack`; all but `packed` are overwritten.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or are not C-contiguous.
    """
    _run(type_name, 0, codes, scale, minimum, packed)
