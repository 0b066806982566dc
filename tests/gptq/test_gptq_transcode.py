"""What stays exact between GPTQ and the other formats: float32 values bit for bit, foreseen rightly."""

import pytest
import torch
from gptq.cases import name, weights

import qformats
from qformats.exact import Answer, NotExactError


def bits_of(values):
    """Float32 values as integers; -0 is +0."""
    return (values + 0.0).view(torch.int32)


def moved(quantized, source, target):
    """Pack in one format, hold and pack in the other; values before and after."""
    packed = qformats.pack(quantized, source)
    other = qformats.packer(target)
    after = other.pack(other.represent(qformats.unpack(packed)))
    return packed.dequantize(), qformats.dequantize(after)


def foreseen(source, target, shape):
    return qformats.packer(target).foresee(qformats.packer(source), shape)[0]


@pytest.mark.parametrize("shape", [(32, 64), (64, 192), (32, 544)])
@pytest.mark.parametrize(
    ("bits", "symmetric", "target"),
    [
        (4, True, "gguf:q4_0"),
        (4, True, "gguf:q5_0"),
        (4, True, "gguf:q8_0"),
        (4, False, "gguf:q5_0"),
        (4, False, "gguf:q8_0"),
        (2, True, "gguf:q4_0"),
        (2, False, "gguf:q4_0"),
        (3, True, "gguf:q4_0"),
        (3, False, "gguf:q4_0"),
        (8, True, "gguf:q8_0"),
        (4, True, "bitsandbytes:int8"),
    ],
)
def test_always_exact(bits, symmetric, target, shape):
    for group in (32, 64, 128, 0):
        if target == "bitsandbytes:int8" and group:
            continue
        source = name(bits, group, symmetric)
        before, after = moved(weights(bits, group, shape, symmetric, least=0), source, target)
        assert torch.equal(bits_of(before), bits_of(after)), (source, shape)
        if target != "bitsandbytes:int8":
            assert foreseen(source, target, shape) is Answer.ALWAYS, (source, shape)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_to_glm_and_back(bits):
    quantized = weights(bits, 0)
    before, after = moved(quantized, name(bits, 0), f"glm:int{bits}")
    assert torch.equal(bits_of(before), bits_of(after))
    weight = torch.randn(64, 192, generator=torch.Generator().manual_seed(4))
    packed = qformats.packer(f"glm:int{bits}").encode_reference(weight)
    for variant in (name(bits, 0), name(bits, 128), name(8, 32), name(bits, 0, symmetric=False)):
        packer = qformats.packer(variant)
        held = packer.pack(packer.represent(packed.unpack()))
        assert torch.equal(bits_of(held.dequantize()), bits_of(packed.dequantize())), variant
        assert packer.foresee(qformats.packer(f"glm:int{bits}"), (64, 192))[0] is Answer.ALWAYS, variant


@pytest.mark.parametrize("columns", [128, 160, 192])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("gguf:q4_0", "4bit-32g"),
        ("gguf:q4_0", "4bit-32g-asym"),
        ("gguf:q4_0", "8bit-32g"),
        ("gguf:q4_0", "4bit-32g-actorder"),
        ("gguf:q5_0", "8bit-32g"),
        ("gguf:q8_0", "8bit-32g"),
        ("gguf:q8_0", "8bit-32g-asym"),
    ],
)
def test_from_gguf(source, target, columns):
    weight = torch.randn(64, columns, generator=torch.Generator().manual_seed(5))
    packed = qformats.packer(source).encode_reference(weight)
    packer = qformats.packer(f"gptq:{target}")
    held = packer.pack(packer.represent(packed.unpack()))
    assert torch.equal(bits_of(held.dequantize()), bits_of(packed.dequantize()))
    assert packer.foresee(qformats.packer(source), (64, columns))[0] is Answer.ALWAYS
    if source == "gguf:q4_0":
        assert bool((held.unpack().scale < 0).any())
    back = qformats.packer(source)
    again = back.pack(back.represent(held.unpack()))
    assert all(torch.equal(again.fields[field], value) for field, value in packed.fields.items())


def test_what_is_not_exact_is_said():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(6))
    for source in ("gguf:q4_1", "gguf:q4_k", "bitsandbytes:nf4"):
        packed = qformats.packer(source).encode_reference(weight)
        with pytest.raises(NotExactError):
            qformats.packer("gptq:4bit-32g").represent(packed.unpack())
        assert foreseen(source, "gptq:4bit-32g", (64, 256)) is not Answer.ALWAYS
    assert foreseen("bitsandbytes:nf4", "gptq:4bit-32g", (64, 192)) is Answer.NEVER
    with pytest.raises(NotExactError, match="levels"):
        moved(weights(8, 32, symmetric=False, least=0), name(8, 32, symmetric=False), "gguf:q8_0")
    with pytest.raises(NotExactError, match="40 columns"):
        qformats.packer("gptq:4bit-32g").represent(
            qformats.packer("bitsandbytes:int8").encode_reference(torch.randn(32, 40)).unpack()
        )


def test_eight_bits_asymmetric_to_q8_0_where_levels_fit():
    quantized = weights(8, 32, symmetric=False)
    codes = torch.randint(100, 156, (64, 192), dtype=torch.uint8)
    zero = torch.full((64, 6), 128, dtype=torch.int32)
    zero[::2] = 140
    fits = qformats.QuantizedTensor(codes, quantized.scale, (1, 32), zero_point=zero)
    before, after = moved(fits, name(8, 32, symmetric=False), "gguf:q8_0")
    assert torch.equal(bits_of(before), bits_of(after))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [192, 256])
def test_an_order_of_columns(symmetric, columns):
    """It is kept where the target has one, and in the way of formats whose neighbours share a scale."""
    source = name(4, 64, symmetric, permuted=True)
    quantized = weights(4, 64, (64, columns), symmetric, permuted=True)
    before, after = moved(quantized, source, name(4, 64, False, permuted=True))
    assert torch.equal(bits_of(before), bits_of(after))
    before, after = moved(quantized, source, name(8, 64, False, permuted=True))
    assert torch.equal(bits_of(before), bits_of(after))
    for target in ("gguf:q8_0", name(4, 64, symmetric), name(8, 32, permuted=True)):
        with pytest.raises(NotExactError):
            moved(quantized, source, target)
    assert foreseen(source, name(4, 64, symmetric), (64, columns)) is Answer.DATA
    assert foreseen(source, name(4, 64, False, permuted=True), (64, columns)) is Answer.ALWAYS
    assert foreseen(source, name(4, 32, symmetric, permuted=True), (64, columns)) is Answer.DATA


@pytest.mark.parametrize("group", [64, 128])
def test_columns_in_order_are_recognised(group):
    """Static groups: whatever the order of quantization, the columns that share a scale are neighbours."""
    quantized = weights(4, group, (32, 192))
    packer = qformats.packer(name(4, group, permuted=True))
    packed = packer.pack(quantized)
    assert packed.unpack().g_idx is None
    before, after = moved(packed.unpack(), packer.name, "gguf:q4_0")
    assert torch.equal(bits_of(before), bits_of(after))


@pytest.mark.parametrize(
    ("source", "target", "answer"),
    [
        ("gptq:4bit-64g", "gptq:4bit-128g", Answer.DATA),
        ("gptq:4bit-128g", "gptq:4bit-64g", Answer.ALWAYS),
        ("gptq:4bit--1g", "gptq:4bit-128g", Answer.ALWAYS),
        ("gptq:4bit-128g", "gptq:4bit--1g", Answer.DATA),
        ("gptq:4bit-128g-asym", "gptq:4bit-128g", Answer.DATA),
        ("gptq:4bit-48g", "gptq:4bit-128g", Answer.DATA),
        ("gptq:4bit-128g", "gptq:3bit-128g", Answer.DATA),
    ],
)
def test_groups_with_a_short_one_at_the_end(source, target, answer):
    """192 columns are 128 and 64."""
    assert foreseen(source, target, (32, 192)) is answer
    packer = qformats.packer(source)
    quantized = packer.grid.quantize(torch.randn(32, 192, generator=torch.Generator().manual_seed(8)))
    if answer is Answer.ALWAYS:
        before, after = moved(quantized, source, target)
        assert torch.equal(bits_of(before), bits_of(after))
    else:
        with pytest.raises(NotExactError):
            moved(quantized, source, target)
    # Flat blocks that end with the rows, and others that do not.
    flat = qformats.packer("bitsandbytes:nf4-bs32").encode_reference(torch.randn(32, 192)).unpack()
    with pytest.raises(NotExactError):
        qformats.packer("gptq:4bit-128g").represent(flat)
    flat = qformats.packer("bitsandbytes:nf4-bs128").encode_reference(torch.randn(32, 192)).unpack()
    with pytest.raises(NotExactError, match="its blocks cross the ends of rows"):
        qformats.packer("gptq:4bit-128g").represent(flat)
