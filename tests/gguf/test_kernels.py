"""Bytes of the block types against ggml's C code and gguf-py, on kinds of blocks that round differently."""

import itertools
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import gguf
import llvmlite.binding
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import ggml

from qformats.errors import ConfigError, ShapeError, UnknownFormatError
from qformats.kernels import cpu
from qformats_gguf import blocks, kernels

TYPES = sorted(blocks.TYPES)
BLOCK = blocks.BLOCK
HALVES = [np.float16, np.uint16]


def _rng():
    return np.random.default_rng(20260)


def _ties():
    """The extreme value occurs with both signs, in both orders, at all distances, among smaller values."""
    x = _rng().uniform(-0.9, 0.9, (2 * BLOCK * (BLOCK - 1) // 2, BLOCK))
    first, second = np.triu_indices(BLOCK, 1)
    rows = np.arange(len(first))
    for sign, part in ((1, x[: len(first)]), (-1, x[len(first) :])):
        part[rows, first], part[rows, second] = sign, -sign
    return x


def _one_hot():
    x = np.zeros((2 * BLOCK, BLOCK))
    x[np.arange(2 * BLOCK), np.arange(2 * BLOCK) % BLOCK] = np.repeat([1.7, -0.3], BLOCK)
    return x


def _mixed_zeros():
    """Zeros of both signs, alone and as the minimum or maximum beside larger values."""
    x = np.where(_rng().random((300, BLOCK)) < 0.5, 0.0, -0.0)
    x[100:200, ::5] = 1.5
    x[200:, ::5] = -1.5
    return x


def _half_way():
    """Rounding boundaries of all codes, exactly and one float32 to either side; scales are powers of two."""
    blocks = []
    for levels, extreme in ((127, 127), (8, -8), (16, -16), (15, 15), (31, 31)):
        middles = np.arange(-levels, levels) + 0.5
        points = np.concatenate([middles, np.nextafter(np.float32(middles), np.float32(0))])
        points = np.concatenate(
            [points, np.nextafter(np.float32(middles), np.float32(1000)), [0.49999997, -0.49999997]]
        )
        for low in (0.0, float(-abs(extreme)) if extreme > 0 else 0.0):
            x = np.resize(points, (len(points) // 30 + 1, 30))
            ends = np.broadcast_to([extreme, low], (len(x), 2))
            blocks.append(np.concatenate([x, ends], axis=1).clip(-abs(extreme), abs(extreme)))
            blocks.append(np.abs(blocks[-1]) * np.sign(extreme))
    x = np.concatenate(blocks)
    return np.concatenate([x, x * 2.0**-9, x * 2.0**7])


def _nearly_half_way():
    """The boundaries of arbitrary scales, give or take some float32 steps: a last bit of d or 1/d decides."""
    rng = _rng()
    blocks = []
    for low, high, levels in ((-127, 127, 127), (-8, 7, 8), (-16, 15, 16), (0, 15, 15), (0, 31, 31)):
        extreme = rng.uniform(0.5, 1, (1500, 1)).astype(np.float32)
        middles = rng.integers(low, high, (1500, BLOCK)) + 0.5
        x = (middles * (extreme / levels)).astype(np.float32)
        x = (x.view(np.int32) + rng.integers(-2, 3, x.shape, dtype=np.int32)).view(np.float32)
        x[:, :1] = extreme if low == 0 or levels == 127 else -extreme
        x[:, 1] = 0 if low == 0 else x[:, 1]
        blocks.append(x)
    return np.concatenate(blocks)


def _lattice():
    """What dequantizing gives: code times an fp16 scale, plus an fp16 minimum for half of the blocks."""
    rng = _rng()
    scale = rng.uniform(1e-4, 0.1, (400, 1)).astype(np.float16).astype(np.float32)
    low = (rng.uniform(-1, 1, (400, 1)) * np.repeat([[0], [1]], 200, axis=0)).astype(np.float16)
    return scale * rng.integers(-16, 16, (400, BLOCK)).astype(np.float32) + low.astype(np.float32)


def _scaled(*exponents):
    x = _rng().standard_normal((len(exponents), 60, BLOCK))
    return (x * 2.0 ** np.array(exponents, float)[:, None, None]).reshape(-1, BLOCK)


# Blocks on which all three implementations agree.
COMMON = {
    "normal": lambda: _rng().standard_normal((4000, BLOCK)) * 0.02,
    "heavy tails": lambda: _rng().standard_t(2, (4000, BLOCK)),
    "one sided": lambda: np.abs(_rng().standard_normal((500, BLOCK))) * np.repeat([[1], [-1]], 250, axis=0),
    "offset": lambda: _rng().standard_normal((500, BLOCK)) * 0.01 + 3,
    "ties": _ties,
    "constant": lambda: np.repeat([[1], [-1], [0.1], [-3e-5], [7e4], [1e-7]], BLOCK, axis=1),
    "zero": lambda: np.zeros((2, BLOCK)),
    "one hot": _one_hot,
    "half way": _half_way,
    "nearly half way": _nearly_half_way,
    "lattice": _lattice,
    "halves": lambda: _rng().standard_normal((500, BLOCK)).astype(np.float16),
    # fp16 scales that are subnormal or round to zero.
    "tiny": lambda: _scaled(*range(-40, -10)),
    # float32 scales that are subnormal, their inverse still finite.
    "subnormal": lambda: _scaled(-120, -121),
    "large": lambda: _rng().uniform(-60000, 60000, (500, BLOCK)),
}
# gguf-py departs from the C code here. Signed zeros: it takes the sign of the extreme (or the minimum) from
# another element, one byte. Below about 2**-125: 1/d is infinite, C converts infinity and NaN to an integer
# (undefined in C; x86 gives codes of 0, and so do we everywhere), gguf-py clips them to other codes.
# Overflowing scales: it warns, and max - min = infinity gives it NaN codes.
C_ONLY = {
    "minus zero": lambda: np.full((2, BLOCK), -0.0),
    "mixed zeros": _mixed_zeros,
    "nearly nothing": lambda: _scaled(*range(-150, -124)),
    "single bits": lambda: _rng().integers(-3, 4, (500, BLOCK)) * 2.0**-149,
    "huge": lambda: _scaled(*range(17, 127)),
    "extremes": lambda: _rng().choice([3.4028235e38, -3.4028235e38, 1.0, 0.0, -1e-45], (300, BLOCK)),
}


def _blocks(recipe):
    with np.errstate(over="ignore", under="ignore"):
        x = np.asarray(recipe(), np.float32)
    assert np.isfinite(x).all()
    return np.ascontiguousarray(x)


def _quantize(name, source):
    out = np.full((source.shape[0], source.shape[1] // BLOCK * blocks.TYPES[name]), 0xA5, np.uint8)
    return out, kernels.quantize(name, source, out)


def _assert_blocks(name, source, got, expected):
    """Compare block by block and show the first block that differs."""
    size = blocks.TYPES[name]
    got, expected = got.reshape(-1, size), expected.reshape(-1, size)
    bad = np.flatnonzero((got != expected).any(axis=1))
    if bad.size:
        i = bad[0]
        pytest.fail(
            f"{name}: {bad.size} of {len(got)} blocks differ, first {i}\n"
            f"input    {source.reshape(-1, BLOCK)[i].tolist()}\ngot      {got[i].tobytes().hex(' ')}\n"
            f"expected {expected[i].tobytes().hex(' ')}"
        )


def _scales_overflow(name, packed):
    """Blocks with an infinite fp16 parameter."""
    count = 2 if name.endswith("_1") else 1
    scales = packed.reshape(-1, blocks.TYPES[name])[:, : 2 * count].copy().view(np.float16)
    return int(np.isinf(scales).any(axis=1).sum())


def test_sizes_are_gguf_s():
    for name, size in blocks.TYPES.items():
        assert (BLOCK, size) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("case", [*COMMON, *C_ONLY])
def test_quantize_equals_c(name, case):
    source = _blocks({**COMMON, **C_ONLY}[case])
    before = source.copy()
    got, outcome = _quantize(name, source)
    _assert_blocks(name, source, got, ggml.quantize(name, source))
    assert outcome == (0, _scales_overflow(name, got))
    np.testing.assert_array_equal(source.view(np.uint32), before.view(np.uint32))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("case", COMMON)
def test_quantize_equals_gguf(name, case):
    source = _blocks(COMMON[case])
    with np.errstate(over="ignore"):
        expected = gguf.quants.quantize(source, gguf.GGMLQuantizationType[name.upper()])
    _assert_blocks(name, source, _quantize(name, source)[0], expected)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(TYPES),
    bits=hnp.arrays(np.uint32, (2, BLOCK), elements=st.integers(0, 2**32 - 1)),
    exponent=st.integers(0, 254),
)
def test_any_finite_floats(name, bits, exponent):
    # One exponent per example, give or take 3: fully random exponents would leave all but one value at zero.
    exponents = (exponent + ((bits >> 23) & 3)).clip(max=254)
    source = ((bits & 0x807FFFFF) | (exponents << 23)).astype(np.uint32).view(np.float32)
    got, outcome = _quantize(name, source)
    _assert_blocks(name, source, got, ggml.quantize(name, source))
    assert outcome == (0, _scales_overflow(name, got))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_equal_their_float32(name, dtype):
    bits = _rng().integers(0, 1 << 16, (3000, BLOCK), dtype=np.uint16)
    # Clear one exponent bit, so that every value is finite; all subnormals remain.
    source = (bits & 0xBFFF).view(dtype)
    widened = np.empty(source.shape, np.float32)
    assert cpu.cast(source, widened) == 0
    got, outcome = _quantize(name, source)
    expected, outcome_f32 = _quantize(name, widened)
    _assert_blocks(name, widened, got, expected)
    assert outcome == outcome_f32


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", [np.float32, *HALVES])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_counted(name, dtype, bad):
    source = np.zeros((3, 4 * BLOCK), dtype)
    places = [(0, 0), (1, 33), (1, 34), (2, 127)]
    value = np.array(bad, np.float32)
    for place in places:
        source[place] = value.view(np.uint32) >> 16 if dtype == np.uint16 else value
    assert _quantize(name, source)[1] == kernels.Outcome(nonfinite=len(places), overflow=0)


@pytest.mark.parametrize(
    ("name", "largest"),
    [("q4_0", 524160), ("q5_0", 1048320), ("q8_0", 8321040), ("q4_1", 65520), ("q5_1", 65520)],
)
def test_scales_that_overflow_are_counted(name, largest):
    # For q4_1 and q5_1 it is the minimum that overflows first.
    source = np.zeros((2, 3 * BLOCK), np.float32)
    source[0, 5] = source[1, 70] = -largest
    assert _quantize(name, source)[1] == kernels.Outcome(nonfinite=0, overflow=2)
    source[0, 5] = np.nextafter(np.float32(-largest), np.float32(0))
    assert _quantize(name, source)[1] == kernels.Outcome(nonfinite=0, overflow=1)


def _every_scale(name):
    """A block for each of the 65536 fp16 scales, everything else random."""
    packed = _rng().integers(0, 256, (1 << 16, blocks.TYPES[name]), dtype=np.uint8)
    packed[:, :2] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
    return packed


def _dequantize(name, packed, dtype=np.float32):
    out = np.full((packed.shape[0], packed.shape[1] // blocks.TYPES[name] * BLOCK), 7, dtype)
    kernels.dequantize(name, packed, out)
    return out


@pytest.mark.parametrize("name", TYPES)
def test_dequantize_equals_both(name):
    packed = _every_scale(name)
    got = _dequantize(name, packed)
    with np.errstate(invalid="ignore", over="ignore"):
        others = (
            ggml.dequantize(name, packed),
            gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name.upper()]),
        )
    for expected in others:
        nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(got), nan)
        np.testing.assert_array_equal(got.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("dtype", HALVES)
def test_dequantize_to_halves_rounds_once(name, dtype):
    packed = _every_scale(name)
    expected = np.empty((1 << 16, BLOCK), dtype)
    cpu.cast(_dequantize(name, packed), expected)
    got = _dequantize(name, packed, dtype)
    # Of NaN scale + NaN minimum, the processor picks a payload: NaN is NaN here.
    both = [
        (x.view(np.uint16) & 0x7FFF) > (0x7F80 if dtype == np.uint16 else 0x7C00) for x in (got, expected)
    ]
    np.testing.assert_array_equal(*both)
    np.testing.assert_array_equal(got.view(np.uint16)[~both[0]], expected.view(np.uint16)[~both[0]])


@pytest.mark.parametrize(("processor", "needs"), [("generic", "sse2"), ("haswell", "avx2")])
def test_same_bytes_on_other_processors(processor, needs, tmp_path):
    """Compile for a processor with fewer vector instructions than the host's."""
    if platform.machine() != "x86_64" or not llvmlite.binding.get_host_cpu_features().get(needs, True):
        pytest.skip(f"code for {processor} does not run on this host")
    source = _blocks(COMMON["heavy tails"])
    np.save(tmp_path / "source.npy", source)
    program = (
        "import sys, numpy as np; from qformats_gguf import blocks, kernels;"
        "x = np.load('source.npy');"
        "[(kernels.quantize(n, x, o := np.empty((len(x), s), np.uint8)), np.save(n, o))"
        " for n, s in blocks.TYPES.items()]"
    )
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "NUMBA_CPU_NAME": processor,
        "NUMBA_CPU_FEATURES": "",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=tmp_path, check=True)
    for name in TYPES:
        _assert_blocks(name, source, np.load(tmp_path / f"{name}.npy"), _quantize(name, source)[0])


@pytest.mark.parametrize("name", TYPES)
def test_row_slices_in_threads(name):
    source = _rng().standard_normal((37, 7 * BLOCK), dtype=np.float32)
    source.flags.writeable = False
    whole, _ = _quantize(name, source)
    # Rows 3 to 34 only, into a larger buffer at an odd address: what lies around them must stay.
    buffer = np.full(whole.size + 1, 0xA5, np.uint8)
    out = buffer[1:].reshape(whole.shape)
    cuts = [3, 4, 11, 12, 30, 34]
    with ThreadPoolExecutor(4) as pool:
        slices = [slice(a, b) for a, b in itertools.pairwise(cuts)]
        assert (
            list(pool.map(lambda rows: kernels.quantize(name, source[rows], out[rows]), slices))
            == [(0, 0)] * 5
        )
    np.testing.assert_array_equal(out[3:34], whole[3:34])
    assert (buffer[: 1 + 3 * whole.shape[1]] == 0xA5).all()
    assert (out[34:] == 0xA5).all()


@pytest.mark.parametrize("shape", [(0, 64), (3, 0)])
def test_nothing_to_do(shape):
    packed, outcome = _quantize("q4_0", np.zeros(shape, np.float32))
    assert packed.size == 0
    assert outcome == (0, 0)
    assert _dequantize("q4_0", packed).size == 0


def test_unusable_arguments():
    source, out = np.zeros((4, 64), np.float32), np.zeros((4, 36), np.uint8)
    with pytest.raises(UnknownFormatError, match="q4_0"):
        kernels.quantize("q4_7", source, out)
    with pytest.raises(ConfigError, match="float64"):
        kernels.quantize("q4_0", source.astype(np.float64), out)
    for floats, packed in (
        (source.reshape(-1), out),
        (source[:, :33].copy(), out),
        (np.zeros((64, 4), np.float32).T, out),
        (source, out[:3]),
        (source, out.view(np.int8)),
        (source, np.zeros((36, 4), np.uint8).T),
    ):
        with pytest.raises(ShapeError):
            kernels.quantize("q4_0", floats, packed)
        with pytest.raises(ShapeError):
            kernels.dequantize("q4_0", packed, floats)
    assert not out.any()


def test_codes_need_arrays_that_fit():
    source, codes = np.zeros((4, 64), np.float32), np.ones((4, 64), np.uint8)
    halves = np.ones((4, 2, 1), np.float16)
    with pytest.raises(UnknownFormatError, match="q4_0"):
        kernels.quantize_codes("q4_7", source, codes, halves)
    with pytest.raises(ConfigError, match="float64"):
        kernels.quantize_codes("q4_0", source.astype(np.float64), codes, halves)
    for name, floats, bytes_, scales in (
        ("q4_0", source[:, :33].copy(), codes, halves),
        ("q4_0", source, codes[:3], halves),
        ("q4_0", source, codes.view(np.int8), halves),
        ("q4_0", source, np.ones((64, 4), np.uint8).T, halves),
        ("q4_0", source, codes, halves.view(np.uint16)),
        ("q4_1", source, codes, halves),
        ("q8_0", source, codes, np.ones((4, 2, 2), np.float16)),
    ):
        with pytest.raises(ShapeError):
            kernels.quantize_codes(name, floats, bytes_, scales)
    assert codes.all()
    assert halves.all()
