"""Whether the sub-blocks of a block can share a float16: arithmetic on values and codes, nothing is rounded.

A sub-block may be written with several scales: its step times a whole number, or a fraction of it where not all codes
are used. Here the choices of all sub-blocks of a block are made together. This module imports numba. Import it inside
functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import float32, float64, int8, int64, uint8
from numpy.typing import NDArray

from qformats.kernels import cpu
from qformats_gguf.superblocks.layout import SuperLayout

__all__ = ["join_affine", "join_levels"]


@cpu.jit()
def _half(value: Any) -> Any:
    """Bits of the float16 that is this number, or -1."""
    narrow = float32(value)
    if float64(narrow) != value or cpu.is_infinite(narrow):
        return -1
    bits = cpu.f32_to_f16(narrow)
    wide = cpu.f16_to_f32(bits)
    return int64(bits) if wide == narrow and not cpu.is_infinite(wide) else -1


@cpu.jit()
def _levels_under(values: Any, d: Any, low: Any, high: Any, levels: Any, codes: Any) -> Any:
    """The whole number that gives all values of a sub-block with `d`, and their codes; 0 for zeros, else -999."""
    largest = float64(0)
    for i in range(values.size):
        largest = max(largest, abs(float64(values[i])))
    zero: Any = 0
    for k in range(levels.size):
        if abs(levels[k]) < abs(levels[zero]):
            zero = k
    if largest == 0 and levels[zero] == 0:
        codes[:] = uint8(zero)
        return 0
    for step in range(2 * max(-low, high)):
        size = max(-low, high) - step // 2
        whole = size if step % 2 == 0 else -size
        if whole < low or whole > high or size == 0:
            continue
        fits = True
        for i in range(values.size):
            level = float64(values[i]) / (d * float64(whole))
            place = np.searchsorted(levels, level)
            if place >= levels.size or levels[place] * d * float64(whole) != float64(values[i]):
                fits = False
                break
            codes[i] = uint8(place)
        if fits:
            return whole
    if largest == 0:
        codes[:] = uint8(zero)
        return 0
    return -999


@cpu.jit()
def _join_levels(
    values: Any,
    sub: Any,
    products: Any,
    low: Any,
    high: Any,
    levels: Any,
    codes: Any,
    halves: Any,
    wholes: Any,
) -> Any:
    for number in range(values.shape[0]):
        row = values[number]
        largest = float64(0)
        for i in range(row.size):
            largest = max(largest, abs(float64(row[i])))
        found = False
        for k in range(2 * products.size if largest else 1):
            bits = int64(0)
            if largest:
                d = largest / products[k // 2]
                bits = _half(d if k % 2 == 0 else -d)
                if bits < 0:
                    continue
            d = float64(cpu.f16_to_f32(bits)) if largest else float64(1)
            found = True
            for j in range(row.size // sub):
                part = slice(j * sub, (j + 1) * sub)
                whole = _levels_under(row[part], d, low, high, levels, codes[number, part])
                if whole == -999:
                    found = False
                    break
                wholes[number, j] = int8(whole)
            if found:
                halves[number] = bits
                break
        if not found:
            return number
    return -1


def join_levels(
    kind: SuperLayout, values: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.int8]] | None:
    """Codes and scales of a type without minima that give exactly these values.

    The largest magnitude of a block is a float16 times a whole number times a level: every product of the latter two
    is tried, so that what is not found does not exist.

    Parameters
    ----------
    kind : SuperLayout
        The type.
    values : ndarray
        float32 ``(blocks, elements of a block)``, finite.

    Returns
    -------
    tuple of ndarray, or None
        Codes, bits of float16 scales ``(blocks,)``, and whole numbers; ``None`` if a block has none.
    """
    levels = np.array(kind.table or np.arange(1 << kind.bits) - kind.zero, np.float64)
    sizes = np.arange(1, max(-kind.lowest, kind.highest) + 1)
    products = np.unique(np.abs(np.outer(sizes, levels[levels != 0])))[::-1].copy()
    codes = np.zeros(values.shape, np.uint8)
    halves, wholes = np.zeros(len(values), np.uint16), np.zeros((len(values), kind.scales), np.int8)
    source = cpu.for_reading(np.ascontiguousarray(values, np.float32))
    failed = _join_levels(
        source, kind.sub, products, kind.lowest, kind.highest, levels, codes, halves, wholes
    )
    return None if int(failed) >= 0 else (codes, halves, wholes)


@cpu.jit()
def _common(step: Any, d: Any, most: Any, top: Any) -> Any:
    """Smallest number of parts of a step, at most `most`, of which one is `d` times a whole number up to `top`."""
    count = step / d
    if count != np.rint(count) or count > float64(most * top) or count < 1:
        return 0
    for parts in range(1, most + 1):
        if int64(count) % parts == 0 and int64(count) // parts <= top:
            return parts
    return 0


@cpu.jit()
def _join_affine(
    codes: Any, scale: Any, minimum: Any, sub: Any, top: Any, high: Any, halves: Any, wholes: Any, minima: Any
) -> Any:
    """Rewrite codes; give the first block that has no common scales, or -1."""
    per_block = scale.shape[1]
    step, least, span = np.empty(per_block), np.empty(per_block), np.empty(per_block, np.int64)
    divisor, parts = np.empty(per_block, np.int64), np.empty(per_block, np.int64)
    first, shift = np.empty(per_block, np.int64), np.empty(per_block, np.int64)
    for number in range(codes.shape[0]):
        largest = float64(0)
        for j in range(per_block):
            part = codes[number, j * sub : (j + 1) * sub]
            low, end = int64(part[0]), int64(part[0])
            for i in range(part.size):
                low, end = min(low, int64(part[i])), max(end, int64(part[i]))
            common = int64(0)
            for i in range(part.size):
                a, b = common, int64(part[i]) - low
                while b:
                    a, b = b, a % b
                common = a
            s = float64(scale[number, j])
            # Under a negative scale the largest code has the smallest value.
            first[j] = low if s >= 0 else end
            divisor[j] = max(common, 1)
            span[j] = (end - low) // divisor[j]
            step[j] = abs(s) * float64(divisor[j]) if span[j] else float64(0)
            least[j] = float64(minimum[number, j]) + s * float64(first[j])
            largest = max(largest, step[j])
        # The scale: a common divisor of the steps, or of fractions of them.
        found = largest == 0
        halves[number, 0] = 0
        wholes[number, :] = int8(0)
        for product in range(1, high * top + 1):
            if found:
                break
            bits = _half(largest / float64(product))
            if bits < 0:
                continue
            d = float64(cpu.f16_to_f32(bits))
            found = d > 0
            for j in range(per_block):
                if not found:
                    break
                if step[j]:
                    parts[j] = _common(step[j], d, top // span[j], high)
                    found = parts[j] > 0
            if found:
                halves[number, 0] = bits
                for j in range(per_block):
                    if step[j]:
                        wholes[number, j] = int8(np.rint(step[j] / d / float64(parts[j])))
        if not found:
            return number
        # The minima: each may be lower by some steps, as far as there are codes left.
        found = True
        reference = -1
        for j in range(per_block):
            if least[j] != 0 and (reference < 0 or abs(least[j]) > abs(least[reference])):
                reference = j
        halves[number, 1] = 0
        minima[number, :] = int8(0)
        shift[:] = 0
        if reference >= 0:
            found = False
            room = top - span[reference] * parts[reference] if step[reference] else 0
            for down in range(room + 1):
                unit = step[reference] / float64(parts[reference]) if step[reference] else float64(0)
                base = least[reference] - float64(down) * unit
                for whole in range(high, 0, -1):
                    if found or base == 0:
                        break
                    bits = _half(-base / float64(whole))
                    if bits < 0:
                        continue
                    d = float64(cpu.f16_to_f32(bits))
                    found = d != 0
                    for j in range(per_block):
                        if not found:
                            break
                        unit_j = step[j] / float64(parts[j]) if step[j] else float64(0)
                        room_j = top - span[j] * parts[j] if step[j] else 0
                        fits = False
                        for t in range(room_j + 1):
                            count = (float64(t) * unit_j - least[j]) / d
                            if count == np.rint(count) and 0 <= count <= high:
                                shift[j], minima[number, j] = t, int8(count)
                                fits = True
                                break
                        found = fits
                    if found:
                        halves[number, 1] = bits
                if found:
                    break
        if not found:
            return number
        for j in range(per_block):
            part = codes[number, j * sub : (j + 1) * sub]
            for i in range(part.size):
                if step[j]:
                    level = abs(int64(part[i]) - first[j]) // divisor[j] * parts[j] + shift[j]
                    part[i] = uint8(level)
                else:
                    part[i] = uint8(0)
    return -1


def join_affine(
    kind: SuperLayout,
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32],
    minimum: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.int8], NDArray[np.int8]] | None:
    """Codes, scales and minima of a type with minima for the same numbers ``scale * code + minimum``.

    Steps are multiplied and divided as codes allow, minima moved by whole steps; both in real numbers, so that the sums
    round as before. Representations of which only the rounded sums are the same are not looked for.

    Parameters
    ----------
    kind : SuperLayout
        The type.
    codes : ndarray
        uint8 ``(blocks, elements of a block)``, on the type's levels. Not modified.
    scale, minimum : ndarray
        float32 ``(blocks, scales of a block)``.

    Returns
    -------
    tuple of ndarray, or None
        Codes, bits of float16 scales ``(blocks, 2)``, and whole numbers of scales and of minima; ``None`` if a block
        has none.
    """
    moved = np.array(codes, np.uint8, order="C")
    halves = np.zeros((len(codes), 2), np.uint16)
    wholes, minima = (np.zeros((len(codes), kind.scales), np.int8) for _ in range(2))
    given = (cpu.for_reading(np.ascontiguousarray(part, np.float32)) for part in (scale, minimum))
    top = (1 << kind.bits) - 1
    failed = _join_affine(moved, *given, kind.sub, top, kind.highest, halves, wholes, minima)
    return None if int(failed) >= 0 else (moved, halves, wholes, minima)
