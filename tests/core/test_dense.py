"""Plain numbers: names of dtypes, casts against torch, and what a narrower dtype cannot hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qformats
from qformats.builtin.dense import Dense
from qformats.errors import ConfigError, NonFiniteError, UnknownFormatError
from qformats.kernels.dense import cast, require_finite
from qformats.numbers import dtypes

FLOATS = ("f64", "f32", "f16", "bf16")


def _bit_patterns(dtype, count=20_000):
    """Values of every magnitude up to float16's largest, zeros of both signs, points between float16s."""
    generator = torch.Generator().manual_seed(8)
    bits = torch.randint(-(2**31), 2**31, (count,), generator=generator, dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)
    halves = torch.randint(-(2**15), 2**15, (count,), generator=generator).to(torch.int16)
    middles = (
        halves.view(torch.float16).float() + (halves + 1).to(torch.int16).view(torch.float16).float()
    ) / 2
    steps = torch.tensor([0.0, -0.0, 65504, -65504, 2**-24, 2**-25, 2**-26, 1e-45, 1.1e-38, 1 / 3])
    everything = torch.cat([values, middles, middles * (1 + 2**-23), steps]).to(torch.float64)
    # A float64 just beside a halfway point, which float32 cannot tell from it.
    everything = torch.cat([everything, everything * (1 + 2.0**-40), everything * (1 - 2.0**-40)])
    everything = everything.to(dtypes.torch_dtype(dtype))
    return everything[everything.double().abs() <= 65504]


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_cast_equals_torch(source, target):
    values = _bit_patterns(source)
    before = values.clone()
    got, expected = cast(values, target), values.to(dtypes.torch_dtype(target))
    assert got.dtype == expected.dtype
    if (source, target) in (("f64", "f16"), ("f64", "bf16")):
        # torch rounds twice here, by way of float32.
        expected = _nearest(values, expected)
        assert not torch.equal(values.to(got.dtype), expected)
    assert torch.equal(got, expected)
    assert torch.equal(torch.signbit(got), torch.signbit(values))
    assert torch.equal(values, before)


def _nearest(values, close):
    """Of the half-precision numbers around `close`, the one nearest to `values`; of two, the even one."""
    bits = close.view(torch.int16)
    around = torch.stack([torch.where(bits & 0x7FFF == 0, bits, bits - 1), bits, bits + 1])
    distance = (around.view(close.dtype).double() - values).abs()
    nearest = (distance == distance.amin(0)).to(torch.int8)
    chosen = (nearest * (2 - (around & 1))).argmax(0, keepdim=True)
    return around.gather(0, chosen)[0].view(close.dtype)


@pytest.mark.parametrize("target", ["f32", "f16", "bf16"])
def test_shapes_and_strides(target):
    for shape in ((), (0,), (3, 0), (2, 3, 4)):
        assert cast(torch.ones(shape), target).shape == shape
    values = torch.arange(24.0).reshape(4, 6)
    for view in (values.t(), values[:, ::2], values[1:, 3:], values[2].expand(3, 6)):
        got = cast(view, target)
        assert got.is_contiguous()
        assert torch.equal(got.float(), view)


LARGEST = {"f16": 65504.0, "bf16": (2 - 2.0**-7) * 2.0**127}
HALF_A_STEP_MORE = {"f16": 65520.0, "bf16": (2 - 2.0**-8) * 2.0**127}


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("target", LARGEST)
def test_the_first_number_that_overflows(source, target):
    dtype = dtypes.torch_dtype(source)
    fits = torch.full((2, 3), LARGEST[target], dtype=dtype)
    assert cast(fits, target).isfinite().all()
    edge = torch.tensor([HALF_A_STEP_MORE[target]], dtype=dtype)
    assert cast(torch.nextafter(edge, torch.zeros_like(edge)), target).item() == LARGEST[target]
    with pytest.raises(NonFiniteError, match=f"too large for {target}"):
        cast(edge, target)


@pytest.mark.parametrize("source", ["f32", "f64", "bf16"])
def test_overflow_says_how_many_and_where(source):
    values = torch.zeros(4, 8, dtype=dtypes.torch_dtype(source))
    values[1, 2], values[3, 1], values[3, 4] = 70000, -(2.0**20), 2.0**18
    message = r"^3 of 32 values are too large for f16; the largest weight is -1\.04858e\+06 at index 25\. "
    with pytest.raises(NonFiniteError, match=message + r"Keep this tensor in bf16 or f32"):
        cast(values, "f16")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", FLOATS)
def test_what_is_not_finite_is_counted_and_placed(source, target, bad):
    values = torch.ones(5, 7, dtype=dtypes.torch_dtype(source))
    values[2, 3] = values[4, 6] = bad
    for refused in (lambda: cast(values, target), lambda: require_finite(values)):
        with pytest.raises(
            NonFiniteError, match=f"^2 of 35 values are not finite; the first is {bad} at index 17"
        ):
            refused()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.data())
def test_nothing_that_is_not_finite_is_missed(count, data):
    """Vector kernels have tails: every length, every place."""
    place = data.draw(st.integers(0, count - 1))
    dtype = dtypes.torch_dtype(data.draw(st.sampled_from(FLOATS)))
    values = torch.zeros(count, dtype=dtype)
    require_finite(values)
    values[place] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    with pytest.raises(NonFiniteError, match=f"^1 of {count} values .* at index {place}"):
        require_finite(values)


def test_integers_are_finite():
    require_finite(torch.tensor([2**62, -1]))
    require_finite(torch.tensor([True]))


@pytest.mark.parametrize("name", dtypes.SIZES)
def test_names_of_dtypes(name):
    dtype = dtypes.torch_dtype(name)
    assert dtypes.dtype_name(dtype) == name
    assert torch.empty(0, dtype=dtype).element_size() == dtypes.SIZES[name]
    # Exponents alone are scales, not weights.
    assert (name in (*dtypes.FLOATS, "f8_e8m0")) == dtype.is_floating_point


def test_dtypes_without_a_name_are_refused():
    with pytest.raises(ConfigError, match=r"'complex64'.*float32"):
        dtypes.dtype_name(torch.complex64)
    with pytest.raises(ConfigError, match=r"'float16'.*f16"):
        dtypes.torch_dtype("float16")


def test_spelling_in_safetensors_is_the_library_s(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = {name: torch.zeros(2, dtype=dtypes.torch_dtype(name)) for name in dtypes.SIZES}
    save_file(tensors, tmp_path / "all.safetensors")
    with safe_open(tmp_path / "all.safetensors", "pt") as file:
        found = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    assert found == dtypes.SAFETENSORS


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_the_family_dense(name):
    packer = qformats.packer(f"dense:{name}")
    values = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(9))
    assert packer.writable
    assert packer.grid is None
    packed = packer.encode_reference(values)
    assert packed.fields["weight"].dtype == dtypes.torch_dtype(name)
    assert torch.equal(packed.dequantize(), values.to(dtypes.torch_dtype(name)).float())
    assert packer.stored(values.shape) == {"weight": ((3, 5, 2), name)}
    assert packer.spec.nbytes(6, 5) == packed.nbytes
    with pytest.raises(ConfigError, match=rf"dense:{name}.*a quantized format"):
        qformats.quantize(values[0], f"dense:{name}")
    with pytest.raises(ConfigError, match=r"support level 1"):
        packed.unpack()


def test_the_default_of_dense_and_its_other_dtypes():
    assert qformats.packer("dense").name == "dense:f32"
    assert set(Dense().variants()) == {"f32", "f16", "bf16"}
    assert qformats.packer("dense:i64").dense_dtype == "i64"
    with pytest.raises(UnknownFormatError, match=r"dense:f8.*Did you mean 'dense:f"):
        qformats.packer("dense:f8")
