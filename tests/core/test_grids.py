"""Generic grids against brute force: which value is nearest, what a fit may cost, what lies off the grid."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from qformats.errors import ConfigError, NonFiniteError, ShapeError
from qformats.numbers.affine import AffineGrid
from qformats.numbers.grid import GridParams
from qformats.numbers.table import TableGrid

TABLE = (-1.0, -0.7, -0.5, -0.4, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0)

GRIDS = {
    "symmetric 4": AffineGrid(4, 16),
    "symmetric 8, row": AffineGrid(8, 0),
    "symmetric 2": AffineGrid(2, 8),
    "without the lowest": AffineGrid(4, 16, low=1),
    "off centre": AffineGrid(4, 16, zero=5),
    "zero point 4": AffineGrid(4, 16, kind="zero_point"),
    "zero point 3, f32": AffineGrid(3, 8, kind="zero_point", scale_dtype="f32"),
    "minimum 4": AffineGrid(4, 16, kind="minimum"),
    "minimum 5, bf16, row": AffineGrid(5, 0, kind="minimum", scale_dtype="bf16"),
    "minimum 1": AffineGrid(1, 8, kind="minimum", scale_dtype="f32"),
    "table": TableGrid(TABLE, 16),
    "table, f16": TableGrid(TABLE, 0, scale_dtype="f16"),
    "table of unequal sides": TableGrid((-0.3, 0.0, 0.1, 2.0), 8),
}


@pytest.fixture(params=GRIDS)
def grid(request):
    return GRIDS[request.param]


def _generator(seed=11):
    return torch.Generator().manual_seed(seed)


def _weights():
    """Rows that round in different ways."""
    normal = torch.randn(12, 48, generator=_generator())
    return torch.cat(
        [
            normal * 0.03,
            normal.abs() + 5,
            -normal.abs() * 1000,
            normal * 10.0 ** torch.linspace(-7, 4, 12)[:, None],
            torch.randint(-8, 9, (12, 48), generator=_generator()) / 2,
            torch.zeros(1, 48),
            torch.full((1, 48), 0.125),
            torch.full((1, 48), -3e-3),
            torch.full((1, 48), 1e-30),
            torch.eye(48)[5:7] * torch.tensor([[2.5], [-1e-6]]),
        ]
    )


def _values_of_all_codes(grid, params, shape):
    """float64 ``(codes, N, K)``: what each code would stand for at each place, by the formula."""
    columns = grid.block_size or shape[1]
    spread = [
        None if part is None else np.repeat(part.double().numpy(), columns, 1)
        for part in (params.scale, params.zero_point, params.minimum)
    ]
    scale, zero, minimum = spread
    if isinstance(grid, TableGrid):
        levels = np.float32(grid.codebook).astype(np.float64)[:, None, None]
    else:
        codes = np.arange(grid.low, grid.levels, dtype=np.float64)[:, None, None]
        levels = codes - (zero if zero is not None else grid.center if grid.kind == "symmetric" else 0)
    values = (scale * levels).astype(np.float32)
    if minimum is not None:
        values = (values + minimum.astype(np.float32)).astype(np.float32)
    return values.astype(np.float64)


def test_encode_finds_the_nearest_value(grid):
    weight = _weights()
    before = weight.clone()
    params = grid.fit(weight)
    codes = grid.encode(weight, params)
    assert codes.dtype == torch.uint8
    values = _values_of_all_codes(grid, params, weight.shape)
    exact = weight.double().numpy()
    distance = np.abs(values - exact)
    decoded = grid.decode(codes, params).double().numpy()
    # The code is found by a division, which is off by a few float32 steps of the weight (and of the minimum).
    slack = 4 * 2.0**-23 * np.maximum(np.abs(exact), np.abs(values).max(0))
    excess = np.abs(decoded - exact) - distance.min(0)
    assert (excess <= slack).all(), f"{(excess > slack).sum()} codes are not the nearest"
    # decode is one of the values, bit for bit.
    assert (decoded[None] == values).any(0).all()
    assert torch.equal(weight, before)


def test_values_of_the_grid_stay_where_they_are(grid):
    """Encoding what a code decodes to gives that value again: rounding is idempotent."""
    params = grid.fit(_weights())
    once = grid.decode(grid.encode(_weights(), params), params)
    assert torch.equal(grid.decode(grid.encode(once, params), params), once)


def test_parameters_are_storable(grid):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[grid.scale_dtype]
    params = grid.fit(_weights())
    for part in (params.scale, params.minimum):
        if part is not None:
            assert torch.equal(part.to(dtype).float(), part)
    if params.zero_point is not None:
        assert params.zero_point.dtype == torch.int32
        assert params.zero_point.min() >= 0
        assert params.zero_point.max() < grid.levels
    grid.validate(grid.quantize(_weights()))


def test_fit_covers_the_range():
    """Half a step is the largest error where scales are exact."""
    weight = torch.randn(20, 64, generator=_generator())
    for kind in ("symmetric", "zero_point", "minimum"):
        grid = AffineGrid(4, 16, kind=kind, scale_dtype="f32")
        params = grid.fit(weight)
        error = (grid.decode(grid.encode(weight, params), params) - weight).abs()
        step = params.scale.repeat_interleave(16, 1)
        # A rounded zero point shifts the range by up to half a step; the ends are clipped by as much.
        limit = 1.0 if kind == "zero_point" else 0.5
        assert (error <= step * limit * (1 + 1e-5)).all()


def test_an_importance_weighted_fit_is_never_worse(grid):
    weight = _weights()
    for seed in range(3):
        importance = torch.rand(weight.shape[1], generator=_generator(seed)).pow(6)
        plain, weighted = grid.fit(weight), grid.fit(weight, importance)

        def loss(params, importance=importance):
            error = grid.decode(grid.encode(weight, params), params).double() - weight.double()
            return grid.blocks(importance * error.square()).sum(-1)

        before, after = loss(plain), loss(weighted)
        assert (after <= before * (1 + 1e-5)).all()
        assert after.sum() < before.sum() * 0.999
        full = grid.fit(weight, importance.expand_as(weight).contiguous())
        assert torch.equal(full.scale, weighted.scale)


def test_an_importance_that_sees_one_column_fits_that_column():
    weight = torch.randn(8, 16, generator=_generator())
    weight[:, 0] = 4.0
    importance = torch.zeros(16)
    importance[3] = 1.0
    grid = AffineGrid(3, 16, scale_dtype="f32")
    plain, fitted = grid.quantize(weight), grid.quantize(weight, importance)
    errors = [(q.dequantize() - weight)[:, 3].abs().mean() for q in (fitted, plain)]
    assert errors[0] < errors[1] / 4


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.75, 1e-8, -1e-8, 1e-40, -1e-45])
def test_constant_rows(grid, value):
    weight = torch.full((2, 48), value)
    quantized = grid.quantize(weight)
    got = quantized.dequantize()
    assert got.isfinite().all()
    assert (got == got[0, 0]).all()
    scale = {"f16": 2.0**-24, "bf16": 2.0**-133, "f32": 2.0**-149}[grid.scale_dtype]
    if value == 0:
        assert (got == 0).all()
    elif grid.block_size and isinstance(grid, AffineGrid) and grid.kind == "minimum" and scale <= abs(value):
        assert got[0, 0].item() == pytest.approx(value, rel=2**-8, abs=scale)
    assert (got - weight).abs().max() <= max(abs(value), scale * 128)


@pytest.mark.parametrize("largest", [3e38, -3e38])
def test_huge_rows_are_refused_or_held(grid, largest):
    weight = torch.zeros(3, 48)
    weight[1, 5] = largest
    if grid.scale_dtype == "f16":
        with pytest.raises(NonFiniteError, match=r"1 of \d+ blocks need a scale beyond f16.* at index 53"):
            grid.quantize(weight)
        return
    got = grid.quantize(weight).dequantize()
    # The side of a table that does not reach as far as the other is cut off, as documented.
    cut = 0.15 if isinstance(grid, TableGrid) and grid.codebook[0] == -0.3 and largest < 0 else 1
    assert got[1, 5].item() == pytest.approx(largest * cut, rel=2**-7)
    assert got[0].abs().max() == 0


def test_huge_differences_overflow_loudly():
    weight = torch.zeros(1, 16)
    weight[0, 0], weight[0, 1] = 3e38, -3e38
    grid = AffineGrid(4, 16, kind="minimum", scale_dtype="f32")
    with pytest.raises(
        NonFiniteError, match=r"1 of 1 blocks need a scale beyond f32; the largest weight is 3e\+38"
    ):
        grid.quantize(weight)


@pytest.mark.parametrize("shape", [(4, 40), (4, 8), (48,), (2, 3, 16), (4, 0)])
def test_rows_that_are_no_whole_blocks_are_refused(shape):
    for grid in (AffineGrid(4, 16), TableGrid(TABLE, 16)):
        with pytest.raises(ShapeError, match=r"weight.*a multiple of 16"):
            grid.quantize(torch.zeros(shape))


def test_no_rows_at_all(grid):
    quantized = grid.quantize(torch.zeros(0, 48))
    assert quantized.dequantize().shape == (0, 48)
    grid.validate(quantized)


def test_project_gives_the_nearest_storable_parameters():
    scale = torch.tensor([[0.1, 1e-9], [3.00001, 65519.0]])
    grid = AffineGrid(4, 8, kind="zero_point")
    projected = grid.project(GridParams(scale, zero_point=torch.tensor([[-3.2, 7.4], [7.6, 99.0]])))
    assert torch.equal(projected.scale, scale.half().float())
    assert projected.zero_point.tolist() == [[0, 7], [8, 15]]
    again = grid.project(projected)
    assert torch.equal(again.scale, projected.scale)
    assert torch.equal(again.zero_point, projected.zero_point)
    minimum = AffineGrid(4, 8, kind="minimum").project(GridParams(scale, minimum=-scale))
    assert torch.equal(minimum.minimum, -scale.half().float())
    assert torch.equal(TableGrid(TABLE, 8, "f16").project(GridParams(scale)).scale, scale.half().float())


def test_projected_parameters_encode_and_pack(grid):
    """What a quantizer finds by itself, however odd, ends on the grid once it is projected."""
    weight = torch.randn(6, 48, generator=_generator())
    shape = (6, 48 // (grid.block_size or 48))
    wild = GridParams(
        torch.rand(shape, generator=_generator()) * 0.3 + 1e-3,
        zero_point=torch.randn(shape, generator=_generator()) * 20,
        minimum=torch.randn(shape, generator=_generator()),
    )
    if not (isinstance(grid, AffineGrid) and grid.kind == "zero_point"):
        wild = replace(wild, zero_point=None)
    if not (isinstance(grid, AffineGrid) and grid.kind == "minimum"):
        wild = replace(wild, minimum=None)
    params = grid.project(wild)
    grid.validate(grid.quantized(grid.encode(weight, params), params))


def _spoil(grid, **changes):
    quantized = grid.quantize(torch.randn(4, 48, generator=_generator()))
    return replace(quantized, **{key: change(quantized) for key, change in changes.items()})


def _set(tensor, value):
    changed = tensor.clone()
    changed[-1, -1] = value
    return changed


EVERYWHERE = {
    "code too large": ("codes", {"codes": lambda q: _set(q.codes.short(), 256)}),
    "negative code": ("codes", {"codes": lambda q: _set(q.codes.short(), -1)}),
    "infinite scale": ("scale", {"scale": lambda q: _set(q.scale.float(), math.inf)}),
    "scale that is NaN": ("scale", {"scale": lambda q: _set(q.scale.float(), math.nan)}),
}


@pytest.mark.parametrize("case", EVERYWHERE)
def test_off_the_grid(grid, case):
    name, changes = EVERYWHERE[case]
    with pytest.raises(ConfigError, match=f"^{name}: "):
        grid.validate(_spoil(grid, **changes))


@pytest.mark.parametrize("name", [name for name, grid in GRIDS.items() if grid.scale_dtype != "f32"])
def test_scales_that_storing_would_round_are_refused(name):
    grid = GRIDS[name]
    with pytest.raises(
        ConfigError, match=r"scale: found 1 values that rounding would change, such as 0\.333"
    ):
        grid.validate(_spoil(grid, scale=lambda q: _set(q.scale.float(), 1 / 3)))
    if isinstance(grid, AffineGrid) and grid.kind == "minimum":
        with pytest.raises(ConfigError, match=r"^minimum: .*rounding would change"):
            grid.validate(_spoil(grid, minimum=lambda q: _set(q.minimum.float(), 1 / 3)))


def test_other_blocks_are_refused():
    quantized = AffineGrid(4, 16).quantize(torch.randn(4, 48, generator=_generator()))
    with pytest.raises(ConfigError, match=r"block_size.*\(1, 16\).*\(1, 8\)"):
        AffineGrid(4, 8).validate(quantized)
    with pytest.raises(ConfigError, match=r"block_size"):
        AffineGrid(4, 0).validate(quantized)
    order = torch.arange(48, dtype=torch.int32) // 16
    with pytest.raises(ConfigError, match=r"reordered columns"):
        AffineGrid(4, 16).validate(replace(quantized, g_idx=order))


def test_a_short_last_block_is_refused():
    quantized = AffineGrid(4, 16).quantize(torch.randn(4, 48, generator=_generator()))
    short = replace(quantized, codes=quantized.codes[:, :40].contiguous())
    assert short.dequantize().shape == (4, 40)
    with pytest.raises(ShapeError, match=r"\(4, 40\).*a multiple of 16"):
        AffineGrid(4, 16).validate(short)


def test_another_kind_of_grid_is_refused():
    """Fields that a packer would leave out must not change the values."""
    weight = torch.randn(4, 48, generator=_generator())
    kinds = {kind: AffineGrid(4, 16, kind=kind) for kind in ("symmetric", "zero_point", "minimum")}
    table = TableGrid(TABLE, 16, "f16")
    for kind, grid in {**kinds, "table": table}.items():
        for other, target in {**kinds, "table": table}.items():
            quantized = grid.quantize(weight)
            # The fixed zero point of a symmetric grid is also an integer zero point.
            if kind == other or (kind, other) == ("symmetric", "zero_point"):
                target.validate(quantized)
            else:
                with pytest.raises(ConfigError, match=r"zero_point|minimum|codebook"):
                    target.validate(quantized)


def test_zero_points_off_the_grid_are_refused():
    symmetric, free = AffineGrid(4, 16), AffineGrid(4, 16, kind="zero_point")
    quantized = symmetric.quantize(torch.randn(4, 48, generator=_generator()))
    eights = torch.full((4, 3), 8.0)
    symmetric.validate(replace(quantized, zero_point=eights))
    for wrong in (7, 8.5, _set(eights, 9)):
        with pytest.raises(ConfigError, match=r"^zero_point: found \d+\.\d; expected 8\.$"):
            symmetric.validate(replace(quantized, zero_point=wrong))
    for wrong in (16, -1, 7.5, _set(eights, 7.5), _set(eights, math.nan)):
        with pytest.raises(ConfigError, match=r"^zero_point: .*whole numbers in \[0, 15\]"):
            free.validate(replace(quantized, zero_point=wrong))


def test_another_table_is_refused():
    quantized = TableGrid(TABLE, 16).quantize(torch.randn(4, 48, generator=_generator()))
    moved = TableGrid((*TABLE[:-1], 1.5), 16)
    with pytest.raises(ConfigError, match=r"^codebook: "):
        moved.validate(quantized)
    with pytest.raises(ConfigError, match=r"^codebook: "):
        TableGrid(TABLE[1:], 16).validate(replace(quantized, codes=quantized.codes.clamp(max=14)))
    with pytest.raises(ConfigError, match=r"^minimum: "):
        TableGrid(TABLE, 16).validate(replace(quantized, minimum=torch.zeros_like(quantized.scale)))


SENSELESS = [
    ("bits", AffineGrid, (0, 16), {}),
    ("bits", AffineGrid, (9, 16), {}),
    ("block_size", AffineGrid, (4, -1), {}),
    ("kind", AffineGrid, (4, 16), {"kind": "affine"}),
    ("zero", AffineGrid, (4, 16), {"zero": 15}),
    ("zero", AffineGrid, (4, 16), {"zero": 0}),
    ("zero", AffineGrid, (4, 16), {"low": 8}),
    ("zero", AffineGrid, (1, 16), {}),
    ("codebook", TableGrid, ((1.0,), 16), {}),
    ("codebook", TableGrid, ((), 16), {}),
    ("codebook", TableGrid, ((0.0, 0.0, 1.0), 16), {}),
    ("codebook", TableGrid, ((1.0, 0.0), 16), {}),
    ("codebook", TableGrid, ((0.0, math.inf), 16), {}),
    ("codebook", TableGrid, ((0.0, math.nan), 16), {}),
    ("codebook", TableGrid, ((1.0, 1.0 + 1e-12), 16), {}),
    ("codebook", TableGrid, (tuple(map(float, range(257))), 16), {}),
    ("scale_dtype", AffineGrid, (4, 16), {"scale_dtype": "float16"}),
    ("scale_dtype", TableGrid, (TABLE, 16), {"scale_dtype": "u8"}),
    ("block_size", TableGrid, (TABLE, -16), {}),
]


@pytest.mark.parametrize(("key", "kind", "args", "more"), SENSELESS)
def test_grids_that_make_no_sense_are_refused(key, kind, args, more):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        kind(*args, **more)
