"""Casts against numpy and gguf, on every half and around every rounding boundary; the compiler's options."""

import os
import subprocess
import sys

import gguf
import numpy as np
import pytest

from qformats.errors import ConfigError, ShapeError
from qformats.kernels import cpu

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)


def _floats_around(halves_as_f32):
    """Each value, the middle to its successor, and the float32 neighbours of both."""
    finite = np.unique(halves_as_f32[np.isfinite(halves_as_f32)])
    middles = (finite[:-1].astype(np.float64) + finite[1:].astype(np.float64)) / 2
    points = np.concatenate([finite, middles.astype(np.float32)])
    up = np.nextafter(points, np.float32(np.inf))
    down = np.nextafter(points, np.float32(-np.inf))
    return np.concatenate([points, up, down])


def _random_floats(count=1 << 19):
    return np.random.default_rng(7).integers(0, 1 << 32, count, dtype=np.uint32).view(np.float32)


def _edges():
    return np.array(
        [65504, 65519.996, 65520, -65520, 1e30, 3.4e38, np.inf, -np.inf, np.nan, -np.nan], np.float32
    )


def _bf16_as_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _cast(source, dtype):
    target = np.empty(source.shape, dtype)
    return target, cpu.cast(source, target)


def _same_except_nan(got, expected, got_float, expected_float):
    nan = np.isnan(expected_float)
    np.testing.assert_array_equal(np.isnan(got_float), nan)
    np.testing.assert_array_equal(got[~nan], expected[~nan])


def test_every_fp16_value_widens():
    source = EVERY_HALF.view(np.float16)
    got, bad = _cast(source, np.float32)
    expected = source.astype(np.float32)
    _same_except_nan(got.view(np.uint32), expected.view(np.uint32), got, expected)
    assert bad == np.count_nonzero(~np.isfinite(expected))


def test_every_bf16_value_widens():
    got, bad = _cast(EVERY_HALF, np.float32)
    np.testing.assert_array_equal(got.view(np.uint32) >> 16, EVERY_HALF)
    assert not (got.view(np.uint32) & 0xFFFF).any()
    assert bad == 2 * 128  # All exponent bits set: 2 infinities and 254 NaN.


def test_fp32_to_fp16_rounds_as_numpy():
    with np.errstate(over="ignore"):
        around = _floats_around(EVERY_HALF.view(np.float16).astype(np.float32))
    source = np.concatenate([around, _random_floats(), _edges()])
    got, bad = _cast(source, np.float16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = source.astype(np.float16)
    _same_except_nan(got.view(np.uint16), expected.view(np.uint16), got, expected)
    assert bad == np.count_nonzero(~np.isfinite(expected))


def test_fp32_to_bf16_rounds_as_gguf():
    source = np.concatenate([_floats_around(_bf16_as_f32(EVERY_HALF)), _random_floats(), _edges()])
    got, bad = _cast(source, np.uint16)
    expected = gguf.quants.quantize(source[None], gguf.GGMLQuantizationType.BF16).view(np.uint16)[0]
    np.testing.assert_array_equal(got, expected)
    assert bad == np.count_nonzero(~np.isfinite(_bf16_as_f32(expected)))


def test_nan_stays_quiet_nan():
    # A signalling NaN whose payload lies only in the bits that a half drops would become infinity.
    source = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF], np.uint32).view(np.float32)
    np.testing.assert_array_equal(_cast(source, np.uint16)[0], [0x7FC0, 0xFFC0, 0x7FFF])
    np.testing.assert_array_equal(_cast(source, np.float16)[0].view(np.uint16), [0x7E00, 0xFE00, 0x7FFF])


def test_between_halves_goes_through_float32():
    as_f16 = EVERY_HALF.view(np.float16)
    for source, dtype in ((as_f16, np.uint16), (EVERY_HALF, np.float16)):
        direct, bad = _cast(source, dtype)
        step, bad_step = _cast(_cast(source, np.float32)[0], dtype)
        np.testing.assert_array_equal(direct.view(np.uint16), step.view(np.uint16))
        assert bad == bad_step


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 95, 100])
def test_ends_of_arrays(length):
    buffer = np.full(length + 2, 0xABCD, np.uint16)
    source = np.linspace(-3, 3, length + 1, dtype=np.float32)[1:]
    assert cpu.cast(source, buffer[1:-1]) == 0
    assert buffer[0] == buffer[-1] == 0xABCD
    np.testing.assert_allclose(_bf16_as_f32(buffer[1:-1]), source, rtol=2**-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint16])
@pytest.mark.parametrize("at", [0, 31, 32, 66])
def test_finding_what_is_not_finite(dtype, at):
    values = np.zeros(67, dtype)
    assert cpu.count_nonfinite(values) == 0
    assert cpu.first_nonfinite(values) is None
    values[at:] = 0xFF80 if dtype == np.uint16 else -np.inf
    values.flags.writeable = False
    assert cpu.count_nonfinite(values) == 67 - at
    assert cpu.first_nonfinite(values) == at
    assert _cast(values, np.float32)[1] == 67 - at


def test_first_nonfinite_beyond_one_chunk():
    values = np.zeros((3, 1 << 18), np.float32)
    values[2, 5] = np.nan
    assert cpu.first_nonfinite(values) == (2 << 18) + 5


def test_unusable_arguments():
    good = np.zeros((2, 4), np.float32)
    with pytest.raises(ConfigError, match="float64"):
        cpu.cast(good.astype(np.float64), good)
    with pytest.raises(ConfigError, match="byte order"):
        cpu.count_nonfinite(good.astype(">f4"))
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        cpu.cast(good, np.zeros((2, 3), np.float16))
    with pytest.raises(ShapeError, match="C-contiguous"):
        cpu.cast(good.T, np.zeros((4, 2), np.float16))
    with pytest.raises(ShapeError, match="C-contiguous"):
        cpu.count_nonfinite(good[:, ::2])


def test_device_functions_inside_a_kernel():
    @cpu.jit()
    def through_both(values, half, brain):
        for i in range(values.size):
            half[i] = cpu.f32_to_f16(values[i])
            brain[i] = cpu.f32_to_bf16(values[i])
            values[i] = cpu.f16_to_f32(half[i]) + cpu.bf16_to_f32(brain[i])

    source = np.random.default_rng(3).standard_normal(100, dtype=np.float32)
    values, half, brain = source.copy(), np.empty(100, np.uint16), np.empty(100, np.uint16)
    through_both(values, half, brain)
    np.testing.assert_array_equal(half.view(np.float16), source.astype(np.float16))
    np.testing.assert_array_equal(brain, _cast(source, np.uint16)[0])
    np.testing.assert_array_equal(values, half.view(np.float16).astype(np.float32) + _bf16_as_f32(brain))


@pytest.mark.parametrize("flags", [{"contract"}, {"fast"}, {"nnan", "contract"}])
def test_flags_that_change_bytes_are_refused(flags):
    with pytest.raises(ValueError, match="contract"):
        cpu.jit(fastmath=frozenset(flags))


def test_kernels_release_the_gil():
    kernel = cpu.jit()(lambda x: x + 1)
    assert kernel(1) == 2
    assert kernel.targetoptions["nogil"] is True
    assert not kernel.targetoptions["fastmath"]


def test_without_a_place_for_a_cache():
    # numba has nowhere to cache a function whose file does not exist.
    scope = {}
    exec(compile("def double(x):\n    return 2 * x\n", "/nonexistent/kernel.py", "exec"), scope)
    assert cpu.jit()(scope["double"])(21) == 42


def test_stamp_follows_the_source(tmp_path):
    module = tmp_path / "module.py"
    module.write_text("a = 1\n")
    before = cpu.source_stamp(str(module))
    assert before == cpu.source_stamp(str(module)) != cpu.source_stamp()
    module.write_text("a = 2\n")
    assert cpu.source_stamp(str(module)) != before
    assert 0 <= before < 2**60


def test_cached_code_is_named_after_its_sources(tmp_path):
    module = tmp_path / "module.py"

    def name():
        def double(x):
            return 2 * x

        return cpu.jit(str(module))(double).py_func.__qualname__

    module.write_text("a = 1\n")
    before = name()
    assert name() == before
    module.write_text("a = 2\n")
    assert name() != before


def test_arrays_at_any_address():
    values = np.random.default_rng(4).standard_normal(100, dtype=np.float32)
    moved = np.zeros(values.nbytes + 1, np.uint8)[1:].view(np.float32)
    moved[:] = values
    assert not moved.flags.aligned
    np.testing.assert_array_equal(*(_cast(source, np.float16)[0] for source in (values, moved)))
    assert cpu.cast(values.astype(np.float16), moved) == 0
    np.testing.assert_array_equal(moved, values.astype(np.float16).astype(np.float32))


def test_second_process_reads_the_cache(tmp_path):
    program = (
        "import numpy as np; from qformats.kernels import cpu;"
        "a = np.ones(9, np.float32); cpu.cast(a, a.astype(np.float16));"
        "s = cpu._cast.stats; print(sum(s.cache_hits.values()), sum(s.cache_misses.values()))"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert runs == [["0", "1"], ["1", "0"]]
