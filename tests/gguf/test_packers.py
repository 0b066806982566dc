"""Packers of the legacy types and of those that are only read, against the kernels and gguf-py."""

import math

import gguf
import numpy as np
import pytest
import torch
from oracles import ggml

import qformats
from qformats.errors import ConfigError, NonFiniteError, ShapeError, UnknownFormatError
from qformats.interfaces.packer import PackedTensor
from qformats.registry import registry
from qformats_gguf.family import GGUF
from qformats_gguf.packers import BLOCK, DECODE_ONLY
from qformats_gguf.superblocks.layout import LAYOUTS
from qformats_gguf.ternary import TERNARY
from qformats_gguf.types import by_name

LEGACY = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
WRITTEN = {*LEGACY, *LAYOUTS, "mxfp4", "nvfp4", *TERNARY}
HALVES = (torch.float16, torch.bfloat16)


def _rng():
    return np.random.default_rng(20261)


def _ties():
    x = _rng().uniform(-0.9, 0.9, (2000, BLOCK))
    for row, (i, j) in zip(x, _rng().integers(0, BLOCK, (2000, 2)), strict=True):
        row[i], row[j] = 1.0, -1.0
    return x


def _half_way():
    steps = _rng().integers(-32, 33, (2000, BLOCK)) / 2
    steps[:, 0] = -16
    return steps * 2.0 ** _rng().integers(-9, 5, (2000, 1))


def _one_hot():
    x = np.zeros((2 * BLOCK, BLOCK))
    x[np.arange(2 * BLOCK), np.arange(2 * BLOCK) % BLOCK] = np.repeat([1.7, -0.3], BLOCK)
    return x


def _spread():
    return _rng().standard_normal((2000, BLOCK)) * 10.0 ** _rng().uniform(-6, 3.5, (2000, 1))


CASES = {
    "normal": lambda: _rng().standard_normal((2000, BLOCK)) * 0.05,
    "heavy tails": lambda: _rng().standard_t(2, (2000, BLOCK)),
    "ties": _ties,
    "half way": _half_way,
    "constant": lambda: np.repeat(_rng().standard_normal((500, 1)), BLOCK, 1),
    "zeros": lambda: np.zeros((4, BLOCK)),
    "one hot": _one_hot,
    "many magnitudes": _spread,
    "all positive": lambda: _rng().uniform(3, 4, (500, BLOCK)),
}
# gguf-py treats these in another way than llama.cpp's C code, which the kernels equal.
C_ONLY = {
    "subnormal scales": lambda: (
        _rng().standard_normal((1000, BLOCK)) * 10.0 ** _rng().uniform(-44, -36, (1000, 1))
    ),
    "zeros of both signs": lambda: np.where(_rng().random((300, BLOCK)) < 0.5, 0.0, -0.0),
    "zeros beside positives": lambda: np.where(
        _rng().random((500, BLOCK)) < 0.3,
        _rng().uniform(1, 2, (500, BLOCK)),
        -0.0 * _rng().integers(-1, 1, (500, BLOCK)),
    ),
}


def _tensor(case, dtype=torch.float32):
    return torch.from_numpy({**CASES, **C_ONLY}[case]().astype(np.float32)).to(dtype)


def _gguf(name, weight):
    return gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[name.upper()])


def _differences(name, weight, got, expected):
    """What to say when blocks differ; None if they do not."""
    size = by_name(name).block_bytes
    got, expected = np.asarray(got).reshape(-1, size), np.asarray(expected).reshape(-1, size)
    bad = np.flatnonzero((got != expected).any(1))
    if not len(bad):
        return None
    first = bad[0]
    values = weight.reshape(-1, BLOCK)[first]
    return f"{len(bad)} of {len(got)} blocks, first {first}: {got[first]} != {expected[first]} for {values}"


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", LEGACY)
def test_three_implementations_agree(name, case, dtype):
    weight, packer = _tensor(case, dtype), qformats.packer(f"gguf:{name}")
    before = weight.clone()
    kernel = packer.encode_reference(weight).fields["blocks"]
    codes, params = packer.grid.reference(weight.float())
    grid = packer.pack(packer.grid.quantized(codes, params)).fields["blocks"]
    assert _differences(name, weight, grid, kernel) is None
    assert _differences(name, weight, kernel, _gguf(name, weight)) is None
    assert torch.equal(weight, before)


@pytest.mark.parametrize("case", C_ONLY)
@pytest.mark.parametrize("name", LEGACY)
def test_grid_equals_the_kernel_where_only_c_defines_the_bytes(name, case):
    weight, packer = _tensor(case), qformats.packer(f"gguf:{name}")
    kernel = packer.encode_reference(weight).fields["blocks"]
    grid = packer.pack(packer.grid.quantize(weight)).fields["blocks"]
    assert _differences(name, weight, grid, kernel) is None


def _random_blocks(name, count, finite):
    """Random bytes; with `finite`, no scale or minimum is infinite or NaN."""
    blocks = _rng().integers(0, 256, (count, by_name(name).block_bytes), dtype=np.uint8)
    if finite:
        halves = 2 if name.endswith("_1") else 1
        # Clearing one exponent bit leaves every other bit pattern, subnormals and -0 included.
        blocks[:, 1 : 2 * halves : 2] &= 0xBF
    return torch.from_numpy(blocks)


@pytest.mark.parametrize("name", LEGACY)
def test_any_bytes_survive_unpack_and_pack(name):
    blocks = _random_blocks(name, 4000, finite=True)
    packed = PackedTensor(
        qformats.packer(f"gguf:{name}"), (1000, 4 * BLOCK), {"blocks": blocks.reshape(1000, -1)}
    )
    again = qformats.pack(qformats.unpack(packed), f"gguf:{name}")
    assert again.shape == packed.shape
    assert torch.equal(again.fields["blocks"], packed.fields["blocks"])


def _same_bits(got, expected):
    """Equal in every bit, NaN positions included; payloads of NaN do not count."""
    got, expected = np.asarray(got, np.float32), np.asarray(expected, np.float32)
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", LEGACY)
def test_any_bytes_decode_like_gguf(name):
    blocks = _random_blocks(name, 6000, finite=False).reshape(1500, -1)
    packed = PackedTensor(qformats.packer(f"gguf:{name}"), (1500, 4 * BLOCK), {"blocks": blocks})
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[name.upper()])
    _same_bits(packed.dequantize(), expected)
    canonical = packed.unpack().dequantize()
    # Integers have no -0: 0 * -scale is -0 in the canonical form and in C alike.
    _same_bits(canonical, expected)


@pytest.mark.parametrize("name", DECODE_ONLY)
def test_read_only_types_decode_like_c(name):
    kind = by_name(name)
    blocks = _rng().integers(0, 256, (40, 3 * kind.block_bytes), dtype=np.uint8)
    packed = PackedTensor(
        qformats.packer(f"gguf:{name}"), (40, 3 * kind.block_size), {"blocks": torch.from_numpy(blocks)}
    )
    expected = ggml.dequantize(name, blocks).reshape(packed.shape)
    got = packed.dequantize()
    assert got.dtype == torch.float32
    assert got.shape == packed.shape
    _same_bits(got, expected)
    packer = qformats.packer(f"gguf:{name}")
    assert not packer.writable
    with pytest.raises(ConfigError, match=f"gguf:{name}.*support level 1"):
        packed.unpack()
    with pytest.raises(ConfigError, match=f"gguf:{name}"):
        qformats.quantize(torch.zeros(1, kind.block_size), f"gguf:{name}")


def test_the_read_only_types_are_what_gguf_can_decode():
    # Every type has an entry; the base class's own method only raises.
    missing = gguf.quants.__Quant.dequantize_blocks
    decodable = {
        kind.name.lower()
        for kind, traits in gguf.quants._type_traits.items()
        if traits.dequantize_blocks.__func__ is not missing.__func__
    }
    assert decodable == {*DECODE_ONLY, *WRITTEN, "bf16"}
    assert len(set(DECODE_ONLY)) == len(DECODE_ONLY)
    assert set(DECODE_ONLY).isdisjoint(WRITTEN)


@pytest.mark.parametrize("name", ["q8_k", "q1_0"])
def test_types_that_nobody_decodes_are_refused_by_name(name):
    kind = by_name(name)
    blocks = torch.zeros(1, kind.block_bytes, dtype=torch.uint8)
    packed = PackedTensor(qformats.packer(f"gguf:{name}"), (1, kind.block_size), {"blocks": blocks})
    with pytest.raises(ConfigError, match=f"gguf:{name}.*gguf-py can decode"):
        packed.dequantize()
    with pytest.raises(UnknownFormatError, match=r"gguf:q4_7'. Did you mean 'gguf:q4_"):
        qformats.packer("gguf:q4_7")


@pytest.mark.parametrize("name", LEGACY)
def test_stacked_matrices(name):
    packer = qformats.packer(f"gguf:{name}")
    weight = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
    packed = packer.encode_reference(weight)
    assert packed.shape == (3, 5, 64)
    assert {key: (tuple(t.shape), "u8") for key, t in packed.fields.items()} == packer.stored(weight.shape)
    for i in range(3):
        assert torch.equal(packed.fields["blocks"][i], packer.encode_reference(weight[i]).fields["blocks"])
    assert packed.dequantize().shape == (3, 5, 64)
    assert torch.equal(packed.unpack().dequantize(), packed.dequantize().reshape(15, 64))


@pytest.mark.parametrize("name", LEGACY)
def test_float64_and_views_give_the_same_bytes(name):
    packer = qformats.packer(f"gguf:{name}")
    weight = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(2))
    expected = packer.encode_reference(weight).fields["blocks"]
    assert torch.equal(packer.encode_reference(weight.double()).fields["blocks"], expected)
    strided = torch.zeros(2, 6, 128)
    strided[..., ::2] = weight
    assert torch.equal(packer.encode_reference(strided[..., ::2]).fields["blocks"], expected)
    packed = packer.encode_reference(weight[0])
    doubled = torch.stack([packed.fields["blocks"], packed.fields["blocks"] ^ 255], -1)[..., 0]
    assert not doubled.is_contiguous()
    strided_bytes = PackedTensor(packed.packer, packed.shape, {"blocks": doubled})
    assert torch.equal(strided_bytes.dequantize(), packed.dequantize())


@pytest.mark.parametrize("shape", [(4, 33), (4, 31), (64,), (), (2, 3, 40)])
@pytest.mark.parametrize("name", LEGACY)
def test_odd_shapes_are_refused(name, shape):
    weight, packer = torch.zeros(shape), qformats.packer(f"gguf:{name}")
    assert packer.veto(shape)
    with pytest.raises(ShapeError, match=r"weight.*shape"):
        packer.encode_reference(weight)
    with pytest.raises(ShapeError, match=f"gguf:{name}"):
        qformats.quantize(weight, f"gguf:{name}")


@pytest.mark.parametrize("name", [*LEGACY, "q6_k", "iq4_nl"])
def test_bytes_of_another_shape_are_refused(name):
    kind = by_name(name)
    blocks = torch.zeros(4, 2 * kind.block_bytes, dtype=torch.uint8)
    for shape, field in (
        ((4, kind.block_size), blocks),
        ((8, kind.block_size), blocks),
        ((4, 2 * kind.block_size - 1), blocks),
        ((4, 2 * kind.block_size), blocks.to(torch.int32)),
    ):
        packed = PackedTensor(qformats.packer(f"gguf:{name}"), shape, {"blocks": field})
        with pytest.raises(ShapeError):
            packed.dequantize()
        if name in LEGACY:
            with pytest.raises(ShapeError):
                packed.unpack()


@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64)])
@pytest.mark.parametrize("name", LEGACY)
def test_tensors_without_rows(name, shape):
    packed = qformats.packer(f"gguf:{name}").encode_reference(torch.zeros(shape))
    assert packed.nbytes == 0
    assert packed.dequantize().shape == shape


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("name", LEGACY)
def test_what_is_not_finite_is_counted_and_placed(name, dtype, bad):
    weight = torch.zeros(3, 64, dtype=dtype)
    weight[1, 5] = weight[2, 63] = bad
    message = rf"2 of 192 values are not finite; the first is {bad} at index 69"
    with pytest.raises(NonFiniteError, match=message):
        qformats.packer(f"gguf:{name}").encode_reference(weight)
    with pytest.raises(NonFiniteError, match=message):
        qformats.quantize(weight, f"gguf:{name}")


@pytest.mark.parametrize(
    ("name", "largest"),
    [("q4_0", 524160), ("q5_0", 1048320), ("q8_0", 8321040), ("q4_1", 65520), ("q5_1", 65520)],
)
def test_scales_beyond_float16_are_counted_and_placed(name, largest):
    weight, packer = torch.zeros(3, 64), qformats.packer(f"gguf:{name}")
    weight[1, 5], weight[2, 63] = -largest, -2 * largest
    message = rf"2 of 6 blocks need a scale beyond f16; the largest weight is -{2 * largest:g} at index 191"
    for refused in (
        lambda: packer.encode_reference(weight),
        lambda: packer.encode_reference(weight.double()),
        lambda: qformats.quantize(weight, f"gguf:{name}"),
    ):
        with pytest.raises(NonFiniteError) as caught:
            refused()
        assert message in str(caught.value)
    # One float32 below, the scale rounds to the largest float16.
    weight[1, 5], weight[2, 63] = 1.0, float(np.nextafter(np.float32(-largest), np.float32(0)))
    assert packer.encode_reference(weight).dequantize().isfinite().all()


def _quantizing():
    return [packer.name for packer in registry().formats() if packer.grid is not None]


def test_every_type_that_is_written_has_a_grid():
    assert {f"gguf:{name}" for name in WRITTEN} == {n for n in _quantizing() if n.startswith("gguf:")}


@pytest.mark.parametrize("format", _quantizing())
def test_round_trip_through_the_interface(format):
    weight = torch.randn(32, 256, generator=torch.Generator().manual_seed(3)) * 0.02
    before = weight.clone()
    quantized = qformats.quantize(weight, format)
    packed = qformats.pack(quantized, format)
    assert packed.nbytes == qformats.packer(format).spec.nbytes(32, 256)
    again = qformats.unpack(packed)
    assert torch.equal(again.codes, quantized.codes)
    assert torch.equal(again.scale.float(), quantized.scale.float())
    assert (again.minimum is None) == (quantized.minimum is None)
    assert torch.equal(qformats.dequantize(packed), quantized.dequantize())
    reference = qformats.packer(format).encode_reference(weight)
    for field, stored in packed.fields.items():
        assert torch.equal(reference.fields[field], stored), field
    assert torch.equal(weight, before)


@pytest.mark.parametrize("format", [n for n in _quantizing() if qformats.packer(n).spec.sqnr_floor_db])
def test_signal_to_noise_floor_is_reached_and_tight(format):
    packer = qformats.packer(format)
    weight = torch.randn(128, 4096, generator=torch.Generator().manual_seed(4)) * 0.02
    noise = packer.encode_reference(weight).dequantize() - weight
    sqnr = 10 * math.log10(float(weight.square().sum() / noise.square().sum()))
    floor = packer.spec.sqnr_floor_db
    assert floor <= sqnr <= floor + 1.5, f"{format}: {sqnr:.2f} dB, floor {floor}"


@pytest.mark.parametrize("name", LEGACY)
def test_descriptor_tells_size_and_fields(name):
    packer, kind = qformats.packer(f"gguf:{name}"), by_name(name)
    assert packer.spec.nbytes(10, 96) == 10 * 3 * kind.block_bytes
    assert packer.spec.bits_per_weight == kind.bits_per_weight
    assert packer.stored((10, 96)) == {"blocks": ((10, 3 * kind.block_bytes), "u8")}
    assert packer.weight_shape(packer.stored((10, 96))) == (10, 96)
    assert packer.spec.level >= 1
    assert packer.spec.sqnr_floor_db is not None
    assert packer.grid.bits == packer.spec.bits


def test_tensors_of_another_type_are_not_packed():
    """Codes that would fit are not enough: a minimum or another zero point changes the values."""
    weight = torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    for source in LEGACY:
        quantized = qformats.quantize(weight, f"gguf:{source}")
        for target in LEGACY:
            if (source, target) == ("q4_1", "q5_1"):
                # Sixteen of thirty-two levels over the same minimum: the same numbers.
                exact = qformats.pack(quantized, "gguf:q5_1")
                assert torch.equal(exact.dequantize(), quantized.dequantize())
            elif target != source:
                with pytest.raises(ConfigError, match=r"codes|zero_point|minimum"):
                    qformats.pack(quantized, f"gguf:{target}")


@pytest.mark.parametrize(
    ("name", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)]
)
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 3, 5)])
def test_plain_types_hold_any_shape_but_vectors_only_in_float32(name, dtype, shape):
    packer = qformats.packer(f"gguf:{name}")
    values = torch.randn(shape, generator=torch.Generator().manual_seed(6))
    if len(shape) < 2 and name != "f32":
        with pytest.raises(ShapeError, match=r"llama\.cpp computes only with float32 vectors"):
            packer.encode_reference(values)
        return
    packed = packer.encode_reference(values)
    assert {k: tuple(v.shape) for k, v in packed.fields.items()} == {"values": shape}
    assert torch.equal(packed.dequantize(), values.to(dtype).float())


def test_every_variant_answers_under_its_name():
    for variant in GGUF().variants():
        assert GGUF().parse(variant).spec.variant == variant
        assert GGUF().parse(variant.upper()).spec.variant == variant
