"""Bytes of K-quants, iq4_nl and iq4_xs against ggml's C code, with and without an importance matrix."""

import math

import numpy as np
import pytest
import torch
from oracles import ggml

import qformats
from qformats import PackedTensor
from qformats.errors import ConfigError, NonFiniteError, ShapeError
from qformats.interfaces.rows import cut, pick
from qformats_gguf.superblocks import bytes as blockwise
from qformats_gguf.superblocks.layout import LAYOUTS
from qformats_gguf.superblocks.search import search

NAMES = tuple(LAYOUTS)
TWO_LEVEL = tuple(name for name in NAMES if LAYOUTS[name].two_level)
COLUMNS = 768


def _rng():
    return np.random.default_rng(31)


def _rows(exponents):
    low, high = exponents
    rng = _rng()
    return rng.standard_normal((37, COLUMNS)) * 2.0 ** rng.integers(low, high, (37, 1))


def _one_hot():
    weight = np.zeros((37, COLUMNS))
    weight[np.arange(37), np.arange(37) * 19 % COLUMNS] = np.resize([1.7, -0.3], 37)
    return weight


def _lattice(levels):
    """Whole multiples of a step per row, as dequantizing gives them."""
    rng = _rng()
    return rng.integers(-levels, levels, (37, COLUMNS)) * rng.uniform(1e-3, 0.1, (37, 1))


def _uneven():
    """Sub-blocks of very different sizes."""
    rng = _rng()
    return rng.standard_normal((37, COLUMNS)) * 2.0 ** rng.integers(-40, 4, (37, COLUMNS // 16)).repeat(16, 1)


INPUTS = {
    "normal": lambda: _rng().standard_normal((101, COLUMNS)) * 0.02,
    "heavy tails": lambda: _rng().standard_t(2, (101, COLUMNS)),
    "positive": lambda: np.abs(_rng().standard_normal((37, COLUMNS))),
    "negative": lambda: -np.abs(_rng().standard_normal((37, COLUMNS))),
    "offset": lambda: _rng().standard_normal((37, COLUMNS)) * 0.01 + 3,
    "constant": lambda: np.repeat([[1], [-1], [0.1], [-3e-5], [7e4], [1e-7], [1e-15], [-9e-16]], COLUMNS, 1),
    "zero": lambda: np.zeros((3, COLUMNS)),
    "negative zero": lambda: np.full((3, COLUMNS), -0.0),
    "some zeros": lambda: np.where(
        _rng().random((37, COLUMNS)) < 0.9, 0, _rng().standard_normal((37, COLUMNS))
    ),
    "tiny": lambda: _rows((-80, -10)),
    "nearly nothing": lambda: _rows((-150, -80)),
    "huge": lambda: _rows((10, 120)),
    "one hot": _one_hot,
    "lattice of 8": lambda: _lattice(8),
    "lattice of 64": lambda: _lattice(64),
    "uneven": _uneven,
    "one row": lambda: _rng().standard_normal((1, COLUMNS)),
}


def _importance(which):
    if which == "none":
        return None
    importance = (_rng().standard_normal(COLUMNS) ** 2).astype(np.float32)
    if which == "with zeros":
        importance[100:400] = 0
        importance[::7] = 0
    if which == "steep":
        importance *= (2.0 ** _rng().integers(-60, 30, COLUMNS)).astype(np.float32)
    return importance


def _input(case):
    with np.errstate(over="ignore", under="ignore"):
        weight = np.ascontiguousarray(INPUTS[case](), np.float32)
    assert np.isfinite(weight).all()
    return weight


def _kernel(name, weight, importance):
    """Blocks of a weight, and how many have scales beyond float16."""
    kind = LAYOUTS[name]
    count = weight.size // kind.block
    codes = np.full((count, kind.block), 0xA5, np.uint8)
    halves = np.zeros((count, 1 + kind.minimum), np.uint16)
    scales, minima = np.ones((count, kind.scales), np.int8), np.zeros((count, kind.scales), np.int8)
    given = None if importance is None else importance.reshape(1, -1, kind.block)
    beyond = search(kind, weight.reshape(count, kind.block), given, codes, halves, scales, minima)
    blocks = np.full((count, kind.size), 0xA5, np.uint8)
    blockwise.pack(kind, codes, halves, scales, minima, blocks)
    return blocks, beyond


@pytest.mark.parametrize("importance", ["none", "usual", "with zeros", "steep"])
@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_equal_c(name, case, importance):
    weight, weights = _input(case), _importance(importance)
    before = weight.copy()
    blocks, beyond = _kernel(name, weight, weights)
    expected = ggml.quantize(name, weight, weights).reshape(blocks.shape)
    wrong = np.flatnonzero((blocks != expected).any(1))
    assert not wrong.size, f"{len(wrong)} of {len(blocks)} blocks differ, the first is {wrong[0]}"
    assert np.array_equal(weight.view(np.uint32), before.view(np.uint32))
    kind = LAYOUTS[name]
    fields = ("d", "dmin")[: 1 + kind.minimum]
    stored = [blocks[:, kind.at(field) :][:, :2].copy().view(np.float16)[:, 0] for field in fields]
    assert beyond == int((~np.isfinite(stored)).any(0).sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_calls_gives_the_same_bytes(name, dtype):
    format = f"gguf:{name}"
    weight = torch.from_numpy(_input("normal")).to(dtype)
    weights = _importance("usual")
    expected = ggml.quantize(name, weight.float().numpy())
    assert np.array_equal(qformats.pack(qformats.quantize(weight, format), format).fields["blocks"], expected)
    assert np.array_equal(qformats.packer(format).encode_reference(weight).fields["blocks"], expected)
    quantized = qformats.quantize(weight, format, importance=torch.from_numpy(weights))
    with_importance = ggml.quantize(name, weight.float().numpy(), weights)
    packed = qformats.pack(quantized, format)
    assert np.array_equal(packed.fields["blocks"], with_importance)
    assert not np.array_equal(expected, with_importance)
    values = torch.from_numpy(ggml.dequantize(name, with_importance))
    assert torch.equal(packed.dequantize(), values)
    assert torch.equal(quantized.dequantize(), values)


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode_as_in_c(name):
    kind = LAYOUTS[name]
    blocks = _rng().integers(0, 256, (997, kind.size), dtype=np.uint8)
    packed = PackedTensor(
        qformats.packer(f"gguf:{name}"), (997, kind.block), {"blocks": torch.from_numpy(blocks)}
    )
    expected = torch.from_numpy(ggml.dequantize(name, blocks))
    for values in (packed.dequantize(), packed.unpack().dequantize()):
        same = (values == expected) | (values.isnan() & expected.isnan())
        assert bool(same.all())


@pytest.mark.parametrize("name", NAMES)
def test_bytes_come_back_from_codes_and_scales(name):
    kind = LAYOUTS[name]
    blocks = _rng().integers(0, 256, (200, kind.size), dtype=np.uint8)
    for field in ("d", "dmin"):
        if kind.at(field) >= 0:
            # Finite scales, of both signs.
            blocks[:, kind.at(field) + 1] &= 0xBB
    packer = qformats.packer(f"gguf:{name}")
    packed = PackedTensor(packer, (100, 2 * kind.block), {"blocks": torch.from_numpy(blocks).view(100, -1)})
    unpacked = packed.unpack()
    assert torch.equal(packer.pack(unpacked).fields["blocks"], packed.fields["blocks"])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    moved = packer.pack(unpacked.take_rows(order))
    assert torch.equal(moved.fields["blocks"], packed.fields["blocks"][order])
    assert torch.equal(pick(packed, order).fields["blocks"], moved.fields["blocks"])
    assert torch.equal(cut(packed, 3, 9).dequantize(), packed.dequantize()[3:9])


@pytest.mark.parametrize("name", TWO_LEVEL)
def test_stored_scales_are_found_again_from_their_products(name):
    """Packed without the stored parts, bytes may differ where these are not unique; values do not."""
    format = f"gguf:{name}"
    for case in ("normal", "some zeros", "tiny", "uneven"):
        carried = qformats.packer(format).grid.quantize(torch.from_numpy(_input(case)))
        bare = qformats.QuantizedTensor(
            carried.codes,
            carried.scale,
            carried.block_size,
            zero_point=carried.zero_point,
            minimum=carried.minimum,
            codebook=carried.codebook,
        )
        assert torch.equal(qformats.pack(bare, format).dequantize(), carried.dequantize())


@pytest.mark.parametrize("name", TWO_LEVEL)
def test_scales_that_are_no_products_are_refused(name):
    format = f"gguf:{name}"
    quantized = qformats.quantize(torch.from_numpy(_input("normal")), format)
    scale = quantized.scale.clone()
    scale[5, 3] = math.nextafter(float(scale[5, 3]) * 1.37, 1)
    bare = qformats.QuantizedTensor(
        quantized.codes,
        scale,
        quantized.block_size,
        zero_point=quantized.zero_point,
        minimum=quantized.minimum,
        codebook=quantized.codebook,
    )
    with pytest.raises(ConfigError, match="in two levels"):
        qformats.pack(bare, format)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_quantized_is_refused(name):
    format = f"gguf:{name}"
    weight = torch.zeros(3, COLUMNS)
    weight[1, 5] = 1e30
    for refused in (
        lambda: qformats.quantize(weight, format),
        lambda: qformats.packer(format).encode_reference(weight),
    ):
        with pytest.raises(NonFiniteError, match=r"need a scale beyond f16; the largest weight is 1e\+30"):
            refused()
    weight[1, 5] = math.nan
    with pytest.raises(NonFiniteError, match="not finite"):
        qformats.quantize(weight, format, importance=torch.ones(COLUMNS))
    with pytest.raises(ShapeError, match="do not divide into blocks"):
        qformats.quantize(torch.zeros(3, LAYOUTS[name].block + 16), format)
    for wrong, error in (
        (torch.ones(COLUMNS - 1), ShapeError),
        (-torch.ones(COLUMNS), ConfigError),
        (torch.full((COLUMNS,), math.inf), ConfigError),
        (torch.ones(COLUMNS, dtype=torch.int32), ConfigError),
    ):
        with pytest.raises(error, match="importance"):
            qformats.quantize(torch.ones(3, COLUMNS), format, importance=wrong)


@pytest.mark.parametrize("name", NAMES)
def test_stacked_matrices_are_rows(name):
    weight = torch.from_numpy(_input("normal")[:12]).view(3, 4, COLUMNS)
    packed = qformats.packer(f"gguf:{name}").encode_reference(weight)
    expected = ggml.quantize(name, weight.numpy())
    assert packed.shape == (3, 4, COLUMNS)
    assert np.array_equal(packed.fields["blocks"], expected)
    assert torch.equal(packed.dequantize(), torch.from_numpy(ggml.dequantize(name, expected)))


@pytest.mark.parametrize("importance", ["usual", "with zeros", "steep"])
@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_legacy_types_with_importances_equal_c(name, case, importance):
    weight, weights = _input(case), _importance(importance)
    packer = qformats.packer(f"gguf:{name}")
    expected = ggml.quantize(name, weight, weights)
    # Where its sums overflow, C stores zeros: that is refused as well.
    fits = np.isfinite(ggml.dequantize(name, expected)).all(1) & (np.abs(weight).max(1) < 65504 * 32)
    given = torch.from_numpy(weights)
    if not fits.all():
        with pytest.raises(NonFiniteError, match="need a scale beyond f16"):
            packer.grid.quantize(torch.from_numpy(weight), given)
    quantized = packer.grid.quantize(torch.from_numpy(weight[fits]), given)
    assert np.array_equal(packer.pack(quantized).fields["blocks"], expected[fits])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("importance", [None, torch.ones(512)], ids=["plain", "weighted"])
def test_a_matrix_without_rows(name, importance):
    quantized = qformats.quantize(torch.zeros(0, 512), f"gguf:{name}", importance=importance)
    packed = qformats.pack(quantized, f"gguf:{name}")
    assert packed.fields["blocks"].shape[0] == 0
    assert packed.unpack().shape == qformats.dequantize(packed).shape == (0, 512)
