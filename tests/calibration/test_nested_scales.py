"""Scales that are products of two stored numbers: GPTQ against exactly those, fitted among those, never worse."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import qformats
from qformats import AffineGrid, GridParams
from qformats.errors import ConfigError, ShapeError
from qformats.numbers import NestedScales
from qformats.testing.weights import hard_weights
from qformats_gptq.algorithm import Method, solve
from qformats_gptq.algorithm import layer as layers
from qformats_gptq.algorithm.fit import fit
from qformats_gptq.algorithm.hessian import factor
from qformats_gptq.algorithm.lattice_cpu import choose
from qformats_gptq.algorithm.layer import solve_layer
from qformats_gptq.algorithm.refine import refit

TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")


def _grid(name):
    return qformats.packer(f"gguf:{name}").grid


def _layer(rows=24, columns=512, tokens=1500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    weight *= torch.rand(columns // 32, generator=generator).repeat_interleave(32) + 0.3
    inputs = torch.randn(tokens, columns, generator=generator)
    inputs = inputs @ torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs += inputs.roll(1, 1)
    inputs[:, 3] *= 20
    return weight, inputs.T @ inputs / tokens


def _loss(error, second):
    error, second = error.double(), second.double()
    return float(((error @ second) * error).sum())


def _gptq(weight, hessian, scale, minimum, units):
    """GPTQ as published, in numpy and float64: each column to the nearest level, the others updated by inv(H)."""
    inverse = np.linalg.inv(hessian)
    left, codes = weight.astype(np.float64).copy(), np.zeros(weight.shape, int)
    for i in range(weight.shape[1]):
        levels = scale[:, i, None] * units + minimum[:, i, None]
        codes[:, i] = np.abs(levels - left[:, i, None]).argmin(1)
        error = left[:, i] - np.take_along_axis(levels, codes[:, i, None], 1)[:, 0]
        left -= np.outer(error / inverse[i, i], inverse[i])
        inverse = inverse - np.outer(inverse[:, i], inverse[i]) / inverse[i, i]
        inverse[i, i] = 1.0
    return codes


@pytest.mark.parametrize("odd", ["ordinary", "zero columns", "a dead input", "whole numbers"])
@pytest.mark.parametrize("name", [*TYPES, "iq4_nl"])
def test_codes_are_those_of_gptq_on_the_stored_scales(name, odd):
    """Whatever the scales, they are known before the first code is chosen, as stored: a slow GPTQ finds the same."""
    grid = _grid(name)
    weight, second = _layer(rows=4, columns=256)
    if odd == "zero columns":
        weight[:, 40:80] = 0
    if odd == "a dead input":
        second[7] = second[:, 7] = 0
        weight[:, 7] = 0
    if odd == "whole numbers":
        # Correlated by halves, in blocks that hold few values: targets lie where levels do, or halfway between.
        weight = (weight * 200).round()
    hessian = factor(second, 0.01, reorder=False)
    found = solve(weight, grid, hessian, Method(reorder=False, rounds=0))
    form = found.quantized
    columns = form.block_size[1]
    scale = form.scale.repeat_interleave(columns, 1).double().numpy()
    minimum = np.zeros_like(scale)
    if form.minimum is not None:
        minimum = form.minimum.repeat_interleave(columns, 1).double().numpy()
    codes = np.arange(grid.levels)
    units = codes - float(form.zero_point) if form.codebook is None else form.codebook.double().numpy()
    theirs = _gptq(weight.numpy(), hessian.matrix.double().numpy(), scale, minimum, units)
    values = scale * units[theirs] + minimum
    ours = form.dequantize().double().numpy()
    same = np.isclose(values, ours, rtol=1e-6, atol=1e-9)
    # A target between two levels may fall to either side in float32, and all later columns of that row follow.
    assert same.all(1).sum() >= 3, same.mean(1)
    assert same.mean() > 0.8


@pytest.mark.parametrize("name", TYPES)
def test_scales_are_stored_ones_and_each_part_helps(name):
    packer, grid = qformats.packer(f"gguf:{name}"), _grid(name)
    weight, second = _layer(seed=1)
    hessian = factor(second, 0.01, reorder=True)
    losses = {}
    for label, method in {
        "alone": Method(search=False, rounds=0),
        "searched": Method(rounds=0),
        "all": Method(),
    }.items():
        found = solve(weight, grid, hessian, method)
        grid.validate(found.quantized)
        packed = packer.pack(found.quantized)
        assert torch.equal(packed.dequantize(), found.quantized.dequantize())
        losses[label] = found.loss
        error = hessian.ordered(weight - found.quantized.dequantize())
        assert found.loss == pytest.approx(_loss(error, hessian.matrix), rel=1e-3)
    plain = _loss(hessian.ordered(grid.quantize(weight).dequantize() - weight), hessian.matrix)
    weighed = grid.quantize(weight, second.diagonal()).dequantize()
    assert losses["all"] < losses["searched"] < losses["alone"] < plain
    assert losses["all"] < 0.75 * _loss(hessian.ordered(weighed - weight), hessian.matrix)


@pytest.mark.parametrize("trials", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_scales_fitted_to_codes_never_add_to_the_error(name, trials):
    grid = _grid(name)
    generator = torch.Generator().manual_seed(5)
    for seed in range(3):
        weight, second = _layer(rows=12, seed=seed)
        params = fit(grid, weight, second.diagonal(), search=seed != 1)
        codes = grid.encode(weight, params)
        if seed == 2:
            codes = torch.randint(0, grid.levels, codes.shape, generator=generator).to(torch.uint8)
        better = refit(grid, params, weight, codes.float(), second, None, trials=trials)
        before, after = (grid.decode(codes, each) - weight for each in (params, better))
        old, new = ((error.double() @ second.double()) * error.double() for error in (before, after))
        assert bool((new.sum(1) <= old.sum(1) * (1 + 1e-6)).all())
        assert float(new.sum()) < float(old.sum())
        grid.validate(grid.quantized(codes, better))


def _quadratic(blocks, minimum, seed):
    random = np.random.default_rng(seed)
    size = blocks * (2 if minimum else 1)
    parts = random.normal(size=(3 * size, size))
    matrix = (parts.T @ parts).astype(np.float32)
    wanted = random.uniform(0.2, 1.0, size) * np.where(np.arange(size) < blocks, 1.0, -0.5)
    return matrix, wanted, random


def test_products_beside_an_exhaustive_search():
    """Three blocks with five steps each: every combination of inner numbers, each with the best outer number."""
    steps = np.arange(5, dtype=np.float64)
    ratios = []
    for seed in range(40):
        matrix, wanted, _ = _quadratic(3, False, seed)
        pull = matrix.astype(np.float64) @ wanted
        least = 0.0
        for inner in itertools.product(steps, repeat=3):
            inner = np.array(inner)
            curve = inner @ matrix.astype(np.float64) @ inner
            if curve > 0:
                least = min(least, -((inner @ pull) ** 2) / curve)
        outers, inners = np.zeros((1, 1), np.float32), np.zeros((1, 3), np.float32)
        arguments = matrix[None], pull[None].astype(np.float32), "f32", (steps, steps), outers, inners
        gain = choose(*arguments, trials=True)
        total = wanted @ matrix @ wanted
        product = (outers * inners)[0].astype(np.float64)
        told = product @ matrix @ product - 2 * pull @ product
        assert told == pytest.approx(-gain[0], rel=1e-4)
        ratios.append((total + told) / max(total + least, 1e-12))
    assert min(ratios) > 0.999
    assert np.median(ratios) < 1.001
    assert np.mean(np.array(ratios) < 1.1) > 0.8


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_outer_numbers_are_of_their_dtype_and_threads_change_nothing(dtype):
    steps, low = np.arange(16, dtype=np.float64), np.arange(8, dtype=np.float64)
    found = []
    for threads in (1, 3):
        matrices, pulls = [], []
        for seed in range(200):
            matrix, wanted, _ = _quadratic(4, True, seed)
            matrices.append(matrix)
            pulls.append(matrix @ wanted)
        outers, inners = np.full((200, 2), (0.1, -0.1), np.float32), np.zeros((200, 8), np.float32)
        pull = np.array(pulls, np.float32)
        gains = choose(
            np.array(matrices), pull, dtype, (steps, low), outers, inners, trials=True, threads=threads
        )
        assert (gains > 0).all()
        stored = torch.from_numpy(outers).to(
            {"f32": torch.float32, "f16": torch.half, "bf16": torch.bfloat16}[dtype]
        )
        assert torch.equal(stored.float(), torch.from_numpy(outers))
        assert np.isin(inners[:, :4], steps).all()
        assert np.isin(inners[:, 4:], low).all()
        found.append((outers, inners))
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@dataclass(frozen=True)
class _Foreign(AffineGrid):
    """A grid of another plugin: bfloat16 for four blocks, and one of nine powers of two for each."""

    independent = False

    def storable(self, values):
        return values

    def nested(self, params):
        scale = params.scale.view(params.scale.shape[0], -1, 4)
        steps = 2.0 ** torch.arange(-8, 1).float()
        outer = scale.amax(-1).to(torch.bfloat16).float()
        share = scale / torch.where(outer == 0, 1.0, outer)[..., None]
        inner = steps[(share[..., None] - steps).abs().argmin(-1)]
        return (NestedScales(outer, inner.view(params.scale.shape), steps, "bf16"),)

    def joined(self, nested):
        return GridParams(nested[0].values())

    def project(self, params):
        return self.joined(self.nested(params))

    def fit(self, weight, importance=None):
        return self.project(super().fit(weight, importance))


def test_grids_of_other_plugins_have_nested_scales_too():
    grid = _Foreign(4, 16, scale_dtype="f32")
    weight, second = _layer(seed=3)
    hessian = factor(second, 0.01, reorder=True)
    found = solve(weight, grid, hessian, Method())
    assert torch.equal(grid.project(found.params).scale, found.params.scale)
    plain = grid.quantize(weight).dequantize() - weight
    assert found.loss < 0.5 * _loss(hessian.ordered(plain), hessian.matrix)


@pytest.mark.parametrize("name", TYPES)
def test_parameters_come_back_from_their_products(name):
    grid = _grid(name)
    weight, _ = _layer(seed=4)
    params = grid.fit(weight)
    nested = grid.nested(params)
    assert len(nested) == (2 if params.minimum is not None else 1)
    back = grid.joined(nested)
    plain = GridParams(params.scale, params.zero_point, params.minimum)
    for found in (back, grid.joined(grid.nested(plain))):
        assert torch.equal(found.scale, params.scale)
        assert params.minimum is None or torch.equal(found.minimum, params.minimum)
    assert torch.equal(nested[0].values(), params.scale)
    assert all(bool(torch.isin(each.inner, each.steps).all()) for each in nested)


def test_rows_that_are_solved_apart_keep_their_stored_scales(monkeypatch):
    grid, packer = _grid("q4_k"), qformats.packer("gguf:q4_k")
    weight, second = _layer(rows=24)
    hessian = factor(second, 0.01, reorder=True)
    whole = solve_layer(weight, grid, hessian, Method(rounds=1))
    monkeypatch.setattr(layers, "_WEIGHTS", 8 * weight.shape[1])
    apart = solve_layer(weight, grid, hessian, Method(rounds=1))
    assert apart.quantized.parts.scales.shape == apart.quantized.scale.shape
    assert torch.equal(packer.pack(apart.quantized).dequantize(), apart.quantized.dequantize())
    assert apart.loss == pytest.approx(whole.loss, rel=1e-2)


def test_wrong_products_are_refused():
    with pytest.raises(ShapeError):
        NestedScales(torch.ones(2, 3), torch.ones(2, 8), torch.arange(4.0))
    with pytest.raises(ConfigError):
        NestedScales(torch.ones(2, 2), torch.ones(2, 8), torch.arange(4.0), "f64")
    with pytest.raises(ConfigError):
        NestedScales(torch.ones(2, 2), torch.ones(2, 8), torch.ones(2, 2))


@pytest.mark.parametrize("name", TYPES)
def test_weights_that_writers_stumble_over(name):
    """Zeros, outliers, one sign, next to nothing: never further off than plain rounding, and stored as they are."""
    packer, grid = qformats.packer(f"gguf:{name}"), _grid(name)
    _, second = _layer(columns=256)
    hessian = factor(second, 0.01, reorder=True)
    for told, weight in hard_weights((4, 256)):
        found = solve(weight, grid, hessian, Method())
        grid.validate(found.quantized)
        values = found.quantized.dequantize()
        assert torch.equal(packer.pack(found.quantized).dequantize(), values), told
        plain = grid.quantize(weight).dequantize() - weight
        errors = (hessian.ordered(error) for error in (values - weight, plain))
        ours, theirs = (_loss(error, hessian.matrix) for error in errors)
        assert ours <= theirs * (1 + 1e-4) + 1e-30, told
