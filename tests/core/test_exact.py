"""What is held is equal, what is refused does not fit (brute force), what is foreseen comes true."""

import itertools
import sys
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qformats import QuantizedTensor
from qformats.errors import ConfigError, NotExactError
from qformats.exact import Answer, foresee, represent
from qformats.numbers.affine import AffineGrid
from qformats.numbers.grid import Grid
from qformats.numbers.table import TableGrid

FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
UNEVEN = (-1.0, -0.69619, -0.52507, -0.28444, -0.09105, 0.0, 0.1609, 0.33792, 0.56262, 1.0)
WHOLE = (-6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
TINY = (-1.0, -0.3, 0.0, 0.01, 0.3, 1.0)
NO_ZERO = (-1.0, 0.25, 0.5)


class FlatAffine(AffineGrid):
    flat = True


class FlatTable(TableGrid):
    flat = True


# Small tensors with every structure.


@st.composite
def scales(draw, shape, dtype):
    """Finite scales of a dtype: a few different ones, of any size."""
    kind = draw(st.sampled_from(["one", "usual", "usual", "any", "tiny", "huge"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    largest = {"f32": 0x7F7FFFFF, "f16": 0x7BFF, "bf16": 0x7F7F}[dtype]
    integer = torch.int32 if dtype == "f32" else torch.int16
    bits = rng.integers(0, largest + 1, shape)
    if kind == "tiny":
        bits = rng.integers(0, 40, shape)
    elif kind == "huge":
        bits = largest - rng.integers(0, 200, shape)
    found = torch.from_numpy(bits).to(integer).view(FLOATS[dtype]).clone()
    if kind == "usual":
        found = torch.from_numpy(rng.choice([0.0, 0.5, 0.75, 0.0131, 3e-6], shape)).to(FLOATS[dtype])
    if kind == "one":
        found = torch.full(shape, 0.0217).to(FLOATS[dtype])
    if draw(st.booleans()):
        found = torch.where(torch.from_numpy(rng.random(shape) < 0.5), -found, found)
    return found


@st.composite
def grids(draw, columns=12, kinds=("symmetric", "zero_point", "minimum", "table")):
    """A grid whose blocks divide rows of 12, or are flat."""
    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from(list(FLOATS)))
    flat = draw(st.integers(0, 4)) == 0
    block = draw(st.sampled_from([5, 8, 6] if flat else [0, 2, 3, 4, 6, 12]))
    if kind == "table":
        table = draw(
            st.sampled_from([UNEVEN, WHOLE, TINY, NO_ZERO, (-1.0, 0.0, 1.0), (-2.0, -1.0, 0.0, 1.0)])
        )
        return (FlatTable if flat else TableGrid)(table, block, scale_dtype=dtype)
    bits = draw(st.sampled_from([2, 3, 3, 4, 8]))
    zero = draw(st.sampled_from([None, None, (1 << bits) - 2, 1])) if kind == "symmetric" else None
    return (FlatAffine if flat else AffineGrid)(bits, block, kind=kind, scale_dtype=dtype, zero=zero)


@st.composite
def on_grid(draw, grid, shape=(3, 12), fill=None):
    """A tensor that `grid` accepts, with any code its bits can hold."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = shape
    style = draw(st.sampled_from(["all", "all", "few", "even"])) if fill is None else fill
    numbers = rng.integers(0, grid.levels, shape)
    if style == "few":
        numbers = numbers // 2 + draw(st.integers(0, grid.levels // 2 - 1 + grid.levels % 2))
        numbers = numbers.clip(0, grid.levels - 1)
    elif style == "even":
        numbers = numbers // 2 * 2
    codes = torch.from_numpy(numbers.astype(np.uint8))
    block_size = grid.block_of(codes)
    grid_shape = (-(-rows * columns // block_size[1]),)
    if block_size[0]:
        grid_shape = (rows, columns // block_size[1])
    scale = draw(scales(grid_shape, grid.scale_dtype))
    if isinstance(grid, TableGrid):
        return QuantizedTensor(codes, scale, block_size, codebook=grid.table(codes))
    zero, minimum = (grid.center if grid.kind == "symmetric" else 0), None
    if grid.kind == "zero_point":
        zero = torch.from_numpy(rng.integers(0, grid.levels, grid_shape)).to(torch.int32)
    if grid.kind == "minimum":
        minimum = draw(scales(grid_shape, grid.scale_dtype))
        steps = torch.from_numpy(rng.integers(-3, 3, grid_shape)).float() * scale.float()
        if draw(st.booleans()) and torch.equal(grid.storable(steps), steps):
            minimum = steps.to(FLOATS[grid.scale_dtype])
    return QuantizedTensor(codes, scale, block_size, zero_point=zero, minimum=minimum)


@st.composite
def anything(draw):
    """Canonical tensors that no grid describes: blocks of rows, reordered columns, signed codes, float zeros."""
    grid = draw(grids())
    source = draw(on_grid(grid))
    match draw(st.integers(0, 4)):
        case 0:
            return source
        case 1 if source.codebook is None:
            codes = source.codes.to(torch.int16) - 100
            return replace(source, codes=codes.clamp(-128, 27).to(torch.int8), zero_point=-50)
        case 2 if source.minimum is None:
            scale = draw(scales((2, 3), grid.scale_dtype))
            zero = source.zero_point if isinstance(source.zero_point, int) else 3
            return replace(source, block_size=(2, 5), scale=scale, zero_point=zero)
        case 3 if source.minimum is None:
            scale = draw(scales((3, 4), "f16"))
            order = torch.tensor(draw(st.permutations(list(range(12))))) // 3
            if draw(st.booleans()):
                order = torch.arange(12) // 3
            return replace(
                source,
                block_size=(1, 3),
                scale=scale,
                zero_point=draw(st.sampled_from([2, 2.0, 1.5])),
                g_idx=order.to(torch.int32),
            )
        case _:
            return replace(
                source, scale=source.scale.float() * draw(st.sampled_from([2.0**-12, 1.0, 3.0, 1 / 3]))
            )


def _blocks(values, grid):
    """Values of each block of the target, a list of float32 arrays."""
    flat = values.reshape(-1).numpy()
    block = grid.block_size or values.shape[1]
    return [flat[start : start + block] for start in range(0, len(flat), block)]


# Brute force, independent of the code under test.


@lru_cache(maxsize=16)
def _all_products(dtype, levels):
    """float32 ``(scales, levels)``: what every finite scale of 16 bits makes of each level; scales from 0 up."""
    bits = np.arange(0x7C00 if dtype == "f16" else 0x7F80)
    if dtype == "f16":
        numbers = bits.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        numbers = (bits.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(all="ignore"):
        return numbers[:, None] * np.array(levels, np.float32)


def _near_products(values, levels):
    """The same for scales of float32: those that could give one of the values one of the levels."""
    found = [np.zeros(1, np.float32)]
    with np.errstate(all="ignore"):
        for value, level in itertools.product(np.unique(np.abs(values[values != 0])), levels):
            if level:
                middle = np.float32(np.float64(value) / abs(level)).view(np.int32)
                # Tiny values have few bits, and 1 / level scales give the same one.
                spread = 6 if value > 2.0**-118 else 6 + int(2 / abs(level))
                near = np.arange(middle - spread, middle + spread + 1).clip(0, 0x7F7FFFFF)
                found.append(near.astype(np.int32).view(np.float32))
        return np.unique(np.concatenate(found))[:, None] * np.array(levels, np.float32)


def _fits(values, grid):
    """Whether some scale (and zero point) of the grid gives all values of a block."""
    if isinstance(grid, TableGrid):
        windows = [tuple(grid.codebook)]
    elif grid.kind == "symmetric":
        windows = [tuple(range(-grid.center, grid.levels - grid.center))]
    elif grid.kind == "zero_point":
        windows = [tuple(range(-zero, grid.levels - zero)) for zero in range(grid.levels)]
    for levels in windows:
        products = (
            _near_products(values, levels)
            if grid.scale_dtype == "f32"
            else _all_products(grid.scale_dtype, levels)
        )
        for signed in (values, -values):
            given_by = np.ones(len(products), bool)
            for value in np.unique(signed):
                given_by[given_by] = (products[given_by] == value).any(1)
            if given_by.any():
                return True
    return False


def _check(source, grid):
    """Hold and check it; None if refused."""
    before = source.dequantize()
    try:
        held = represent(source, grid)
    except NotExactError as error:
        reason = error.reason
        held = None
    if held is None:
        assert reason[:-1]
        assert reason[-1] != "."
        return None
    grid.validate(held)
    assert held.scale.dtype == FLOATS[grid.scale_dtype]
    assert held.codes.dtype == torch.uint8
    assert torch.equal(before, held.dequantize())
    return held


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_held_values_are_equal_and_refused_ones_do_not_fit(data):
    source = data.draw(anything(), "source")
    grid = data.draw(grids(), "target")
    held = _check(source, grid)
    values = source.dequantize()
    if held is None and bool(values.isfinite().all()):
        if isinstance(grid, AffineGrid) and (
            grid.kind == "minimum" or (grid.bits == 8 and grid.kind == "zero_point")
        ):
            return
        if 12 % (grid.block_size or 12) and not grid.flat:
            return
        assert not all(_fits(block, grid) for block in _blocks(values, grid))


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_tensor_of_the_grid_is_held_whatever_its_numbers(data):
    """Its values come from the grid, its numbers do not: other levels, other scales, other blocks."""
    grid = data.draw(grids(kinds=("symmetric", "zero_point", "table")), "target")
    truth = data.draw(on_grid(grid), "truth")
    values = truth.dequantize()
    if not bool(values.isfinite().all()):
        return
    # One element a block, with the value as its scale.
    source = QuantizedTensor(torch.ones((3, 12), dtype=torch.uint8), values, (1, 1))
    assert _check(source, grid) is not None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_foreseen(data):
    source_grid = data.draw(grids(), "source grid")
    target = data.draw(grids(), "target")
    if data.draw(st.booleans()):
        # Few pairs fit by chance.
        target = replace(
            target,
            block_size=data.draw(st.sampled_from([2, 3, source_grid.block_size])),
            scale_dtype=data.draw(st.sampled_from(["f32", source_grid.scale_dtype])),
        )
    source = data.draw(on_grid(source_grid), "source")
    answer, reason = foresee(source_grid, target, (3, 12))
    assert (answer is Answer.ALWAYS) == (not reason)
    values = source.dequantize()
    if not bool(values.isfinite().all()):
        return
    held = _check(source, target)
    if answer is Answer.ALWAYS:
        assert held is not None
    if answer is Answer.NEVER:
        small = values[values != 0].abs() < 2.0**-126
        rich = any(len(np.unique(block[block != 0])) >= 3 for block in _blocks(values, target))
        assert held is None or bool(small.any()) or not rich


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_minimum_that_exists_is_found(data):
    """Whole numbers of 2**-10, so that nothing is rounded; the source says nothing about scale or minimum."""
    bits = data.draw(st.sampled_from([2, 4, 5]))
    grid = AffineGrid(bits, 6, kind="minimum", scale_dtype=data.draw(st.sampled_from(["f16", "f32"])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    codes = torch.from_numpy(rng.integers(0, grid.levels, (2, 12)).astype(np.uint8))
    scale, minimum = (
        torch.from_numpy(rng.integers(-500, 500, (2, 2)) / 1024).to(torch.float16) for _ in "sm"
    )
    truth = QuantizedTensor(codes, scale, (1, 6), minimum=minimum)
    source = QuantizedTensor(torch.ones((2, 12), dtype=torch.uint8), truth.dequantize(), (1, 1))
    assert _check(source, grid) is not None


@pytest.mark.parametrize("levels", [TINY, UNEVEN, NO_ZERO])
@pytest.mark.parametrize(
    "values", [(1, 2, 4), (3, -3, 10), (100, 1, 30), (7, 5, 0), (-40, 12, 13), (0, 0, 1)]
)
def test_values_of_a_few_bits_under_a_table(levels, values):
    """Subnormal values: hundreds of scales give the largest one the smallest level."""
    grid = TableGrid(levels, 3)
    tiny = torch.tensor([values]) * torch.tensor(2.0**-149)
    held = _check(QuantizedTensor(torch.ones((1, 3), dtype=torch.uint8), tiny, (1, 1)), grid)
    every = np.arange(1 << 15, dtype=np.int32).view(np.float32)[:, None] * np.array(levels, np.float32)
    fits = [
        all((row == value).any() for value in signed)
        for signed in (tiny.numpy()[0], -tiny.numpy()[0])
        for row in every
    ]
    assert (held is not None) == any(fits)


@pytest.mark.parametrize(
    ("level", "scale"), [(41, 0.024390244856476784), (47, 0.021276596933603287), (83, 0.012048193253576756)]
)
def test_scale_that_is_not_the_nearest_one(level, scale):
    """The product rounds across a power of two: the quotient, rounded, is no scale that gives it back."""
    levels = torch.tensor([[level, level - 1, -level + 3, 7, 1, 0]]).float()
    values = torch.tensor(scale) * levels
    nearest = (values[0, 0].double() / level).float()
    assert nearest * level != values[0, 0]
    held = _check(
        QuantizedTensor(torch.ones((1, 6), dtype=torch.uint8), values, (1, 1)),
        AffineGrid(8, 6, scale_dtype="f32"),
    )
    assert held is not None


@pytest.mark.parametrize("steps", [3, -5, 7])
def test_minimum_of_whole_steps_of_float32(steps):
    """Sums of products of 24 bits are rounded, so that the whole steps of the minimum are not enough."""
    scale = torch.rand(64, 1, generator=torch.Generator().manual_seed(steps)) + 0.5
    codes = torch.arange(8, dtype=torch.uint8).repeat(64, 1)
    source = QuantizedTensor(codes, scale, (1, 8), minimum=scale * steps)
    one_by_one = [
        replace(source, codes=codes[i : i + 1], scale=scale[i : i + 1], minimum=source.minimum[i : i + 1])
        for i in range(64)
    ]
    held = [_check(part, FLOAT6) is not None for part in one_by_one]
    assert not all(held)
    # Steps of 11 bits: nothing is rounded.
    short = scale.half().float()
    assert _check(replace(source, scale=short, minimum=short * steps), FLOAT6) is not None


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_minimum_so_large_that_products_overflow(dtype):
    codes = torch.arange(16, dtype=torch.uint8).reshape(1, 16)
    source = QuantizedTensor(codes, torch.full((1, 1), 1.5 * 2.0**124), (1, 16), zero_point=8)
    assert bool(source.dequantize().isfinite().all())
    _check(source, AffineGrid(4, 16, kind="minimum", scale_dtype=dtype))


# The pairs that users ask for.


FLOAT6 = AffineGrid(6, 8, scale_dtype="f32")
ROW4, ROW8 = AffineGrid(4, 0, low=1), AffineGrid(8, 0, low=1)
FOUR, FIVE, EIGHT = AffineGrid(4, 32), AffineGrid(5, 32), AffineGrid(8, 32, low=1)
FOUR_MINIMUM, FIVE_MINIMUM = (AffineGrid(bits, 32, kind="minimum") for bits in (4, 5))
ZERO4 = AffineGrid(4, 64, kind="zero_point")


def _full(grid, shape=(6, 128), seed=3):
    """A tensor with every code and an ordinary scale."""
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, grid.levels, shape, generator=rng).to(torch.uint8)
    blocks = (shape[0], shape[1] // (grid.block_size or shape[1]))
    scale = (torch.randn(blocks, generator=rng) * 0.01).to(FLOATS[grid.scale_dtype])
    if isinstance(grid, TableGrid):
        return QuantizedTensor(codes, scale, grid.block_of(codes), codebook=grid.table(codes))
    zero = {"symmetric": grid.center, "minimum": 0}.get(grid.kind)
    if zero is None:
        zero = torch.randint(0, grid.levels, blocks, generator=rng).to(torch.int32)
    minimum = torch.randn(blocks, generator=rng).half() if grid.kind == "minimum" else None
    return QuantizedTensor(codes, scale, grid.block_of(codes), zero_point=zero, minimum=minimum)


ALWAYS = {
    "row of 4 bits, blocks of 4": (ROW4, FOUR),
    "row of 8 bits, blocks of 8": (ROW8, EIGHT),
    "row of 4 bits, row of 8": (ROW4, ROW8),
    "4 to 5": (FOUR, FIVE),
    "4 to 8": (FOUR, EIGHT),
    "minimum, 4 to 5": (FOUR_MINIMUM, FIVE_MINIMUM),
    "zero point to 5": (ZERO4, FIVE),
    "zero point to 8": (ZERO4, EIGHT),
    "symmetric to zero point": (FOUR, AffineGrid(4, 32, kind="zero_point")),
    "table in smaller blocks": (TableGrid(UNEVEN, 64), TableGrid(UNEVEN, 32)),
    "table, wider scale": (TableGrid(UNEVEN, 64, scale_dtype="f16"), FlatTable(UNEVEN, 64)),
    "whole table to 4 bits": (TableGrid(WHOLE, 32, scale_dtype="f16"), FOUR),
    "3 bits into a table": (AffineGrid(2, 32, scale_dtype="f32"), TableGrid(WHOLE, 32)),
    "symmetric to minimum of float32": (FOUR, AffineGrid(4, 32, kind="minimum", scale_dtype="f32")),
}


@pytest.mark.parametrize("pair", ALWAYS)
def test_always(pair):
    before, after = ALWAYS[pair]
    assert foresee(before, after, (6, 128)) == (Answer.ALWAYS, "")
    source = _full(before)
    held = _check(source, after)
    assert held is not None
    back = AffineGrid if isinstance(before, AffineGrid) else TableGrid
    assert isinstance(before, back)
    # And back: every block that came from one block of the source still has its scale.
    again = _check(held, before)
    assert again is not None
    assert torch.equal(again.dequantize(), source.dequantize())


def test_codes_that_stay_are_not_copied():
    source = _full(ROW4, (64, 4096))
    held = represent(source, FOUR)
    assert held.codes.data_ptr() == source.codes.data_ptr()
    assert torch.equal(held.scale, source.scale.expand(-1, 128))


def test_mirrored_levels_take_a_negative_scale():
    codes = torch.arange(16, dtype=torch.uint8).reshape(1, 16).repeat(1, 2)
    source = QuantizedTensor(codes, torch.tensor([[0.5]]), (1, 32), zero_point=7)
    held = _check(source, FOUR)
    assert float(held.scale) == -0.5
    assert represent(_full(ROW4), FOUR).scale.sign().equal(_full(ROW4).scale.sign().expand(-1, 4))


def test_doubled_and_halved_scales():
    even = QuantizedTensor(
        torch.tensor([[0, 2, 30, 14]], dtype=torch.uint8), torch.tensor([[2.0**-25]]), (1, 4), 16
    )
    held = _check(even, AffineGrid(4, 4))
    assert float(held.scale.abs()) == 2.0**-24
    large = QuantizedTensor(
        torch.tensor([[1, 2, 3, 0]], dtype=torch.uint8), torch.tensor([[65536.0]]), (1, 4)
    )
    assert float(_check(large, AffineGrid(8, 4)).scale.abs()) <= 65504


def test_codes_below_low_are_used():
    source = QuantizedTensor(
        torch.tensor([[0, 15, 8, 3]], dtype=torch.uint8), torch.tensor([[0.25]]), (1, 4), 8
    )
    assert represent(source, replace(ROW4, low=1)).codes.tolist() == [[0, 15, 8, 3]]


def test_columns_in_another_order():
    order = torch.tensor([1, 0] * 64, dtype=torch.int32)
    codes = _full(ZERO4).codes
    source = QuantizedTensor(codes, torch.rand(6, 2).half() + 1, (1, 64), 8, g_idx=order)
    assert _reason(source, FOUR) == "a block of 32 columns spans 2 different scales"
    same = replace(source, scale=torch.full((6, 2), 0.5).half())
    assert _check(same, FOUR) is not None
    in_order = replace(source, g_idx=torch.arange(128, dtype=torch.int32) // 64)
    assert _check(in_order, FOUR) is not None
    assert foresee(ZERO4, FIVE, (6, 128), reordered=True)[0] is Answer.DATA


def test_shards_of_a_row():
    """Two scales per row: only where they are equal can one serve, and a shard of zeros has any."""
    codes = _full(ROW4).codes
    scale = torch.tensor([[0.5, 0.5]] * 5 + [[0.5, 0.0]]).half()
    source = QuantizedTensor(codes, scale, (1, 64), 8)
    held = _check(source, ROW4)
    assert held is not None
    unequal = replace(source, scale=scale * torch.tensor([1.0, 1.001]).half())
    assert _reason(unequal, ROW4) == "a block of 128 columns spans 2 different scales"
    assert foresee(AffineGrid(4, 64), ROW4, (6, 128))[0] is Answer.DATA


def _reason(source, grid):
    with pytest.raises(NotExactError) as caught:
        represent(source, grid)
    return caught.value.reason


def test_reasons():
    wide = _full(ROW8)
    assert _reason(wide, AffineGrid(4, 32)).startswith("levels -12")
    assert _reason(wide, AffineGrid(4, 32)).endswith("codes, but there are only 16")
    mine = _full(replace(ROW4, scale_dtype="f32"))
    reason = _reason(mine, FOUR)
    assert reason.startswith("6 of 6 scales are not float16 numbers, such as ")
    example = float(reason.rsplit(" ", 1)[1])
    assert torch.tensor(example) in mine.scale
    assert _reason(_full(TableGrid(UNEVEN, 32)), FOUR) == "its levels are not equally spaced"
    assert _reason(_full(FOUR), TableGrid(UNEVEN, 32)).startswith(
        "its levels are equally spaced, and no scale"
    )
    assert _reason(_full(TableGrid(WHOLE, 32)), TableGrid(UNEVEN, 32)).startswith("its levels are different")
    assert _reason(_full(FOUR_MINIMUM), EIGHT).startswith("a minimum of ")
    apart = QuantizedTensor(torch.tensor([[0, 1, 5, 15]], dtype=torch.uint8), torch.tensor([[0.5]]), (1, 4))
    assert (
        _reason(apart, AffineGrid(2, 4, kind="minimum"))
        == "no scale and minimum of float16 give the values of a block"
    )
    odd = _full(FOUR, (2, 96))
    assert _reason(odd, AffineGrid(4, 64)) == "rows of 96 do not divide into blocks of 64"
    assert foresee(FOUR, AffineGrid(4, 64), (2, 96)) == (
        Answer.NEVER,
        "rows of 96 do not divide into blocks of 64",
    )


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize(
    "target", [FOUR, FIVE_MINIMUM, TableGrid(UNEVEN, 32)], ids=["steps", "minimum", "table"]
)
def test_values_that_are_not_finite(bad, target):
    source = _full(ROW4)
    scale = source.scale.clone()
    scale[3, 0] = bad
    assert _reason(replace(source, scale=scale), target).endswith("infinite or NaN")


def test_overflow_is_not_a_value():
    huge = torch.full((1, 1), 3e38)
    codes = torch.tensor([[0, 8, 9, 15]], dtype=torch.uint8)
    assert _reason(QuantizedTensor(codes, huge, (1, 4), 8), AffineGrid(4, 4, scale_dtype="f32")).startswith(
        "2 values"
    )
    small = QuantizedTensor(codes.clamp(7, 9), huge, (1, 4), 8)
    assert _check(small, AffineGrid(4, 4, scale_dtype="f32")) is not None


def test_empty_and_zero():
    none = represent(
        QuantizedTensor(torch.empty((0, 64), dtype=torch.uint8), torch.empty((0, 1)), (1, 64)), FOUR
    )
    assert none.shape == (0, 64)
    assert none.scale.shape == (0, 2)
    codes = torch.full((2, 64), 77, dtype=torch.uint8)
    zero = QuantizedTensor(codes, torch.zeros(2, 2), (1, 32), zero_point=3)
    for grid in (FOUR, FOUR_MINIMUM, ZERO4, TableGrid(UNEVEN, 32), TableGrid(NO_ZERO, 32)):
        assert _check(zero, grid) is not None


def test_last_block_of_a_flat_tensor_is_short():
    flat = FlatTable(UNEVEN, 32)
    codes = _full(TableGrid(UNEVEN, 0), (3, 50)).codes
    source = QuantizedTensor(codes, torch.rand(5) + 0.1, (0, 32), codebook=flat.table(codes))
    held = _check(source, FlatTable(UNEVEN, 16))
    assert held.scale.shape == (10,)
    assert foresee(flat, FlatTable(UNEVEN, 16), (3, 50))[0] is Answer.ALWAYS
    assert foresee(flat, TableGrid(UNEVEN, 25), (3, 50))[0] is Answer.DATA
    assert _reason(source, TableGrid(UNEVEN, 25)).startswith("a block of 25 columns spans 2 different scales")


def test_grid_of_a_plugin():
    class Lattice(Grid):
        levels, block_size, scale_dtype = 4, 8, "f16"
        fit = encode = quantized = None

    Lattice.__abstractmethods__ = frozenset()
    assert foresee(FOUR, Lattice(), (4, 32))[0] is Answer.DATA
    assert "its own plugin" in _reason(_full(FOUR), Lattice())

    class Together(AffineGrid):
        independent = False

        def validate(self, quantized):
            super().validate(quantized)
            if len(quantized.scale.unique()) > 1:
                raise ConfigError("scale", "several", "the same everywhere")

    assert foresee(FOUR, Together(8, 32), (4, 32))[0] is Answer.DATA
    assert _reason(_full(FOUR), Together(8, 32)) == "scale: found 'several'; expected the same everywhere"
    same = replace(_full(FOUR), scale=torch.ones_like(_full(FOUR).scale))
    assert torch.equal(represent(same, Together(8, 32)).dequantize(), same.dequantize())


def test_nothing_is_modified():
    source = _full(replace(ROW4, scale_dtype="f32"))
    before = [part.clone() for part in (source.codes, source.scale)]
    represent(source, AffineGrid(5, 32, scale_dtype="f32", zero=20))
    for old, new in zip(before, (source.codes, source.scale), strict=True):
        assert torch.equal(old, new)


def test_import_is_light(tmp_path):
    import subprocess

    script = "import sys, qformats.exact; sys.exit(sorted({'torch', 'numba'} & set(sys.modules)) or 0)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
