"""Bytes of the kernels against bitsandbytes, and against a plain transcription of the GPU's rule for FP4."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qformats.errors import ConfigError, ShapeError, UnknownFormatError
from qformats.kernels.dense import as_numpy
from qformats_bitsandbytes import kernels, tables

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _rng():
    return np.random.default_rng(20261)


def _near_thresholds(thresholds):
    """Blocks of maximum 1, all other values on a threshold or some float32 steps beside it, with both signs."""
    points = np.repeat(np.array(thresholds, np.float32), 20)
    points = (points.view(np.int32) + np.tile(np.arange(-9, 11, dtype=np.int32), len(thresholds))).view(
        np.float32
    )
    points = np.concatenate([points, -points])
    points = np.resize(points, (-(-len(points) // 63), 63))
    return np.concatenate([np.ones((len(points), 1)), points], axis=1) * 2.0 ** -_rng().integers(
        0, 9, (len(points), 1)
    )


def _scaled_thresholds():
    """The same under arbitrary maxima: the last bit of the inverse decides."""
    maxima = _rng().uniform(0.5, 1, (800, 1)).astype(np.float32)
    chosen = _rng().choice(np.array(tables.NF4_THRESHOLDS, np.float32), (800, 63))
    values = (maxima * chosen).astype(np.float32)
    values = (values.view(np.int32) + _rng().integers(-2, 3, values.shape, dtype=np.int32)).view(np.float32)
    return np.concatenate([maxima, values], axis=1)


def _magnitudes(*exponents):
    x = _rng().standard_normal((len(exponents), 2, 64))
    return (x * 2.0 ** np.array(exponents, float)[:, None, None]).reshape(-1, 64)


CASES = {
    "normal": lambda: _rng().standard_normal((500, 64)) * 0.02,
    "heavy tails": lambda: _rng().standard_t(2, (500, 64)),
    "ties of nf4": lambda: _near_thresholds(tables.NF4_THRESHOLDS),
    "ties of fp4": lambda: _near_thresholds(tables.FP4_THRESHOLDS),
    "scaled ties": _scaled_thresholds,
    "zero": lambda: np.zeros((64, 64)),
    "signed zeros": lambda: np.where(_rng().random((64, 64)) < 0.5, 0.0, -0.0),
    "constant": lambda: np.repeat([[1.0], [-1], [0.1], [-3e-5], [7e4], [1e-7]], 64, axis=1),
    "one hot": lambda: np.eye(64) * -0.3,
    "tiny": lambda: _magnitudes(*range(-140, -100)),
    "single bits": lambda: _rng().integers(-3, 4, (64, 64)) * 2.0**-149,
    "huge": lambda: _magnitudes(*range(90, 125)),
    "one giant": lambda: np.where(
        np.arange(6400).reshape(100, 64) == 777, 1e30, _rng().standard_normal((100, 64))
    ),
}


def _weights(case):
    with np.errstate(under="ignore"):
        return np.ascontiguousarray(np.asarray(CASES[case](), np.float32).reshape(-1))


def _quantize(kind, weights, block_size=64):
    packed = np.full(-(-weights.size // 2), 0xA5, np.uint8)
    absmax = np.full(-(-weights.size // block_size), 7, np.float32)
    assert kernels.quantize_4bit(kind, weights, packed, absmax, block_size) == 0
    return packed, absmax


def _dequantize(kind, packed, absmax, count, block_size=64, dtype=np.float32):
    out = np.full(count, 7, dtype)
    kernels.dequantize_4bit(kind, packed, absmax, out, block_size)
    return out


def _codes(packed, count):
    codes = np.empty(count, np.uint8)
    kernels.unpack_codes(packed, codes)
    return codes


def _gpu_rule(weights, block_size):
    """FP4 as bitsandbytes' GPU code has it; of its two zeros the first one."""
    pad = -weights.size % block_size
    blocks = np.pad(weights, (0, pad)).reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1)
    inverse = np.float32(1) / np.maximum(absmax, np.float32(1e-38))
    x = (blocks * inverse[:, None]).reshape(-1)[: weights.size]
    codes = np.zeros(x.shape, np.uint8)
    for threshold, code in zip(
        (0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333),
        (1, 6, 7, 4, 5, 2, 3),
        strict=True,
    ):
        codes[np.abs(x) > np.float32(threshold)] = code
    codes[(x < 0) & (codes > 0)] |= 8
    return codes, absmax, x


@pytest.mark.parametrize("case", CASES)
def test_nf4_has_the_bytes_of_bitsandbytes(case, bnb):
    weights = _weights(case)
    before = weights.copy()
    packed, absmax = _quantize("nf4", weights)
    expected, scales = bnb.quantize(torch.from_numpy(weights), "nf4")
    np.testing.assert_array_equal(absmax, scales.numpy())
    np.testing.assert_array_equal(packed, expected.numpy())
    np.testing.assert_array_equal(weights.view(np.uint32), before.view(np.uint32))


@pytest.mark.parametrize("block_size", BLOCKS)
@pytest.mark.parametrize("count", [1, 2, 31, 63, 64, 65, 4097, 8192 + 33])
def test_every_block_size_and_length(block_size, count, bnb):
    weights = _rng().standard_normal(count, np.float32)
    packed, absmax = _quantize("nf4", weights, block_size)
    expected, scales = bnb.quantize(torch.from_numpy(weights), "nf4", block_size)
    np.testing.assert_array_equal(absmax, scales.numpy())
    np.testing.assert_array_equal(packed, expected.numpy())
    if count % 2:
        assert packed[-1] & 15 == 7
    packed, absmax = _quantize("fp4", weights, block_size)
    codes, scales, _ = _gpu_rule(weights, block_size)
    np.testing.assert_array_equal(absmax, scales)
    np.testing.assert_array_equal(_codes(packed, count), codes)
    if count % 2:
        assert packed[-1] & 15 == 0


@pytest.mark.parametrize("case", CASES)
def test_fp4_follows_the_gpu(case):
    weights = _weights(case)
    packed, absmax = _quantize("fp4", weights)
    codes, scales, _ = _gpu_rule(weights, 64)
    np.testing.assert_array_equal(absmax, scales)
    np.testing.assert_array_equal(_codes(packed, weights.size), codes)


@pytest.mark.parametrize("case", CASES)
def test_fp4_has_the_values_of_bitsandbytes_on_the_processor(case, bnb):
    """Except on the thresholds, which it rounds differently there: 14 last places around them are left out."""
    weights = _weights(case)
    packed, absmax = _quantize("fp4", weights)
    expected, scales = bnb.quantize(torch.from_numpy(weights), "fp4")
    values = _dequantize("fp4", packed, absmax, weights.size)
    others = _dequantize("fp4", expected.numpy().copy(), scales.numpy(), weights.size)
    magnitudes = np.abs(_gpu_rule(weights, 64)[2]).view(np.int32)[:, None]
    clear = (np.abs(magnitudes - np.array(tables.FP4_THRESHOLDS, np.float32).view(np.int32)) > 20).all(axis=1)
    np.testing.assert_array_equal(values[clear], others[clear])
    if case == "normal":
        assert clear.mean() > 0.99


@settings(max_examples=100, deadline=None)
@given(
    bits=hnp.arrays(np.uint32, (64,), elements=st.integers(0, 2**32 - 1)),
    exponent=st.integers(0, 254),
)
def test_any_finite_floats(bits, exponent, bnb):
    exponents = (exponent + ((bits >> 23) & 3)).clip(max=254)
    weights = ((bits & 0x807FFFFF) | (exponents << 23)).astype(np.uint32).view(np.float32)
    packed, absmax = _quantize("nf4", weights)
    expected, scales = bnb.quantize(torch.from_numpy(weights), "nf4")
    np.testing.assert_array_equal(absmax, scales.numpy())
    np.testing.assert_array_equal(packed, expected.numpy())
    packed, _ = _quantize("fp4", weights)
    np.testing.assert_array_equal(_codes(packed, 64), _gpu_rule(weights, 64)[0])


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_halves_equal_their_float32(kind, dtype):
    weights = torch.from_numpy(_weights("heavy tails")).to(dtype)
    packed, absmax = _quantize(kind, as_numpy(weights))
    expected, scales = _quantize(kind, weights.float().numpy())
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(absmax, scales)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(kind, dtype, bad):
    for count in (4 * 64, 4 * 64 + 5):
        weights = torch.zeros(count, dtype=dtype)
        weights[[3, 70, count - 1]] = bad
        packed, absmax = np.empty(-(-count // 2), np.uint8), np.empty(-(-count // 64), np.float32)
        assert kernels.quantize_4bit(kind, as_numpy(weights), packed, absmax, 64) == 3


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [256 * 2 * 4, 64 * 3 + 17])
def test_values_are_those_of_bitsandbytes(kind, dtype, count, bnb):
    """All bytes, and maxima of all sizes."""
    packed = np.resize(np.arange(256, dtype=np.uint8), -(-count // 2))
    absmax = (
        _rng().standard_normal(-(-count // 64)) * 10.0 ** _rng().integers(-20, 20, -(-count // 64))
    ).astype(np.float32)
    out = torch.empty(count, dtype=dtype)
    kernels.dequantize_4bit(kind, packed, absmax, as_numpy(out), 64)
    table = np.array(tables.NF4 if kind == "nf4" else tables.FP4, np.float32)
    values = table[_codes(packed, count)] * np.repeat(absmax, 64)[:count]
    assert torch.equal(out, torch.from_numpy(values).to(dtype))
    functional = bnb.functional
    state = functional.QuantState(
        torch.from_numpy(absmax),
        shape=torch.Size((1, count)),
        code=functional.get_4bit_type(kind, "cpu"),
        blocksize=64,
        quant_type=kind,
        dtype=torch.float32,
    )
    assert np.array_equal(bnb.decode(torch.from_numpy(packed).unsqueeze(1), state).numpy()[0], values)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 127, 128, 1001])
def test_packing_and_unpacking_codes(count):
    codes = _rng().integers(0, 16, count, dtype=np.uint8)
    packed = np.empty(-(-count // 2), np.uint8)
    kernels.pack_codes(codes, packed, 7)
    padded = np.append(codes, np.uint8(7))[: 2 * len(packed)]
    np.testing.assert_array_equal(packed, padded[::2] << 4 | padded[1::2])
    np.testing.assert_array_equal(_codes(packed, count), codes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 96), (5, 33), (3, 1), (1, 31), (64, 100)])
def test_int8_has_the_bytes_of_bitsandbytes(dtype, shape, bnb):
    for scale in (1e-8, 1e-6, 1e-4, 0.02, 1.0, 15000.0):
        weights = (torch.from_numpy(_rng().standard_normal(shape, np.float32)).clamp(-4, 4) * scale).to(dtype)
        weights[-1] = 0
        codes, absmax = np.empty(shape, np.int8), np.empty(shape[0], np.float32)
        assert kernels.quantize_int8(as_numpy(weights), codes, absmax) == (0, 0)
        expected, scales, _ = bnb.functional.int8_vectorwise_quant(weights.to(torch.float16))
        np.testing.assert_array_equal(absmax, scales.numpy())
        np.testing.assert_array_equal(codes, expected.numpy())


def test_int8_on_every_boundary(bnb):
    """Rows of a random maximum with every half step of it, as near as float16 comes, and its neighbours."""
    maxima = _rng().uniform(0.001, 1000, (300, 1)).astype(np.float16)
    middles = (np.arange(-127, 127) + 0.5) / 127 * maxima.astype(np.float32)
    half = middles.astype(np.float16)
    rows = np.concatenate([maxima, half, np.nextafter(half, np.float16(0)), half * np.float16(0.999)], axis=1)
    weights = np.ascontiguousarray(rows.clip(-maxima, maxima))
    codes, absmax = np.empty(weights.shape, np.int8), np.empty(len(weights), np.float32)
    assert kernels.quantize_int8(weights, codes, absmax) == (0, 0)
    expected, scales, _ = bnb.functional.int8_vectorwise_quant(torch.from_numpy(weights))
    np.testing.assert_array_equal(absmax, scales.numpy())
    np.testing.assert_array_equal(codes, expected.numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_counts_what_float16_cannot_hold(dtype):
    weights = torch.ones(3, 40, dtype=dtype)
    weights[1, 7], weights[2, 39] = 65536, -1e9
    codes, absmax = np.empty((3, 40), np.int8), np.empty(3, np.float32)
    assert kernels.quantize_int8(as_numpy(weights), codes, absmax) == kernels.Outcome(0, 2)
    weights[0, 0] = torch.nan
    assert kernels.quantize_int8(as_numpy(weights), codes, absmax) == kernels.Outcome(1, 0)
    weights = torch.full((1, 5), 65504.0 if dtype == torch.float32 else 65280.0, dtype=dtype)
    assert kernels.quantize_int8(as_numpy(weights), codes[:1, :5].copy(), absmax[:1]) == (0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 31, 32, 100])
def test_int8_values(dtype, columns):
    codes = _rng().integers(-128, 128, (9, columns), dtype=np.int8)
    scale = (_rng().standard_normal(9) * 0.01).astype(np.float32)
    out = torch.empty(9, columns, dtype=dtype)
    kernels.dequantize_int8(codes, scale, as_numpy(out))
    assert torch.equal(out, torch.from_numpy(codes.astype(np.float32) * scale[:, None]).to(dtype))


def test_slices_in_threads():
    weights = _rng().standard_normal(37 * 64, np.float32)
    weights.flags.writeable = False
    packed, absmax = _quantize("nf4", weights)
    got, maxima = np.full_like(packed, 0xA5), np.zeros_like(absmax)
    cuts = [3, 4, 11, 12, 30, 34]
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda cut: kernels.quantize_4bit(
                    "nf4",
                    weights[64 * cut[0] : 64 * cut[1]],
                    got[32 * cut[0] : 32 * cut[1]],
                    maxima[cut[0] : cut[1]],
                    64,
                ),
                itertools.pairwise(cuts),
            )
        )
    np.testing.assert_array_equal(got[3 * 32 : 34 * 32], packed[3 * 32 : 34 * 32])
    np.testing.assert_array_equal(maxima[3:34], absmax[3:34])
    assert (got[: 3 * 32] == 0xA5).all()
    assert (got[34 * 32 :] == 0xA5).all()


def test_unusable_arguments():
    weights, packed, absmax = np.zeros(128, np.float32), np.zeros(64, np.uint8), np.zeros(2, np.float32)
    with pytest.raises(UnknownFormatError, match="nf5"):
        kernels.quantize_4bit("nf5", weights, packed, absmax, 64)
    with pytest.raises(ConfigError, match="float64"):
        kernels.quantize_4bit("nf4", weights.astype(np.float64), packed, absmax, 64)
    for size in (0, 48):
        with pytest.raises(ConfigError, match="block_size"):
            kernels.quantize_4bit("nf4", weights, packed, absmax, size)
    for arguments in (
        (weights.reshape(2, 64), packed, absmax),
        (weights, packed[:63], absmax),
        (weights, packed.view(np.int8), absmax),
        (weights, packed, absmax[:1]),
        (weights[::2], packed[:32], absmax[:1]),
    ):
        with pytest.raises(ShapeError):
            kernels.quantize_4bit("nf4", *arguments, 64)
    with pytest.raises(ShapeError):
        kernels.quantize_int8(np.zeros((2, 4), np.float32), np.zeros((2, 5), np.int8), absmax)
    with pytest.raises(ShapeError):
        kernels.dequantize_int8(np.zeros((2, 4), np.int8), absmax[:1], np.zeros((2, 4), np.float32))
