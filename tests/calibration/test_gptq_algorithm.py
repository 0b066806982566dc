"""The algorithm against the textbook, AutoGPTQ and plain arithmetic, on layers of every kind."""

import itertools
import logging

import pytest
import torch
from oracles import auto_gptq_algorithm, package_folder

import qformats
from qformats import AffineGrid, TableGrid
from qformats.errors import NonFiniteError
from qformats_gptq.algorithm import Method, solve
from qformats_gptq.algorithm.fit import fit
from qformats_gptq.algorithm.hessian import factor
from qformats_gptq.algorithm.layer import solve_layer
from qformats_gptq.algorithm.levels import Levels
from qformats_gptq.algorithm.panel_cpu import panel
from qformats_gptq.algorithm.sweep import panel_of_torch, sweep

FORMATS = (
    "gguf:q4_0",
    "gguf:q4_1",
    "gguf:q5_0",
    "gguf:q5_1",
    "gguf:q8_0",
    "glm:int4",
    "glm:int8",
    "bitsandbytes:nf4",
    "bitsandbytes:fp4",
    "bitsandbytes:int8",
    "gptq:2bit-32g-asym",
    "gptq:3bit-32g",
    "gptq:4bit-128g",
    "gptq:4bit-32g-actorder",
    "gptq:8bit--1g-asym",
)


def _layer(rows=48, columns=256, tokens=1024, seed=0):
    """Weight and second moments of correlated inputs, one of them 30 times as large."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    inputs = torch.randn(tokens, columns, generator=generator)
    inputs = inputs @ torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs[:, 3] *= 30
    return weight, inputs, inputs.T @ inputs / tokens


def _loss(error, second):
    error, second = error.double(), second.double()
    return float(((error @ second) * error).sum())


def _textbook(weight, second, grid, params, damping):
    """GPTQ as published: after each column all later ones are updated, by the inverse of H in float64."""
    h = second.double().clone()
    h.diagonal().add_(damping * h.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    left = weight.double().clone()
    codes = torch.zeros_like(weight)
    for i in range(weight.shape[1]):
        here = left.float()
        codes[:, i] = grid.encode(here, params)[:, i].float()
        value = grid.decode(codes.to(torch.uint8), params)[:, i].double()
        left[:, i:] -= ((left[:, i] - value) / upper[i, i])[:, None] * upper[i, i:]
    return codes


@pytest.mark.parametrize(
    "grid",
    [
        AffineGrid(4, 32),
        AffineGrid(3, 0, kind="zero_point"),
        AffineGrid(4, 32, kind="minimum"),
        TableGrid((-1.0, -0.5, -0.1, 0.0, 0.2, 0.6, 1.0), 32),
    ],
    ids=["symmetric", "zero point", "minimum", "table"],
)
def test_the_first_pass_is_the_textbook_s(grid):
    weight, _, second = _layer(24, 160)
    params = grid.fit(weight)
    hessian = factor(second, 0.01, reorder=False)
    codes, errors = torch.zeros_like(weight), torch.zeros_like(weight)
    sweep(weight, Levels.of(grid, params, weight), hessian.root, codes, errors, first=True)
    expected = _textbook(weight, second, grid, params, 0.01)
    # float32 against float64: now and then a value next to a threshold falls to the other side, and a row diverges.
    rows = (codes == expected).all(1).float().mean()
    assert float(rows) > 0.9
    ratio = _loss(errors, second) / _loss(weight - grid.decode(expected.to(torch.uint8), params), second)
    assert abs(ratio - 1) < 0.01


def test_a_row_that_diverges_from_the_textbook_is_no_worse():
    """Rounding errors choose another code of the same distance, not another algorithm."""
    weight, _, second = _layer(64, 96, seed=4)
    grid = AffineGrid(2, 32)
    params = grid.fit(weight)
    codes, errors = torch.zeros_like(weight), torch.zeros_like(weight)
    hessian = factor(second, 0.01, reorder=False)
    sweep(weight, Levels.of(grid, params, weight), hessian.root, codes, errors, first=True)
    theirs = weight - grid.decode(_textbook(weight, second, grid, params, 0.01).to(torch.uint8), params)
    assert _loss(errors, second) < 1.01 * _loss(theirs, second)


@pytest.mark.parametrize("format", FORMATS)
def test_every_grid_gains_and_what_is_reported_is_true(format):
    packer = qformats.packer(format)
    weight, _, second = _layer(64, 256, seed=1)
    before = weight.clone(), second.clone()
    hessian = factor(second, 0.01, reorder=True)
    found = solve(weight, packer.grid, hessian, Method())
    assert torch.equal(weight, before[0])
    assert torch.equal(second, before[1])
    packer.grid.validate(found.quantized)
    values = packer.dequantize(packer.pack(found.quantized))
    assert torch.equal(values, found.quantized.dequantize())
    damped = second.clone()
    damped.diagonal().add_(0.01 * second.diagonal().mean())
    assert abs(found.loss / _loss(values - weight, damped) - 1) < 1e-3
    assert abs(found.signal / _loss(weight, damped) - 1) < 1e-3
    plain = packer.grid.quantize(weight).dequantize()
    assert _loss(values - weight, second) < 0.45 * _loss(plain - weight, second)


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:q4_1", "bitsandbytes:nf4", "gptq:3bit-32g-asym"])
def test_every_part_of_the_method_helps(format):
    grid = qformats.packer(format).grid
    weight, _, second = _layer(64, 256, seed=2)
    losses = []
    for method in (
        Method(reorder=False, search=False, rounds=0),
        Method(search=False, rounds=0),
        Method(rounds=0),
        Method(rounds=1),
        Method(rounds=8),
    ):
        losses.append(solve(weight, grid, factor(second, 0.01, reorder=method.reorder), method).loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("format", ["gguf:q5_0", "gguf:q5_1", "bitsandbytes:nf4", "gptq:2bit-32g-asym"])
def test_the_compiled_panel_does_what_the_one_in_torch_does(format):
    grid = qformats.packer(format).grid
    weight, _, second = _layer(33, 160, seed=3)
    levels = Levels.of(grid, grid.fit(weight), weight)
    root = factor(second, 0.01, reorder=False).root
    inner = (root / root.diagonal())[32:128, 32:128].triu(1).contiguous()
    results = []
    for run in (panel, panel_of_torch):
        target, codes = weight[:, 32:128].clone(), torch.zeros_like(weight)
        errors = torch.full_like(weight, 0.001)
        run(32, weight, target, levels.contiguous(), inner, codes, errors)
        results.append((codes, errors))
    (codes, errors), (expected, expected_errors) = results
    assert float((codes == expected).all(1).float().mean()) > 0.9
    same = codes == expected
    torch.testing.assert_close(errors[same], expected_errors[same])
    assert not codes[:, :32].any()
    assert not codes[:, 128:].any()


def test_against_auto_gptq():
    """The error of the layer's output is never above 1.01 times AutoGPTQ's."""
    theirs = auto_gptq_algorithm.load(package_folder("auto-gptq", "auto_gptq", "0.7.1"))
    weight, inputs, second = _layer(64, 256, seed=5)
    logging.disable(logging.WARNING)
    ratios = {}
    for bits, group, symmetric, order in itertools.product(
        (2, 3, 4, 8), (-1, 32, 128), (True, False), (False, True)
    ):
        reference = auto_gptq_algorithm.quantize(
            theirs,
            weight,
            inputs,
            bits=bits,
            group_size=group,
            symmetric=symmetric,
            order=order,
            damping=0.01,
        )
        for name in ("", "-actorder") if order else ("",):
            format = f"gptq:{bits}bit-{group}g{name}{'' if symmetric else '-asym'}"
            grid = qformats.packer(format).grid
            found = solve(weight, grid, factor(second, 0.01, reorder=order), Method(reorder=order))
            error = found.quantized.dequantize() - weight
            ratios[format, order] = _loss(error, second) / _loss(reference - weight, second)
    logging.disable(logging.NOTSET)
    assert max(ratios.values()) < 1.01, max(ratios, key=ratios.__getitem__)


def test_smaller_groups_are_more_accurate():
    """32 > 128 > 1024 > the whole row, on a layer that is wide enough for all of them to differ."""
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(16, 4096, generator=generator) * 0.02
    weight *= 1 + 3 * torch.rand(1, 128, generator=generator).repeat_interleave(32, 1)
    inputs = torch.randn(2048, 4096, generator=generator)
    second = inputs.T @ inputs / len(inputs)
    hessian = factor(second, 0.01, reorder=True)
    losses = [
        solve(weight, qformats.packer(f"gptq:4bit-{group}g").grid, hessian, Method(rounds=1)).loss
        for group in (32, 128, 1024, -1)
    ]
    assert losses == sorted(losses)
    assert len(set(losses)) == 4


def test_reordered_columns_come_with_their_groups():
    packer = qformats.packer("gptq:4bit-32g-actorder")
    weight, _, second = _layer(32, 128, seed=7)
    found = solve(weight, packer.grid, factor(second, 0.01, reorder=True), Method()).quantized
    order = second.diagonal().argsort(descending=True, stable=True)
    assert torch.equal(found.g_idx[order], torch.arange(128, dtype=torch.int32) // 32)
    in_order = solve(
        weight, packer.grid, factor(second, 0.01, reorder=False), Method(reorder=False)
    ).quantized
    assert in_order.g_idx is None


def test_blocks_that_straddle_rows():
    packer = qformats.packer("bitsandbytes:nf4")
    weight, _, second = _layer(7, 96, seed=8)
    found = solve(weight, packer.grid, factor(second, 0.01, reorder=True), Method())
    assert found.quantized.block_size == (0, 64)
    plain = packer.grid.quantize(weight).dequantize()
    assert _loss(found.quantized.dequantize() - weight, second) < 0.6 * _loss(plain - weight, second)


def test_short_last_groups():
    packer = qformats.packer("gptq:4bit-128g")
    weight, _, second = _layer(32, 160, seed=9)
    found = solve(weight, packer.grid, factor(second, 0.01, reorder=True), Method())
    assert found.quantized.scale.shape == (32, 2)
    packer.grid.validate(found.quantized)


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:q4_1", "bitsandbytes:nf4", "gptq:4bit-32g-asym"])
def test_odd_weights(format):
    grid = qformats.packer(format).grid
    _, _, second = _layer(6, 64, seed=10)
    hessian = factor(second, 0.01, reorder=True)
    one_spike = torch.zeros(4, 64)
    one_spike[1, 5] = 3.0
    for weight, tolerance in (
        (torch.zeros(4, 64), 0.0),
        (torch.full((4, 64), 0.25), 0.05),
        (torch.full((4, 64), -1e4), 500.0),
        (torch.full((4, 64), 1e-6), 1e-6),
        (one_spike, 0.5),
        (torch.arange(64.0).repeat(1, 1) % 2 * 2 - 1, 0.2),
    ):
        found = solve(weight, grid, hessian, Method()).quantized
        grid.validate(found)
        assert float((found.dequantize() - weight).abs().max()) <= tolerance


def test_dead_inputs_get_no_weight_and_cost_nothing():
    weight, inputs, _ = _layer(16, 64, seed=11)
    inputs[:, [0, 9, 40]] = 0
    second = inputs.T @ inputs / len(inputs)
    hessian = factor(second, 0.01, reorder=True)
    assert hessian.dead.nonzero().flatten().tolist() == [0, 9, 40]
    grid = AffineGrid(4, 32)
    values = solve(weight, grid, hessian, Method()).quantized.dequantize()
    assert not values[:, [0, 9, 40]].any()
    assert _loss(values - weight, second) < _loss(grid.quantize(weight).dequantize() - weight, second)
    silent = factor(torch.zeros(64, 64), 0.01, reorder=True)
    assert bool(silent.dead.all())
    grid.validate(solve(weight, grid, silent, Method()).quantized)


def test_fewer_tokens_than_inputs_and_one_token():
    weight, inputs, _ = _layer(16, 64, seed=12)
    for tokens in (1, 20):
        second = inputs[:tokens].T @ inputs[:tokens] / tokens
        grid = AffineGrid(4, 32)
        found = solve(weight, grid, factor(second, 0.01, reorder=True), Method())
        assert found.quantized.dequantize().isfinite().all()


def test_damping_is_raised_until_the_factor_exists():
    weight, _, second = _layer(16, 64, seed=13)
    broken = second - 1.5 * torch.linalg.eigvalsh(second)[10] * torch.eye(64)
    assert factor(second, 0.01, reorder=True).damping == 0.01
    hessian = factor(broken, 1e-6, reorder=True)
    assert hessian.damping >= 0.01
    AffineGrid(4, 32).validate(solve(weight, AffineGrid(4, 32), hessian, Method()).quantized)
    # Nothing but its diagonal is left of a matrix that is far from positive.
    hopeless = torch.full((64, 64), 1e6)
    hopeless.diagonal().fill_(1.0)
    assert torch.equal(factor(hopeless, 0.01, reorder=False).matrix.triu(1), torch.zeros(64, 64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_that_are_not_finite_are_refused(bad):
    _, _, second = _layer(4, 64)
    second[7, 7] = bad
    with pytest.raises(NonFiniteError, match="second moment of input 7"):
        factor(second, 0.01, reorder=True)


def test_parts_of_the_hessian():
    _, _, second = _layer(4, 96, seed=14)
    hessian = factor(second, 0.02, reorder=True)
    damped = second.double()
    damped.diagonal().add_(0.02 * second.double().diagonal().mean())
    damped = damped[hessian.order][:, hessian.order]
    torch.testing.assert_close(hessian.matrix.double(), damped, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((hessian.root @ hessian.root.T).double(), damped, rtol=1e-4, atol=1e-5)
    inverse = torch.linalg.inv(damped)
    torch.testing.assert_close(hessian.importance.double(), 1 / inverse.diagonal(), rtol=1e-3, atol=1e-6)
    values = torch.randn(3, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        hessian.solve(values).double(), values.double() @ inverse, rtol=1e-2, atol=1e-3
    )
    assert torch.equal(hessian.restored(hessian.ordered(values)), values)


def test_the_same_input_gives_the_same_bytes():
    packer = qformats.packer("gguf:q4_0")
    weight, _, second = _layer(64, 256, seed=15)
    packed = [
        packer.pack(solve(weight, packer.grid, factor(second, 0.01, reorder=True), Method()).quantized)
        for _ in range(2)
    ]
    assert torch.equal(packed[0].fields["blocks"], packed[1].fields["blocks"])


def test_the_search_uses_the_sign_of_a_scale_where_the_format_stores_one():
    weight, _, _ = _layer(64, 256, seed=16)
    importance = torch.ones(256)
    assert bool((fit(qformats.packer("gguf:q4_0").grid, weight, importance, search=True).scale < 0).any())
    assert not bool(
        (fit(qformats.packer("gptq:4bit-32g").grid, weight, importance, search=True).scale < 0).any()
    )


@pytest.mark.parametrize("format", ["gguf:q4_1", "gptq:4bit-32g-actorder-asym", "bitsandbytes:nf4-dq"])
def test_rows_are_solved_a_few_at_a_time(format, monkeypatch):
    """The same codes as for all rows at once, but for sums in another order; shared scales keep rows together."""
    weight, _, second = _layer(50)
    drift = 0.01 * second.roll(1, 0)
    grid = qformats.packer(format).grid
    hessian = factor(second, 0.01, reorder=True)
    whole = solve_layer(weight, grid, hessian, Method(rounds=0), drift)
    monkeypatch.setattr("qformats_gptq.algorithm.layer._WEIGHTS", 7 * 256)
    parts = solve_layer(weight, grid, hessian, Method(rounds=0), drift)
    grid.validate(parts.quantized)
    same = parts.quantized.dequantize() == whole.quantized.dequantize()
    assert float(same.float().mean()) > 0.99
    assert parts.loss == pytest.approx(whole.loss, rel=1e-2)
    assert parts.signal == pytest.approx(whole.signal, rel=1e-5)
    without = solve_layer(weight, grid, hessian, Method(rounds=0))
    assert not torch.equal(without.quantized.codes, parts.quantized.codes)
