"""The rule of rounding against a transcription in plain numpy, for every row maximum that a half can have."""

import numpy as np
import pytest
import torch

from qformats_glm.family import GLM

TOP = {4: 7, 8: 127}
SCALES = {"f16": "", "bf16": "-bf16", "f32": "-f32"}
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def _bf16(values):
    """Round float32 to bf16, to nearest, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


ROUND = {
    "f16": lambda values: np.asarray(values, np.float32).astype(np.float16).astype(np.float32),
    "bf16": _bf16,
    "f32": lambda values: np.asarray(values, np.float32),
}


def _rule(weight, bits, dtype, scale_dtype):
    """Codes before the conversion to integers, and scales; float32 that holds values of the dtypes named."""
    with np.errstate(all="ignore"):
        largest = np.abs(weight).max(1)
        scale = ROUND[scale_dtype](ROUND[dtype](largest / np.float32(TOP[bits])))
        wider = dtype if dtype == scale_dtype else "f32"
        return np.rint(ROUND[wider](weight / scale[:, None])), scale


def _expected(weight, bits, dtype, scale_dtype):
    """Codes within the range, and 0 where there is no scale."""
    codes, scale = _rule(weight, bits, dtype, scale_dtype)
    codes = np.where((scale == 0)[:, None], 0, codes)
    return np.clip(codes, -TOP[bits], TOP[bits]).astype(np.int8), scale


def _upstream(weight, bits, dtype):
    """Packed bytes as upstream writes them: what does not fit wraps around."""
    codes, _ = _rule(weight, bits, dtype, dtype)
    codes = np.where(np.isfinite(codes), codes, 0).astype(np.int64)
    return _bytes(codes, bits)


def _bytes(codes, bits):
    codes = codes.astype(np.int64)
    if bits == 4:
        codes = ((codes[:, 0::2] & 15) << 4) | (codes[:, 1::2] & 15)
    return (codes & 255).astype(np.uint8).view(np.int8)


def _check(weight, bits, dtype, scale_dtype):
    packer = GLM().parse(f"int{bits}{SCALES[scale_dtype]}")
    tensor = torch.from_numpy(weight).to(DTYPES[dtype])
    assert np.array_equal(tensor.float().numpy(), weight), "the case must be representable in its dtype"
    codes, scale = _expected(weight, bits, dtype, scale_dtype)
    packed = packer.encode_reference(tensor)
    assert np.array_equal(packed.fields["weight_scale"].float().numpy(), scale)
    assert np.array_equal(packed.fields["weight"].numpy(), _bytes(codes, bits))
    by_grid = packer.pack(packer.grid.quantize(tensor))
    for name, field in packed.fields.items():
        assert torch.equal(field, by_grid.fields[name]), name
    values = codes.astype(np.float32) * scale[:, None]
    assert np.array_equal(packer.dequantize(packed).numpy(), values)
    assert np.array_equal(packer.unpack(packed).dequantize().numpy(), values)


def _maxima(dtype):
    """Every positive finite value of a half format, as float32."""
    if dtype == "f16":
        return np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    return (np.arange(1, 0x7F80, dtype=np.uint32) << np.uint32(16)).view(np.float32)


def _rows(dtype, columns=10):
    """One row for each maximum: the maximum with either sign, halves of it, ties, and random fractions."""
    largest = _maxima(dtype)[:, None]
    rng = np.random.default_rng(7)
    shares = rng.uniform(-1, 1, (len(largest), columns)).astype(np.float32)
    shares[:, 0] = np.where(rng.random(len(largest)) < 0.5, 1, -1)
    shares[:, 1], shares[:, 2], shares[:, 3] = 0.5, 0, -1 / 14
    return ROUND[dtype](largest * shares)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_row_maximum_of_a_half(dtype, bits):
    _check(_rows(dtype), bits, dtype, dtype)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale_dtype", list(SCALES))
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_any_dtypes_and_shapes(dtype, scale_dtype, bits):
    rng = np.random.default_rng(11)
    for rows, columns in ((1, 2), (5, 66), (3, 30), (4, 64), (2, 512), (7, 34)):
        for scale in (0.02, 1e-4, 1e-6, 1e-7, 30.0):
            weight = ROUND[dtype](rng.standard_normal((rows, columns)) * scale)
            weight[0] = 0
            _check(weight, bits, dtype, scale_dtype)
    ties = ROUND[dtype](rng.integers(-2 * TOP[bits], 2 * TOP[bits] + 1, (64, 66)) * np.float32(0.5 / 64))
    ties[:, 0] = ROUND[dtype](np.float32(TOP[bits] / 64))
    _check(ties, bits, dtype, scale_dtype)
    constant = np.repeat(ROUND[dtype](rng.standard_normal((40, 1))), 36, 1)
    _check(constant, bits, dtype, scale_dtype)
    _check(-constant, bits, dtype, scale_dtype)


@pytest.mark.parametrize("columns", [1, 3, 31, 33, 65])
def test_odd_rows_in_eight_bits(columns):
    weight = ROUND["f16"](np.random.default_rng(3).standard_normal((6, columns)))
    _check(weight, 8, "f16", "f16")


def test_negative_zero_has_code_zero():
    weight = np.array([[-0.0, 1.0, -1.0, -0.0]], np.float32)
    _check(weight, 4, "f32", "f16")


@pytest.mark.parametrize(
    ("dtype", "bits", "wrapped"),
    [("f16", 4, 12), ("f16", 8, 1808), ("bf16", 4, 0), ("bf16", 8, 5187)],
)
def test_bytes_are_upstreams_wherever_upstream_does_not_overflow(dtype, bits, wrapped):
    maxima = _maxima(dtype)
    codes, scale = _rule(np.stack([maxima, -maxima], 1), bits, dtype, dtype)
    # A scale that became 0 is another fault of upstream than one that is too small.
    over = (np.abs(codes).max(1) > TOP[bits]) & (scale > 0)
    if dtype == "bf16":
        # Subnormal in bf16, the scale is as coarse as a subnormal half is: below 1e-38, where no weight lies.
        over &= scale >= np.float32(2.0**-126)
    assert int(over.sum()) == wrapped
    rows = _rows(dtype)
    plain, scale = _rule(rows, bits, dtype, dtype)
    right = (np.abs(np.nan_to_num(plain, posinf=999, neginf=-999)).max(1) <= TOP[bits]) & (scale > 0)
    if dtype == "f16":
        assert right[scale >= np.float32(2.0**-14)].all()
    elif bits == 4:
        assert right[scale >= np.float32(2.0**-126)].all()
    packed = (
        GLM()
        .parse(f"int{bits}{SCALES[dtype]}")
        .encode_reference(torch.from_numpy(rows[right]).to(DTYPES[dtype]))
    )
    assert np.array_equal(packed.fields["weight"].numpy(), _upstream(rows[right], bits, dtype))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_rule_is_that_of_torch_for_upstreams_code(bits):
    """Upstream's two lines, run by torch itself, on dtypes that it meets."""
    top = TOP[bits]
    for dtype, scale_dtype in (
        ("f16", "f16"),
        ("bf16", "bf16"),
        ("f16", "f32"),
        ("f32", "f32"),
        ("f32", "f16"),
    ):
        weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).to(DTYPES[dtype])
        scale = (weight.abs().max(dim=-1)[0] / top).to(DTYPES[scale_dtype])
        codes = torch.round(weight / scale[:, None]).clamp(-top, top).to(torch.int8)
        packed = GLM().parse(f"int{bits}{SCALES[scale_dtype]}").encode_reference(weight)
        assert torch.equal(packed.fields["weight_scale"], scale)
        assert np.array_equal(packed.fields["weight"].numpy(), _bytes(codes.numpy(), bits))
