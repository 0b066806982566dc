"""The one device layout: a weight of any format, rearranged without loss for the shared kernels.

Columns run in *strips* of 32. A code of `bits` bits is a sum of planes of 8, 4, 2 and 1 bits (5 = 4 + 1). A plane
of `b` bits packs the codes of ``16 / b`` consecutive strips into one strip of 32 int16 words: column ``32 s + w`` lies
in word ``w`` of packed strip ``s // (16 / b)``, at bit ``b * (s % (16 / b))``. Packed strips of all rows lie together,
``(packed strips, N, 32)``: what a program reads is contiguous, two neighbouring words hold neighbouring columns (which
a 16-bit pair instruction decodes at once), and every strip meets a contiguous strip of activations.

Codes of a table lie in another order within two neighbouring words, the one in which byte permutes look them up; see
:func:`pair_nibbles`. Floats are their own codes, with the bits of a word in another order: :func:`mix_floats`.
Scales, zero points and minima lie as ``(groups, N)``; one of several rows is repeated for each. Where scales are
products of an outer scale and a small number (:class:`~qformats.numbers.NestedScales`), these stay apart: outer ones as
``(outers, N)``, and small ones as bytes, four groups to an int32 of ``(groups / 4, N)``. The small ones are whole
numbers, floats in E4M3, or powers of two.
Columns are padded until the last packed strip of every plane is full, and to a multiple of 128.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qformats.errors import ConfigError, Described
from qformats.kernels.codebook import ENTRIES, canonical_codes, canonical_levels, make_codebook
from qformats.numbers.dtypes import torch_dtype
from qformats.numbers.float4 import E2M1, Float4Grid, is_e2m1
from qformats.numbers.float8 import E4M3, Float8Grid, is_e4m3
from qformats.numbers.quantized import QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from qformats.numbers.nested import NestedScales

__all__ = [
    "AFFINE",
    "EXPONENT",
    "FLOAT",
    "FLOAT8",
    "LIFTED",
    "MINIMUM",
    "PLANES",
    "QUAD",
    "QUOTIENT",
    "STRIP",
    "TABLE",
    "DeviceForm",
    "DeviceWeight",
    "arrange",
    "codes_of",
    "mix_floats",
    "padded_columns",
    "pair_nibbles",
    "restore",
    "uncovered",
]

STRIP = 32
"""Columns of a strip."""
QUAD = 128
"""Columns that the kernels decode at once: four strips, one packed strip of 4-bit codes."""
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 8: (8,)}
"""Widths of the planes by width of the code, the low bits first."""
AFFINE, MINIMUM, TABLE, FLOAT = 0, 1, 2, 3
"""Modes: ``scale * (code - zero)``; ``scale * (code - zero) + minimum``; ``scale * table[code]``; and ``scale * code``
where the codes are floats: E4M3 of 8 bits, or E2M1 of 4, counted in halves."""

LIFTED = 128
"""What is added to the whole numbers of scales in two levels, so that they are bytes without a sign."""
WHOLE, EXPONENT, FLOAT8, QUOTIENT = 0, 1, 2, 3
"""Kinds of factors: whole numbers; ``2 ** (byte - 127)``; E4M3 without a sign; E4M3, which the outer scale divides."""
FLOAT8_UNIT = 256.0
"""How much larger an outer scale is, or how much smaller a divisor, where factors are E4M3: these are decoded as what
their bits are in float16."""
_FACTORED = (16, 32)
"""Groups for which scales stay in two levels: a strip has one or two. Others are multiplied out."""
_PLACES_OF_BITS = {
    8: [(n, n) for n in range(7)] + [(7, 14)] + [(8 + n, 7 + n) for n in range(7)] + [(15, 15)],
    4: [
        (4 * strip + n, 8 * (strip % 2) + [(1, 2, 3, 7), (4, 5, 6, 0)][strip // 2][n])
        for strip in range(4)
        for n in range(4)
    ],
}
"""Natural place of each bit of a word, and its place for the decode; see :func:`mix_floats`."""
_OUTER_RANGE = (2.0**-100, 2.0**100)
"""Outer scales that are normal numbers, also as a product with the smallest inner one."""


class DeviceForm(NamedTuple):
    """What the kernels must know about a weight besides its tensors: only numbers, equal for layers of one kind.

    Attributes
    ----------
    rows, columns : int
        out_features and in_features.
    bits : int
        Width of a code.
    mode : int
        `AFFINE`, `MINIMUM`, `TABLE` or `FLOAT`.
    group : int
        Columns that share a scale.
    zero : int
        Device code that stands for zero, where all groups have the same.
    lift : int
        What was added to the canonical codes so that none is negative.
    code_bytes : int
        Bytes of a canonical code, negative where it is signed.
    levels : int
        Entries of the table that are real; 0 without a table.
    paired : int
        1 if float16 levels can be looked up in pairs, and 2 if bfloat16 levels can.
    outer : int
        Columns that share an outer scale, where scales are in two levels; otherwise 0.
    line : int
        Rows that lie together in the weight's tensors, where these are a part of larger ones; otherwise 0.
    height : int
        Rows that share a scale in the canonical tensor, if more than one; otherwise 0.
    inner : int
        Where scales are in two levels, the kind of the inner numbers: `WHOLE`, or `EXPONENT`, `FLOAT8` or `QUOTIENT`.
        Of the latter three a whole row has one outer number, and `outer` is 0.
    """

    rows: int
    columns: int
    bits: int
    mode: int
    group: int
    zero: int
    lift: int
    code_bytes: int
    levels: int = 0
    paired: int = 0
    outer: int = 0
    line: int = 0
    height: int = 0
    inner: int = WHOLE

    @property
    def factored(self) -> bool:
        """Whether scales are in two levels."""
        return self.outer > 0 or self.inner != WHOLE


class DeviceWeight(NamedTuple):
    """A weight in the device layout; all tensors on one device.

    Attributes
    ----------
    planes : tuple of Tensor
        int16, ``(packed strips, N, 32)`` each.
    scale : Tensor
        float16 or float32, ``(groups, N)``; ``(outers, N)`` where scales are in two levels.
    shift : Tensor or None
        Shape of `scale`: zero point of each group (float16, whole numbers, of device codes); or its minimum, in
        weight units, float16 or float32.
    table : Tensor or None
        int32, ``(100,)``: the levels, see :class:`qformats.kernels.codebook.Codebook`.
    order : Tensor or None
        int32, ``(K,)``: device column ``k`` is canonical column ``order[k]``, where columns were reordered.
    factor, shift_factor : Tensor or None
        int32, ``(padded groups / 4, N)``: by what outer scales and minima are multiplied, the first group in the lowest
        byte: whole numbers plus `LIFTED`, or the bytes of `DeviceForm.inner`.
    form : DeviceForm
        Everything that is not a tensor.
    """

    planes: tuple[Tensor, ...]
    scale: Tensor
    shift: Tensor | None
    table: Tensor | None
    order: Tensor | None
    factor: Tensor | None
    shift_factor: Tensor | None
    form: DeviceForm

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        parts = (*self.planes, *self.beside.values())
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    @property
    def beside(self) -> dict[str, Tensor | None]:
        """Every tensor that is not a plane, by name."""
        return {name: getattr(self, name) for name in self._fields[1:-1]}


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


def pair_nibbles(words: Tensor, *, back: bool = False) -> Tensor:
    """Exchange nibbles between two neighbouring words, or exchange them back.

    Natural: strip ``i`` of column parity ``p`` is nibble ``i`` of word ``p``. For byte permutes: nibble ``2 i + p`` of
    both words together, so that two results of one permute are two neighbouring columns.

    Parameters
    ----------
    words : Tensor
        int16, ``(packed strips, N, 32)``.
    back : bool
        From the order for byte permutes to the natural one.
    """
    import torch

    pairs = words.reshape(-1, 2).to(torch.int32) & 0xFFFF
    shifts = torch.arange(0, 16, 4, device=words.device, dtype=torch.int32)
    nibbles = (pairs[:, :, None] >> shifts) & 15  # (pairs, word, nibble)
    if back:
        nibbles = nibbles.reshape(-1, 4, 2).transpose(1, 2)
    else:
        nibbles = nibbles.transpose(1, 2).reshape(-1, 2, 4)
    return _to_int16((nibbles << shifts).sum(2, dtype=torch.int32)).reshape(words.shape)


def mix_floats(words: Tensor, bits: int, *, back: bool = False) -> Tensor:
    """Move the bits of floats within their words to where the decode needs the fewest shifts, or move them back.

    Natural: the strips' floats one after the other, the first in the lowest bits. For the decode, the highest bit
    first: signs ``s`` and what is behind them, of strip 0, ``a``, to strip 3, ``d``.

    - 8 bits: ``sb sa bbbbbbb aaaaaaa``. One shift away float16 has both.
    - 4 bits, in each byte: ``sa ccc aaa sc`` in the lower one, ``sb ddd bbb sd`` in the upper one. A byte is then the
      upper half of a float16 once all other bits are cleared: for ``a`` and ``b`` at once, for ``c`` and ``d`` a shift
      away.

    Parameters
    ----------
    words : Tensor
        int16, any shape.
    bits : int
        Of a float: 8 or 4.
    back : bool
        From the order for the decode to the natural one.
    """
    import torch

    given = words.to(torch.int32) & 0xFFFF
    mixed = torch.zeros_like(given)
    for natural, own in _PLACES_OF_BITS[bits]:
        source, target = (own, natural) if back else (natural, own)
        mixed |= (given >> source & 1) << target
    return _to_int16(mixed)


def _to_int16(words: Tensor) -> Tensor:
    import torch

    return torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16)


def _plane(codes: Tensor, width: int) -> Tensor:
    """Pack codes below ``2 ** width``, int32 ``(N, padded K)``."""
    import torch

    rows = len(codes)
    count = 16 // width
    strips = codes.reshape(rows, -1, STRIP)
    packed = torch.zeros((rows, strips.shape[1] // count, STRIP), dtype=torch.int32, device=codes.device)
    for place in range(count):
        packed |= strips[:, place::count] << (width * place)
    return _to_int16(packed).transpose(0, 1).contiguous()


def _codes_of_plane(plane: Tensor, width: int) -> Tensor:
    import torch

    words = plane.transpose(0, 1).to(torch.int32) & 0xFFFF  # (N, packed strips, 32)
    count = 16 // width
    shifts = torch.arange(0, 16, width, device=plane.device, dtype=torch.int32)
    codes = (words[:, :, None, :] >> shifts[:, None]) & ((1 << width) - 1)
    return codes.reshape(len(words), words.shape[1] * count * STRIP)


def padded_columns(columns: int, bits: int) -> int:
    """Columns that the planes of a code of `bits` bits have room for."""
    unit = max(QUAD, STRIP * 16 // min(PLANES[bits]))
    return -(-columns // unit) * unit


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
        planes.append(_plane((codes >> low) & ((1 << part) - 1), part))
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
    if order is not None or form.height or group not in _FACTORED:
        return weight
    small = _small_floats(quantized)
    if small is not None and mode != MINIMUM and shift is None:
        inner, outer, factor = small
        return weight._replace(
            scale=outer.t().contiguous(), factor=_words(factor, count), form=form._replace(inner=inner)
        )
    if not _stay_apart(nested, quantized):
        return weight
    outers = [each.outer.to(torch_dtype(each.dtype)).t().contiguous() for each in nested]
    words = [_words(each.inner + LIFTED, count) for each in nested]
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


def _stay_apart(nested: Sequence[NestedScales], quantized: QuantizedTensor) -> bool:
    """Whether the kernels read nested scales as they are, and these are the tensor's scales."""
    import torch

    own = [quantized.scale] + ([] if quantized.minimum is None else [quantized.minimum])
    height, group = quantized.block_size
    if height != 1 or len(nested) != len(own):
        return False
    for each, scale in zip(nested, own, strict=True):
        if each.divides:
            return False
        whole = each.inner.to(torch.int8)
        fits = (
            each.dtype in ("f16", "f32") and not each.group * group % QUAD and each.group == nested[0].group
        )
        if not fits or not torch.equal(whole.float(), each.inner) or not torch.equal(each.values(), scale):
            return False
    return True


def _small_floats(quantized: QuantizedTensor) -> tuple[int, Tensor, Tensor] | None:
    """Kind of the scales' inner numbers, outer ones float32 ``(N, 1)``, and inner ones as bytes uint8 ``(N, groups)``.

    None where scales are neither powers of two nor numbers of E4M3 with one number for each row.
    """
    import torch

    scale = quantized.scale
    if scale.dtype != torch.float32 or quantized.block_size[0] != 1 or not scale.numel():
        return None
    # Of powers of two only the exponent is not 0. Formats with a byte for it have some too small for a normal number.
    for outer in (1.0, 0.25):
        bits = (scale / outer).view(torch.int32)
        byte = bits >> 23
        if bool(((bits & 0x7FFFFF == 0) & (byte > 0) & (byte < 255)).all()):
            return EXPONENT, torch.full_like(scale[:, :1], outer), byte.to(torch.uint8)
    nested = quantized.nested_scales
    if len(nested) != 1 or nested[0].outer.shape[1] != 1 or nested[0].dtype != "f32":
        return None
    each = nested[0]
    least, most = _OUTER_RANGE
    size = 1 / each.outer if each.divides else each.outer
    stored = each.inner.to(torch.float8_e4m3fn)
    fits = bool(((size >= least) & (size <= most)).all()) and bool((each.inner >= 0).all())
    if not fits or not torch.equal(stored.float(), each.inner) or not torch.equal(each.values(), scale):
        return None
    stretched = each.outer / FLOAT8_UNIT if each.divides else each.outer * FLOAT8_UNIT
    return QUOTIENT if each.divides else FLOAT8, stretched, stored.view(torch.uint8) & 127


def _words(factor: Tensor, count: int) -> Tensor:
    """Numbers from 0 to 255, ``(N, groups)``, as bytes of int32 ``(count / 4, N)``; zeros behind them."""
    import torch

    padded = torch.nn.functional.pad(factor.to(torch.uint8), (0, count - factor.shape[1]))
    return padded.contiguous().view(torch.int32).t().contiguous()


def _multiplied(outer: Tensor, words: Tensor, form: DeviceForm) -> Tensor:
    """Scales or minima ``(N, groups)`` of the two numbers that :func:`arrange` kept apart."""
    import torch

    groups = -(-form.columns // form.group)
    byte = words.t().contiguous().view(torch.uint8)[:, :groups]
    if form.inner == EXPONENT:
        return (byte.to(torch.int32) << 23).view(torch.float32) * outer.t()
    if form.inner != WHOLE:
        value = byte.view(torch.float8_e4m3fn).float() / FLOAT8_UNIT
        return value / outer.t() if form.inner == QUOTIENT else value * outer.t()
    factor = byte.float() - LIFTED
    return factor * outer.float().t().repeat_interleave(form.outer // form.group, 1)[:, :groups]


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
        codes |= _codes_of_plane(plane, part) << low
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
            minimum = _multiplied(weight.shift, weight.shift_factor, form)
    elif weight.shift is not None:
        zero = (_of_blocks(weight.shift, form) - form.lift).to(torch.int32)
    scale = _of_blocks(weight.scale, form)
    if weight.factor is not None:
        scale = _multiplied(weight.scale, weight.factor, form)
    return QuantizedTensor(
        codes.to(dtype).contiguous(),
        scale,
        (form.height or 1, form.group),
        zero_point=zero,
        minimum=minimum,
        codebook=codebook,
        g_idx=g_idx,
    )
