"""The family glm: variants, bytes, cuts and joins on the bytes, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch

import qformats
from qformats.errors import ConfigError, NonFiniteError, NotExactError, ShapeError, UnknownFormatError
from qformats.interfaces.family import ModuleFields
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.rows import cut
from qformats_glm import kernels
from qformats_glm.family import GLM
from qformats_glm.packers import overflowed_rows
from qformats_glm.ranks.columns import cut_columns, join_columns

VARIANTS = ("int8", "int8-bf16", "int8-f32", "int4", "int4-bf16", "int4-f32")


def _weight(rows=12, columns=32, seed=0, dtype=torch.float16):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype) * 0.05


def _equal(left, right):
    assert left.format == right.format
    assert left.shape == right.shape
    assert left.fields.keys() == right.fields.keys()
    for name, field in left.fields.items():
        assert field.dtype == right.fields[name].dtype
        assert torch.equal(field, right.fields[name]), name


def _stored(packed):
    """A packed tensor as one of a checkpoint."""

    def load(start, stop):
        return cut(packed, start, stop)

    return qformats.StoredTensor("x", packed.shape, packed.packer, packed.nbytes, Path("x"), load)


def _cut(packed, rank, ranks):
    return cut_columns(_stored(packed), rank, ranks).read()


def _join(parts):
    return join_columns("x", [_stored(part) for part in parts]).read()


def test_variants_and_their_names():
    assert tuple(GLM().variants()) == VARIANTS
    assert qformats.packer("glm").name == "glm:int4"
    for name in (*VARIANTS, "int4-tp2", "int8-bf16-tp16"):
        assert GLM().parse(name).name == f"glm:{name}"
    assert not GLM().parse("int4-tp2").writable
    assert GLM().parse("int4").writable


@pytest.mark.parametrize(
    "name", ["int3", "int4-f16", "int4-tp1", "int4-tp0", "int4-tp", "INT4", "", "int4-bf16-f32"]
)
def test_unknown_variants(name):
    with pytest.raises(UnknownFormatError):
        GLM().parse(name)


def test_bytes_of_a_row_by_hand():
    codes = torch.tensor([[0, 15, 8, 9, 7, 1]], dtype=torch.uint8)  # -8 7 0 1 -1 -7
    quantized = qformats.QuantizedTensor(codes, torch.tensor([[0.5]]), (1, 6), zero_point=8)
    packed = GLM().parse("int4").pack(quantized)
    assert packed.fields["weight"].view(torch.uint8).tolist() == [[0x87, 0x01, 0xF9]]
    assert packed.dequantize().tolist() == [[-4.0, 3.5, 0.0, 0.5, -0.5, -3.5]]
    assert GLM().parse("int4").spec.nbytes(1, 6) == packed.nbytes == 5
    codes = torch.tensor([[0, 255, 128, 1]], dtype=torch.uint8)
    packed = (
        GLM()
        .parse("int8")
        .pack(qformats.QuantizedTensor(codes, torch.tensor([[2.0]]), (1, 4), zero_point=128))
    )
    assert packed.fields["weight"].tolist() == [[-128, 127, 0, -127]]


@pytest.mark.parametrize("name", VARIANTS)
def test_every_byte_unpacks_and_packs_back(name):
    packer = GLM().parse(name)
    every = torch.arange(256, dtype=torch.uint8).view(torch.int8).repeat(3, 1)
    scale = torch.tensor([0.25, -1.5, 0.0]).to(
        {"f16": torch.float16, "f32": torch.float32}.get(packer.scale_dtype, torch.bfloat16)
    )
    shape = (3, 256 * 8 // packer.bits)
    packed = PackedTensor(packer, shape, {"weight": every, "weight_scale": scale})
    _equal(packer.pack(packer.unpack(packed)), packed)
    signed = every.numpy().astype(np.int16)
    if packer.bits == 4:
        # Arithmetic shifts of the stored byte, as upstream's kernels do it.
        low = (every.numpy().view(np.uint8).astype(np.uint8) << 4).astype(np.uint8).view(np.int8) >> 4
        signed = np.stack([every.numpy() >> 4, low], -1).reshape(3, -1)
    expected = signed.astype(np.float32) * scale.float().numpy()[:, None]
    assert np.array_equal(packer.dequantize(packed).numpy(), expected)
    assert torch.equal(packer.unpack(packed).dequantize(), packer.dequantize(packed))


@pytest.mark.parametrize("out", [np.float16, np.uint16])
def test_kernel_decodes_to_halves(out):
    packer = GLM().parse("int4")
    packed = packer.encode_reference(_weight(5, 70))
    target = np.empty((5, 70), out)
    scales = packed.fields["weight_scale"].float().numpy()
    kernels.dequantize(4, packed.fields["weight"].numpy(), scales, target)
    dtype = torch.float16 if out is np.float16 else torch.bfloat16
    expected = packer.dequantize(packed).to(dtype)
    assert torch.equal(torch.from_numpy(target).view(dtype), expected)


def test_kernels_check_their_arguments():
    weight, packed, scales = np.zeros((2, 6), np.float32), np.zeros((2, 3), np.int8), np.zeros(2, np.float16)
    with pytest.raises(ConfigError, match="bits"):
        kernels.quantize(5, weight, packed, scales)
    with pytest.raises(ShapeError, match="K even"):
        kernels.quantize(4, np.zeros((2, 5), np.float32), packed, scales)
    with pytest.raises(ShapeError, match="packed"):
        kernels.quantize(4, weight, packed[:, :2], scales)
    with pytest.raises(ShapeError, match="scales"):
        kernels.quantize(4, weight, packed, np.zeros(3, np.float16))
    with pytest.raises(ShapeError, match="scales"):
        kernels.dequantize(4, packed, scales, weight)
    with pytest.raises(ShapeError, match="codes"):
        kernels.unpack(packed, np.zeros((2, 5), np.uint8))


@pytest.mark.parametrize("name", VARIANTS)
def test_slices_of_rows_are_rows_of_the_whole(name):
    packer, weight = GLM().parse(name), _weight()
    whole = packer.encode_reference(weight)
    assert packer.row_step(whole.shape) == 1
    for start, stop in ((0, 1), (3, 7), (11, 12), (0, 12)):
        _equal(cut(whole, start, stop), packer.encode_reference(weight[start:stop]))


@pytest.mark.parametrize("name", ["int4", "int8-bf16"])
def test_columns_are_cut_and_joined_on_the_bytes(name):
    packer, weight = GLM().parse(name), _weight()
    whole = packer.encode_reference(weight)
    values = whole.dequantize()
    parts = [_cut(whole, rank, 4) for rank in range(4)]
    for number, part in enumerate(parts):
        assert torch.equal(part.dequantize(), values[:, number * 8 : number * 8 + 8])
    _equal(_join(parts), whole)
    _equal(_cut(whole, 0, 1), whole)


@pytest.mark.parametrize("name", ["int4", "int8-f32"])
def test_parts_with_scales_of_their_own_stay_exact(name):
    packer, weight = GLM().parse(name), _weight()
    weight[:, 3] *= 20
    parts = [packer.encode_reference(weight[:, start : start + 8]) for start in range(0, 32, 8)]
    merged = _join(parts)
    assert merged.format == f"glm:{name}-tp4"
    own = GLM().parse(f"{name}-tp4")
    assert own.stored((12, 32))["weight_scale"] == ((12, 4), packer.scale_dtype)
    expected = torch.cat([part.dequantize() for part in parts], 1)
    assert torch.equal(merged.dequantize(), expected)
    quantized = merged.unpack()
    assert quantized.block_size == (1, 8)
    assert torch.equal(quantized.dequantize(), expected)
    _equal(own.pack(quantized), merged)
    _equal(own.pack(own.represent(quantized)), merged)
    _equal(cut(merged, 2, 5), _join([cut(part, 2, 5) for part in parts]))
    for number, part in enumerate(parts):
        _equal(_cut(merged, number, 4), part)
    # Wider and narrower than the parts that were joined.
    for ranks in (2, 8):
        whole = torch.cat([_cut(merged, rank, ranks).dequantize() for rank in range(ranks)], 1)
        assert torch.equal(whole, expected)
    with pytest.raises(NotExactError):
        packer.represent(quantized)
    with pytest.raises(ConfigError):
        own.encode_reference(weight)


def test_what_cannot_be_cut():
    whole = GLM().parse("int4").encode_reference(_weight())
    with pytest.raises(ShapeError, match="a number of columns that 3 ranks divide evenly"):
        _cut(whole, 0, 3)
    with pytest.raises(ShapeError, match=r"that 32 ranks divide evenly \(1 columns are an odd number"):
        _cut(whole, 0, 32)


def test_rows_that_upstream_overflowed_are_found():
    packer = GLM().parse("int8")
    packed = packer.encode_reference(_weight())
    assert overflowed_rows(packed).tolist() == []
    packed.fields["weight"][[2, 9], [31, 0]] = -128
    assert overflowed_rows(packed).tolist() == [2, 9]
    packed = GLM().parse("int4").encode_reference(_weight())
    packed.fields["weight"][4, 1] = 0x18  # 1, -8
    assert overflowed_rows(packed).tolist() == [4]
    with pytest.raises(ConfigError, match="family glm"):
        overflowed_rows(qformats.packer("gguf:q8_0").encode_reference(_weight()))


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("int4", (4, 7), "odd"),
        ("int4-tp2", (4, 6), "odd"),
        ("int4-tp4", (4, 6), "4 equal parts"),
        ("int8", (4, 0), "no columns"),
        ("int8", (4,), "dimensions is 1"),
        ("int8", (2, 4, 8), "dimensions is 3"),
    ],
)
def test_shapes_that_do_not_fit(name, shape, reason):
    packer = GLM().parse(name)
    assert reason in packer.veto(shape)
    with pytest.raises(ShapeError, match=reason):
        packer.encode_reference(torch.zeros(shape))


def test_no_rows_at_all():
    packed = GLM().parse("int4").encode_reference(torch.zeros(0, 6))
    assert packed.nbytes == 0
    assert tuple(packed.dequantize().shape) == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(bad, dtype):
    weight = _weight(dtype=dtype)
    for place in ((0, 0), (11, 31), (5, 16)):
        broken = weight.clone()
        broken[place] = bad
        with pytest.raises(NonFiniteError, match="1 of 384 values"):
            GLM().parse("int4").encode_reference(broken)


def test_scales_beyond_float16():
    weight = torch.ones(3, 8)
    weight[1, 2] = 127 * 65530.0
    with pytest.raises(NonFiniteError, match=r"1 of 3 rows need a scale beyond f16.*at index 10"):
        GLM().parse("int8").encode_reference(weight)
    packed = GLM().parse("int8-f32").encode_reference(weight)
    assert packed.dequantize()[1, 2] == 127 * 65530.0


def test_inputs_stay_as_they_are_and_may_be_strided():
    weight = _weight(32, 12).t()
    before = weight.clone()
    packed = GLM().parse("int4").encode_reference(weight)
    assert torch.equal(weight, before)
    _equal(packed, GLM().parse("int4").encode_reference(before.contiguous()))
    strided = PackedTensor(
        packed.packer,
        (12, 16),
        {"weight": packed.fields["weight"][:, :8], "weight_scale": packed.fields["weight_scale"]},
    )
    assert torch.equal(strided.dequantize(), packed.dequantize()[:, :16])
    assert torch.equal(strided.unpack().dequantize(), packed.dequantize()[:, :16])


def test_pack_refuses_what_is_not_of_this_format():
    packer, codes = GLM().parse("int4"), torch.full((2, 8), 8, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="zero_point"):
        packer.pack(qformats.QuantizedTensor(codes, torch.ones(2, 1), (1, 8), zero_point=0))
    with pytest.raises(ConfigError, match="block_size"):
        packer.pack(qformats.QuantizedTensor(codes, torch.ones(2, 2), (1, 4), zero_point=8))


def test_fields_of_another_shape():
    packer = GLM().parse("int4")
    packed = packer.encode_reference(_weight())
    for name, field in (
        ("weight", packed.fields["weight"][:, :3]),
        ("weight", packed.fields["weight"].to(torch.int16)),
        ("weight_scale", packed.fields["weight_scale"][:5]),
        ("weight_scale", packed.fields["weight_scale"].float()),
    ):
        broken = PackedTensor(packed.packer, packed.shape, {**packed.fields, name: field})
        with pytest.raises(ShapeError, match=name):
            broken.dequantize()


def _locate(name, **stored):
    def read(field):
        raise AssertionError(f"nothing of {field} has to be read")

    return GLM().locate(GLM().parse(name), ModuleFields("layer", stored, read))


def test_modules_of_a_folder():
    found = _locate("int4", weight=((6, 8), "i8"), weight_scale=((6,), "f16"))
    assert found is not None
    assert (found[0].name, found[1]) == ("glm:int4", (6, 16))
    found = _locate("int8", weight=((6, 8), "i8"), weight_scale=((6,), "bf16"))
    assert found is not None
    assert (found[0].name, found[1]) == ("glm:int8-bf16", (6, 8))
    found = _locate("int4", weight=((6, 8), "i8"), weight_scale=((6, 2), "f32"))
    assert found is not None
    assert (found[0].name, found[1]) == ("glm:int4-f32-tp2", (6, 16))
    assert _locate("int4", weight=((6, 8), "f16")) is None
    for stored in (
        {"weight": ((6, 8), "i8")},
        {"weight": ((6, 8), "i8"), "weight_scale": ((5,), "f16")},
        {"weight": ((6, 8), "i8"), "weight_scale": ((6,), "i32")},
        {"weight": ((6, 8), "i8"), "weight_scale": ((), "f16")},
        {"weight": ((6, 8), "i8"), "weight_scale": ((6, 3), "f16")},
        {"weight": ((6, 8), "i8"), "weight_scale": ((6, 0), "f16")},
        {"weight": ((48,), "i8"), "weight_scale": ((6,), "f16")},
        {"weight": ((6, 0), "i8"), "weight_scale": ((6,), "f16")},
    ):
        with pytest.raises(ConfigError):
            _locate("int4", **stored)


def test_scales_in_a_file_are_finite():
    packer = GLM().parse("int4")
    packed = packer.encode_reference(_weight())
    packed.fields["weight_scale"][3] = float("nan")
    with pytest.raises(ConfigError, match="infinity or NaN"):
        packer.from_stored(packed.fields, (12, 32))


def test_exact_neighbours():
    """A row's scale is any block's scale: 4 bits live in q4_0, 8 bits in q8_0."""
    for name, other in (("int4", "gguf:q4_0"), ("int8", "gguf:q8_0")):
        packed = GLM().parse(name).encode_reference(_weight(8, 64))
        target = qformats.packer(other)
        moved = target.pack(target.represent(packed.unpack()))
        assert torch.equal(moved.dequantize(), packed.dequantize())
        back = GLM().parse(name)
        _equal(back.pack(back.represent(moved.unpack())), packed)
