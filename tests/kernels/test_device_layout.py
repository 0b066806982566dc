"""The device layout holds every number it was given."""

import dataclasses

import pytest
import torch
from kernels.weights import BY_HAND, FORMATS, by_hand, of_format

from qformats.errors import ConfigError
from qformats.kernels import ops
from qformats.kernels.codebook import make_codebook
from qformats.kernels.device import arrange, restore, uncovered
from qformats.kernels.form import EXPONENT, FLOAT8, QUOTIENT, padded_columns
from qformats.kernels.words import mix_floats
from qformats.numbers import NestedScales, QuantizedTensor


def assert_same(found: QuantizedTensor, expected: QuantizedTensor) -> None:
    assert found.codes.dtype == expected.codes.dtype
    assert torch.equal(found.codes, expected.codes)
    assert found.scale.dtype == expected.scale.dtype
    assert torch.equal(found.scale.flatten(), expected.scale.flatten())
    for name in ("minimum", "codebook", "g_idx"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert torch.equal(mine.flatten(), theirs.flatten()), name
    if isinstance(expected.zero_point, torch.Tensor):
        assert torch.equal(found.zero_point.to(torch.int64), expected.zero_point.to(torch.int64))
    elif expected.codebook is None:
        assert found.zero_point == expected.zero_point


@pytest.mark.parametrize("format", FORMATS)
def test_formats_come_back_as_they_were(format):
    quantized, bits = of_format(format, 64, 768)
    assert uncovered(quantized, bits) is None
    assert_same(restore(arrange(quantized, bits)), quantized)


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:q5_1", "gptq:3bit-32g", "gptq:4bit-128g", "glm:int4"])
def test_restored_weights_pack_into_the_same_bytes(format):
    import qformats

    quantized, bits = of_format(format, 32, 256)
    again = qformats.pack(restore(arrange(quantized, bits)), format)
    before = qformats.pack(quantized, format)
    for name, field in before.fields.items():
        assert torch.equal(again.fields[name].view(torch.uint8), field.view(torch.uint8)), name


@pytest.mark.parametrize("name", BY_HAND)
def test_any_width_group_and_mode_comes_back(name):
    quantized = by_hand(**BY_HAND[name])
    weight = arrange(quantized, BY_HAND[name]["bits"])
    assert_same(restore(weight), quantized)
    assert torch.equal(restore(arrange(quantized)).dequantize(), quantized.dequantize())
    assert weight.form.rows, weight.form.columns == quantized.shape


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 8])
def test_codes_take_their_width(bits):
    quantized = by_hand(bits, 64, 1024, 128)
    planes = arrange(quantized, bits).planes
    assert sum(plane.numel() * 2 for plane in planes) * 8 == bits * 64 * 1024
    assert padded_columns(1024, bits) == 1024


def test_blocks_over_the_flattened_tensor_become_blocks_of_rows():
    lined = by_hand(4, 6, 128, 64, mode="table")
    flat = dataclasses.replace(lined, scale=lined.scale.flatten(), block_size=(0, 64))
    assert torch.equal(restore(arrange(flat)).dequantize(), flat.dequantize())


@pytest.mark.parametrize("mode", ["affine", "zeros", "minimum", "table"])
def test_blocks_of_several_rows(mode):
    one = by_hand(4, 3, 96, 32, mode=mode)
    codes = torch.randint(0, 16, (8, 96), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    # Eight rows in blocks of three, the last one short.
    tall = dataclasses.replace(one, codes=codes, block_size=(3, 32))
    again = restore(arrange(tall))
    assert again.block_size == (3, 32)
    assert torch.equal(again.codes, codes)
    assert torch.equal(again.scale, tall.scale)
    assert torch.equal(again.dequantize(), tall.dequantize())
    x = torch.randn(2, 96, generator=torch.Generator().manual_seed(2))
    close = torch.nn.functional.linear(x, tall.dequantize())
    torch.testing.assert_close(ops.linear(x, arrange(tall)), close)
    ids = torch.tensor([7, 0, 4])
    assert torch.equal(ops.embedding(ids, arrange(tall)), tall.dequantize()[ids])


def changed(**parts) -> QuantizedTensor:
    return dataclasses.replace(by_hand(4, 8, 128, 32), **parts)


@pytest.mark.parametrize(
    ("quantized", "reason"),
    [
        (
            dataclasses.replace(by_hand(4, 8, 96, 32), scale=torch.ones(12), block_size=(0, 64)),
            "straddle rows",
        ),
        (
            changed(
                scale=torch.ones(4, 4, dtype=torch.float16),
                block_size=(2, 32),
                g_idx=torch.arange(128, dtype=torch.int32) // 32,
            ),
            "spans 2 rows of columns in another order",
        ),
        (by_hand(4, 8, 128, 4), "shorter than 8"),
        (changed(zero_point=7.5), "not a whole number"),
        (changed(zero_point=torch.full((8, 4), 0.5)), "not whole numbers"),
        (changed(zero_point=torch.full((8, 4), 999)), "from 999 to 999 are too far from codes of 4 bits"),
        (changed(zero_point=torch.full((8, 4), 17)), "too far"),
        (changed(zero_point=-17), "too far"),
        (changed(zero_point=float("nan")), "not a whole number"),
        (changed(zero_point=torch.full((8, 4), float("inf"))), "too far"),
        (changed(scale=torch.ones(8, 4, dtype=torch.bfloat16)), "scales are torch.bfloat16"),
        (changed(g_idx=torch.zeros(128, dtype=torch.int32)), "unequal sizes"),
        (by_hand(8, 8, 128, 32, mode="table"), "larger than 16"),
        (by_hand(4, 0, 128, 32), "empty"),
    ],
)
def test_what_the_modes_do_not_cover_is_refused_with_its_reason(quantized, reason):
    assert reason in uncovered(quantized)
    with pytest.raises(ConfigError, match="device layout") as caught:
        arrange(quantized)
    assert reason in str(caught.value)


def test_a_width_that_does_not_hold_the_codes_is_refused():
    assert "which 3 bits cannot hold" in uncovered(by_hand(4, 8, 128, 32), 3)
    assert "16 bits" in uncovered(changed(codes=torch.full((8, 128), 300, dtype=torch.int16)))


@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "bitsandbytes:fp4"])
def test_tables_of_formats_have_the_cheaper_look_up(format):
    quantized, _ = of_format(format, 4, 64)
    levels = torch.nn.functional.pad(quantized.codebook, (0, 16 - len(quantized.codebook)))
    assert make_codebook(levels).paired == (True, True)


def test_a_table_without_pairs_is_held_all_the_same():
    # Seven negative levels and no zero: they cannot be paired by their sign.
    levels = torch.tensor([-7.0, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    book = make_codebook(levels)
    assert book.paired == (False, False)
    quantized = dataclasses.replace(by_hand(4, 8, 64, 32, mode="table"), codebook=levels)
    assert_same(restore(arrange(quantized)), quantized)


@pytest.mark.parametrize(
    ("format", "bits"),
    [
        ("q2_k", 3.125),
        ("q3_k", 3.5625),
        ("q4_k", 4.625),
        ("q5_k", 5.625),
        ("q6_k", 6.5625),
        ("iq4_xs", 4.3125),
    ],
)
def test_scales_in_two_levels_are_not_multiplied_out(format, bits):
    quantized, width = of_format(f"gguf:{format}", 64, 1024)
    weight = arrange(quantized, width)
    table = 0 if weight.table is None else weight.table.nbytes
    assert (weight.nbytes - table) * 8 / (64 * 1024) == bits
    assert torch.equal(restore(weight).scale, quantized.scale)
    # Scales of their own, which the stored numbers no longer give, are what counts.
    other = dataclasses.replace(quantized, scale=quantized.scale * 2)
    assert not arrange(other, width).form.outer
    assert torch.equal(restore(arrange(other, width)).dequantize(), other.dequantize())


@pytest.mark.parametrize(
    ("format", "bits", "kind"),
    [
        ("gguf:mxfp4", 4.25, EXPONENT),
        ("compressed-tensors:mxfp4", 4.25, EXPONENT),
        ("gguf:nvfp4", 4.5, FLOAT8),
        ("modelopt:nvfp4", 4.5, FLOAT8),
        ("compressed-tensors:nvfp4", 4.5, QUOTIENT),
    ],
)
def test_scales_that_are_small_floats_stay_bytes(format, bits, kind):
    quantized, width = of_format(format, 64, 1024)
    weight = arrange(quantized, width)
    assert weight.form.inner == kind
    # A number for each row, 4 bytes of 1024 columns.
    assert weight.nbytes * 8 / (64 * 1024) == bits + 32 / 1024
    assert_same(restore(weight), quantized)
    assert torch.equal(ops.dequantize(weight), quantized.dequantize())


def test_scales_that_no_byte_holds_are_kept_as_they_are():
    quantized, width = of_format("modelopt:nvfp4", 16, 256)
    for scale in (quantized.scale * 1.1, quantized.scale * 2.0**120, -quantized.scale):
        other = dataclasses.replace(quantized, scale=scale)
        weight = arrange(other, width)
        assert weight.form.inner == 0
        assert weight.scale.shape == (16, 16)
        assert torch.equal(restore(weight).scale, scale)
    powers, width = of_format("gguf:mxfp4", 16, 256)
    zeros = powers.scale.clone()
    zeros[0, 0] = 2.0**-128
    weight = arrange(dataclasses.replace(powers, scale=zeros), width)
    assert weight.form.inner == EXPONENT, "the scale of a block of zeros"
    assert torch.equal(restore(weight).scale, zeros)
    zeros[0, 1] = 2.0**127
    assert arrange(dataclasses.replace(powers, scale=zeros), width).form.inner == 0


@pytest.mark.parametrize("bits", [8, 4])
def test_floats_come_back_from_their_order(bits):
    words = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    mixed = mix_floats(words, bits)
    assert torch.equal(mix_floats(mixed, bits, back=True), words)
    assert len(mixed.unique()) == len(words)


def test_nested_scales_of_any_factor_and_an_odd_number_of_columns():
    class Nested(QuantizedTensor):
        nested_scales = (
            NestedScales(
                torch.tensor([[0.5, -2.0], [1.0, 65504.0]]),
                torch.tensor([[-128.0, 127, 0, 1, 2, 3, 4, 5], [4, 5, 6, 7, 8, 9, 10, 11]]),
                torch.arange(-128.0, 128),
            ),
        )

    plain = by_hand(4, 2, 250, 32)
    quantized = Nested(plain.codes, Nested.nested_scales[0].values(), (1, 32), 8)
    weight = arrange(quantized, 4)
    assert (weight.form.outer, weight.scale.dtype, tuple(weight.factor.shape)) == (128, torch.float16, (2, 2))
    assert_same(restore(weight), quantized)
    assert torch.equal(ops.dequantize(weight), quantized.dequantize())
