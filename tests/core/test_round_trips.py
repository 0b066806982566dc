"""What the Python API makes of one tensor: the kernels run, and give what the grid's own arithmetic gives."""

import math
from unittest import mock

import pytest
import torch

import qformats
from qformats.errors import ConfigError, NonFiniteError, ShapeError
from qformats.numbers import QuantizedTensor, empty

FORMATS = [spec.name for spec in qformats.formats() if qformats.packer(spec.name).grid is not None]
SEARCHED = ("iq4_nl", "iq4_xs", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "mxfp4", "tq1_0", "tq2_0")
"""Types of GGUF whose grids are compiled searches themselves."""
WHOLE = ("nvfp4",)
"""Types whose scales take a number of the whole tensor, which its grid finds."""
KERNELS = [
    name
    for name in FORMATS
    if name.partition(":")[0] in ("gguf", "gptq", "bitsandbytes", "glm")
    and not name.endswith(SEARCHED + WHOLE)
]
FEW = (
    "gguf:q4_0",
    "gguf:q5_1",
    "gptq:4bit-128g-asym",
    "bitsandbytes:nf4-dq",
    "bitsandbytes:int8",
    "glm:int4",
)


def _weight(rows=64, columns=256, dtype=torch.float32):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(8)) * 0.05
    weight[1], weight[2] = 0, 0.25
    return weight.to(dtype)


def _same(found, expected):
    assert type(found) is type(expected)
    assert found.block_size == expected.block_size
    for name in ("codes", "scale", "zero_point", "minimum", "codebook", "g_idx"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        if one is not None:
            one, other = torch.as_tensor(one), torch.as_tensor(other)
            assert one.shape == other.shape, name
            assert torch.equal(one.double(), other.double()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("format", FORMATS)
def test_codes_and_scales_are_those_of_the_grid(format, dtype):
    weight = _weight(dtype=dtype)
    plain = weight.float() if dtype == torch.float64 else weight
    _same(qformats.quantize(weight, format), qformats.packer(format).grid.quantize(plain))


@pytest.mark.parametrize("format", KERNELS)
def test_no_weight_on_a_processor_goes_through_the_grid(format):
    """It reads a weight a dozen times. A test of speed would say the same less reliably."""
    weight, grid = _weight(), type(qformats.packer(format).grid)
    with (
        mock.patch.object(grid, "reference", side_effect=AssertionError("the grid's own arithmetic ran")),
        mock.patch.object(grid, "quantize", side_effect=AssertionError("the grid's own arithmetic ran")),
    ):
        packed = qformats.pack(qformats.quantize(weight, format), format)
    assert packed.shape == tuple(weight.shape)


@pytest.mark.parametrize("format", FEW)
def test_other_quantizers_still_refuse_what_is_not_finite(format):
    weight = _weight()
    weight[3, 4] = math.nan
    for quantizer in ("rtn", "gptq"):
        with pytest.raises((NonFiniteError, ConfigError), match=r"the first is nan at index 772|whole model"):
            qformats.quantize(weight, format, quantizer=quantizer)


def test_a_number_beyond_float32_is_named():
    weight = _weight(dtype=torch.float64)
    weight[3, 4] = 1e300
    with pytest.raises(NonFiniteError, match=r"1 of 16384 values are too large for f32"):
        qformats.quantize(weight, "gguf:q8_0")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "format", [*FEW, "gptq:4bit-128g-actorder", "gptq:3bit-32g", "dense:bf16", "gguf:f16"]
)
def test_values_may_be_written_into_memory_that_is_there(format, dtype):
    packed = qformats.packer(format).encode_reference(_weight(96, 320))
    out = torch.full((96, 320), math.nan, dtype=dtype)
    assert qformats.dequantize(packed, out=out) is out
    # Halves are one rounding of the float32 value, as torch rounds it.
    assert torch.equal(out, qformats.dequantize(packed).to(dtype))


def test_memory_that_does_not_fit_is_refused():
    packed = qformats.packer("gguf:q8_0").encode_reference(_weight())
    for out, error, message in (
        (torch.empty(64, 128), ShapeError, r"out.*\(64, 128\)"),
        (torch.empty(256, 64).t(), ShapeError, r"not contiguous"),
        (torch.empty(64, 256, dtype=torch.float64), ConfigError, r"f64.*f32, f16 or bf16"),
        (torch.empty(64, 256, device="meta"), ConfigError, r"meta.*cpu"),
    ):
        with pytest.raises(error, match=message):
            qformats.dequantize(packed, out=out)


def _slow(quantized):
    """The definition, element by element of the whole tensor: ``fl(fl(scale * level) + minimum)``."""
    rows, columns = quantized.shape
    height, width = quantized.block_size
    row, column = torch.arange(rows)[:, None], torch.arange(columns)[None]
    at = (row // max(1, height), column // width)
    if quantized.g_idx is not None:
        at = (row // height, quantized.g_idx.long()[None])
    if not height:
        at = ((row * columns + column) // width,)
    level = quantized.codes.float() - (
        quantized.zero_point if isinstance(quantized.zero_point, int | float) else quantized.zero_point[at]
    )
    if quantized.codebook is not None:
        level = quantized.codebook[quantized.codes.long()]
    value = level * quantized.scale.float()[at]
    return value if quantized.minimum is None else value + quantized.minimum.float()[at]


@pytest.mark.parametrize("width", [0, 3, 5, 1 << 17, (1 << 18) + 6])
@pytest.mark.parametrize(
    "kind", ["fixed", "float", "zeros", "minimum", "codebook", "order", "tall", "flat", "short"]
)
def test_canonical_values_follow_the_definition(kind, width):
    """Rows are decoded some at a time; these are cut into one piece, several, and one for each row."""
    draw = torch.Generator().manual_seed(width)
    rows, columns = 7, 6 * max(width, 1) if width < 100 else width // 6 * 6
    block = {"tall": (2, 6), "flat": (0, 5), "short": (1, 4)}.get(kind, (1, 6))
    codes = torch.randint(0, 16, (rows, columns if width else 0), dtype=torch.uint8, generator=draw)
    blocks = (-(-rows // max(1, block[0])), -(-codes.shape[1] // block[1]))
    shape = blocks if block[0] else (-(-codes.numel() // block[1]),)
    more = {
        "fixed": {"zero_point": 8},
        "float": {"zero_point": 7.5},
        "zeros": {"zero_point": torch.randint(0, 16, shape, dtype=torch.int32, generator=draw)},
        "minimum": {"minimum": torch.randn(shape, generator=draw).half()},
        "codebook": {"codebook": torch.randn(16, generator=draw)},
        "order": {"g_idx": torch.arange(codes.shape[1], dtype=torch.int32).flip(0) // 6},
    }.get(kind, {})
    quantized = QuantizedTensor(codes, torch.randn(shape, generator=draw).half(), block, **more)
    assert torch.equal(quantized.dequantize(), _slow(quantized))


@pytest.mark.parametrize("shape", [(0, 32), (3, 5), (1 << 20, 4), (2, 3, 1 << 19)])
def test_memory_has_the_shape_and_dtype_asked_for(shape):
    for dtype in (torch.uint8, torch.float16, torch.float32):
        memory = empty(shape, dtype)
        memory.fill_(1)
        assert memory.shape == shape
        assert memory.dtype == dtype
        assert memory.is_contiguous()
        assert int(memory.count_nonzero()) == math.prod(shape)
