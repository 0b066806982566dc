"""The one device layout: a weight of any format, rearranged without loss for the shared kernels.

Columns run in *strips* of 32. A code of `bits` bits is a sum of planes of 8, 4, 2 and 1 bits (5 = 4 + 1). A plane
of `b` bits packs the codes of ``16 / b`` consecutive strips into one strip of 32 int16 words: column ``32 s + w`` lies
in word ``w`` of packed strip ``s // (16 / b)``, at bit ``b * (s % (16 / b))``. Packed strips of all rows lie together,
``(packed strips, N, 32)``: what a program reads is contiguous, two neighbouring words hold neighbouring columns (which
a 16-bit pair instruction decodes at once), and every strip meets a contiguous strip of activations.

Codes of a table lie in another order within two neighbouring words, the one in which byte permutes look them up; see
:func:`~qformats.kernels.words.pair_nibbles`. Floats are their own codes, with the bits of a word in another order:
:func:`~qformats.kernels.words.mix_floats`.
Scales, zero points and minima lie as ``(groups, N)``; one of several rows is repeated for each. Where scales are
products of an outer scale and a small number (:class:`~qformats.numbers.NestedScales`), these stay apart: outer ones as
``(outers, N)``, and small ones as bytes, four groups to an int32 of ``(groups / 4, N)``. The small ones are whole
numbers, floats in E4M3, or powers of two.
Columns are padded until the last packed strip of every plane is full, and to a multiple of 128.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described
from qformats.kernels.codebook import ENTRIES, canonical_codes, canonical_levels, make_codebook
from qformats.kernels.factors import FACTORED, factor_words, multiplied, small_floats, stay_apart
from qformats.kernels.form import (
    AFFINE,
    FLOAT,
    LIFTED,
    MINIMUM,
    PLANES,
    TABLE,
    DeviceForm,
    DeviceWeight,
    padded_columns,
)
from qformats.kernels.words import codes_of_plane, mix_floats, pair_nibbles, plane_of
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.float4 import E2M1, Float4Grid, is_e2m1
from qformats.numbers.float8 import E4M3, Float8Grid, is_e4m3
from qformats.numbers.quantized import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["arrange", "codes_of", "restore", "uncovered"]


def _width(quantized: QuantizedTensor, bits: int | None) -> tuple[int, int]:
    """Width of a code, and what must be added so that no code is negative."""
    low, high = (
        (int(quantized.codes.min()), int(quantized.codes.max())) if quantized.codes.numel() else (0, 0)
    )
    if bits is None:
        bits = next(width for width in (*PLANES, 16) if max(high - min(low, 0), -2 * low) < 1 << width)
    lift = 1 << (bits - 1) if low < 0 else 0
    return bits, lift


def uncovered(quantized: QuantizedTensor, bits: int | None = None) -> str | None:
    """Why the shared kernels do not support a tensor, in words that follow "because"; None if they do.

    Parameters
    ----------
    quantized : QuantizedTensor
        Any canonical tensor.
    bits : int, optional
        Width of its codes; found from the codes by default.
    """
    import torch

    rows, columns = quantized.shape
    block_rows, block = quantized.block_size
    if not rows or not columns:
        return f"the weight of shape {quantized.shape} is empty"
    if block_rows == 0 and columns % block:
        return f"blocks of {block} straddle rows of {columns} columns"
    if block_rows > 1 and quantized.g_idx is not None:
        return f"a block spans {block_rows} rows of columns in another order"
    group = min(block, columns)
    if group < 8 and group < columns:
        return f"blocks of {block} columns are shorter than 8"
    width, lift = _width(quantized, bits)
    if width not in PLANES:
        return f"codes of {width} bits are not 1, 2, 3, 4, 5, 6 or 8 bits wide"
    low, high = int(quantized.codes.min()) + lift, int(quantized.codes.max()) + lift
    if low < 0 or high >= 1 << width:
        return f"codes run from {low - lift} to {high - lift}, which {width} bits cannot hold"
    if quantized.codebook is not None:
        if width > 4 and not is_e4m3(quantized.codebook):
            return f"a table of {1 << width} levels is larger than 16"
        if quantized.minimum is not None:
            return "it has a table and a minimum"
    if quantized.scale.dtype not in (torch.float16, torch.float32):
        return f"scales are {quantized.scale.dtype}"
    zero = quantized.zero_point
    if isinstance(zero, torch.Tensor):
        if quantized.minimum is not None:
            return "it has zero points and minima"
        if bool((zero != zero.round() if zero.is_floating_point() else zero != zero).any()):
            return "its zero points are not whole numbers"
        least, most = float(zero.min()), float(zero.max())
    elif not float(zero).is_integer():
        return f"the zero point {zero} is not a whole number"
    else:
        least = most = float(zero)
    # As far as the kernels' decode is exact.
    if least + lift < -(1 << width) or most + lift > 1 << width:
        return f"zero points from {least:g} to {most:g} are too far from codes of {width} bits"
    if quantized.minimum is not None and quantized.minimum.dtype not in (torch.float16, torch.float32):
        return f"minima are {quantized.minimum.dtype}"
    return None if quantized.g_idx is None else _order_problem(quantized.g_idx, block, columns)


def _order_problem(g_idx: Tensor, block: int, columns: int) -> str | None:
    import torch

    counts = torch.bincount(g_idx.long().cpu())
    expected = torch.full((-(-columns // block),), block)
    expected[-1] = columns - block * (len(expected) - 1)
    if len(counts) != len(expected) or bool((counts != expected).any()):
        return f"its columns are ordered into groups of unequal sizes rather than {block} each"
    return None


def arrange(quantized: QuantizedTensor, bits: int | None = None) -> DeviceWeight:
    """Rearrange a canonical tensor into the device layout, on its own device.

    Parameters
    ----------
    quantized : QuantizedTensor
        ``(N, K)``.
    bits : int, optional
        Width of its codes, as the format's :class:`qformats.KernelSpec` says; found from the codes by default.

    Returns
    -------
    DeviceWeight
        From which :func:`restore` recovers the same codes, scales, zero points and minima.

    Raises
    ------
    ConfigError
        If the kernels' modes do not support it; :func:`uncovered` says why beforehand.
    """
    import torch

    problem = uncovered(quantized, bits)
    if problem is not None:
        allowed = "one that the shared kernels support"
        raise ConfigError("weight for the device layout", Described(problem), allowed)
    rows, columns = quantized.shape
    width, lift = _width(quantized, bits)
    group = min(quantized.block_size[1], columns)
    order = None
    codes = quantized.codes
    if quantized.g_idx is not None:
        order = torch.argsort(quantized.g_idx.long(), stable=True).to(torch.int32)
        codes = codes[:, order.long()]
    codes = codes.to(torch.int32) + lift
    table, levels, paired = None, 0, 0
    floats = is_e4m3(quantized.codebook) or is_e2m1(quantized.codebook)
    if floats:
        width = 8 if is_e4m3(quantized.codebook) else 4
        codes = Float8Grid.stored(codes).view(torch.uint8) if width == 8 else Float4Grid.stored(codes)
        codes = codes.to(torch.int32)
    elif quantized.codebook is not None:
        levels, width = len(quantized.codebook), 4
        filled = torch.nn.functional.pad(
            quantized.codebook.to(torch.float32), (lift, ENTRIES - lift - levels)
        )
        book = make_codebook(filled)
        table, paired = book.words, book.paired[0] + 2 * book.paired[1]
        codes = book.device_code[codes.long()]
    codes = torch.nn.functional.pad(codes, (0, padded_columns(columns, width) - columns))
    planes, low = [], 0
    for part in PLANES[width]:
        planes.append(plane_of((codes >> low) & ((1 << part) - 1), part))
        low += part
    if table is not None:
        planes = [pair_nibbles(planes[0])]
    elif floats:
        planes = [mix_floats(planes[0], width)]
    zero, shift, mode = lift, None, AFFINE
    if table is not None or floats:
        mode = FLOAT if floats else TABLE
    elif quantized.minimum is not None:
        mode, zero = MINIMUM, lift + _whole(quantized.zero_point)
        shift = _by_row(quantized.minimum, quantized)
    elif isinstance(quantized.zero_point, torch.Tensor):
        shift = _by_row(quantized.zero_point.to(torch.float16) + lift, quantized)
        zero = 0
    else:
        zero = lift + _whole(quantized.zero_point)
    dtype = quantized.codes.dtype
    size = dtype.itemsize if dtype == torch.uint8 else -dtype.itemsize
    form = DeviceForm(
        rows, columns, width, mode, group, zero, lift, size, levels, paired, height=_height(quantized)
    )
    scale = _by_row(quantized.scale, quantized)
    weight = DeviceWeight(tuple(planes), scale, shift, table, order, None, None, form)
    nested = quantized.nested_scales
    count = padded_columns(columns, width) // group
    if order is not None or form.height or group not in FACTORED:
        return weight
    small = small_floats(quantized)
    if small is not None and mode != MINIMUM and shift is None:
        inner, outer, factor = small
        return weight._replace(
            scale=outer.t().contiguous(), factor=factor_words(factor, count), form=form._replace(inner=inner)
        )
    if not stay_apart(nested, quantized):
        return weight
    outers = [each.outer.to(torch_dtype(each.dtype)).t().contiguous() for each in nested]
    words = [factor_words(each.inner + LIFTED, count) for each in nested]
    return weight._replace(
        scale=outers[0],
        shift=outers[1] if len(nested) > 1 else shift,
        factor=words[0],
        shift_factor=words[1] if len(nested) > 1 else None,
        form=form._replace(outer=nested[0].group * group),
    )


def _height(quantized: QuantizedTensor) -> int:
    """Rows that share a scale, if more than one; otherwise 0."""
    height = quantized.block_size[0]
    return height if height > 1 else 0


def _by_row(values: Tensor, quantized: QuantizedTensor) -> Tensor:
    """Parameters of blocks as ``(groups, N)``."""
    rows = quantized.shape[0]
    height = _height(quantized)
    if height:
        return values.repeat_interleave(height, 0)[:rows].t().contiguous()
    # Blocks over the flattened tensor that end with the rows are blocks of the rows.
    return values.reshape(rows, -1).t().contiguous()


def _whole(zero: Tensor | float) -> int:
    assert isinstance(zero, int | float)
    return int(zero)


def codes_of(weight: DeviceWeight) -> Tensor:
    """Device codes in device order of columns.

    Returns
    -------
    Tensor
        int32, ``(N, K)``.
    """
    import torch

    form = weight.form
    padded = padded_columns(form.columns, form.bits)
    planes = weight.planes
    if form.mode == TABLE:
        planes = (pair_nibbles(planes[0], back=True),)
    elif form.mode == FLOAT:
        planes = (mix_floats(planes[0], form.bits, back=True),)
    codes = torch.zeros((form.rows, padded), dtype=torch.int32, device=weight.scale.device)
    low = 0
    for part, plane in zip(PLANES[form.bits], planes, strict=True):
        codes |= codes_of_plane(plane, part) << low
        low += part
    return codes[:, : form.columns]


def _of_blocks(values: Tensor, form: DeviceForm) -> Tensor:
    """The reverse of :func:`_by_row`."""
    return values.t()[:: form.height or 1].contiguous()


def restore(weight: DeviceWeight) -> QuantizedTensor:
    """Canonical tensor of a weight in the device layout: the same numbers that :func:`arrange` was given.

    Blocks over the flattened tensor come back as blocks of the rows, zero points as int32, one zero point as an int.
    """
    import torch

    form = weight.form
    codes = codes_of(weight)
    if form.mode == TABLE:
        assert weight.table is not None
        codes = canonical_codes(weight.table)[codes.long()]
    elif form.mode == FLOAT:
        stored = codes.to(torch.uint8)
        places = (
            Float8Grid.places(stored.view(torch.float8_e4m3fn))
            if form.bits == 8
            else Float4Grid.places(stored)
        )
        codes = places.to(torch.int32)
    codes = codes - form.lift
    dtype = {1: torch.uint8, -1: torch.int8, -2: torch.int16, -4: torch.int32, -8: torch.int64}[
        form.code_bytes
    ]
    g_idx = None
    if weight.order is not None:
        order = weight.order.long()
        back = torch.empty_like(codes)
        back[:, order] = codes
        codes = back
        g_idx = torch.empty_like(weight.order)
        places = torch.arange(form.columns, device=order.device, dtype=torch.int32)
        g_idx[order] = (places // form.group).to(torch.int32)
    zero: Tensor | float = form.zero - form.lift
    minimum = codebook = None
    if form.mode == TABLE:
        assert weight.table is not None
        zero, codebook = 0, canonical_levels(weight.table)[form.lift : form.lift + form.levels]
    elif form.mode == FLOAT:
        codebook = torch.tensor(E4M3 if form.bits == 8 else E2M1, dtype=torch.float32, device=codes.device)
    elif form.mode == MINIMUM:
        assert weight.shift is not None
        minimum = _of_blocks(weight.shift, form)
        if weight.shift_factor is not None:
            minimum = multiplied(weight.shift, weight.shift_factor, form)
    elif weight.shift is not None:
        zero = (_of_blocks(weight.shift, form) - form.lift).to(torch.int32)
    scale = _of_blocks(weight.scale, form)
    if weight.factor is not None:
        scale = multiplied(weight.scale, weight.factor, form)
    return QuantizedTensor(
        codes.to(dtype).contiguous(),
        scale,
        (form.height or 1, form.group),
        zero_point=zero,
        minimum=minimum,
        codebook=codebook,
        g_idx=g_idx,
    )
