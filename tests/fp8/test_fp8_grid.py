"""The numbers of E4M3 and their rounding, against torch; scales of blocks of any shape."""

from __future__ import annotations

import hashlib

import pytest
import torch

import qformats
from qformats.errors import ConfigError, NotExactError
from qformats.interfaces import Answer, cut
from qformats.numbers import E4M3, Float8Grid

BYTES = torch.arange(256, dtype=torch.uint8)
FINITE = BYTES[(BYTES & 127) != 127]


def weights(rows=300, columns=200):
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(0)) * 0.05


def test_the_numbers_are_those_of_torch():
    values = FINITE.view(torch.float8_e4m3fn).float()
    assert torch.tensor(E4M3).tolist() == sorted({float(value) for value in values})
    assert (len(E4M3), E4M3[-1], E4M3[len(E4M3) // 2 + 1]) == (253, 448.0, 2.0**-9)
    every = BYTES.view(torch.float8_e4m3fn).float()
    every[every.isnan()] = torch.tensor(0x7FC00000, dtype=torch.int32).view(torch.float32)
    # Of the 256 values in little-endian float32, as published tables of the format give them.
    assert hashlib.sha256(every.numpy().tobytes()).hexdigest().startswith("422eccfaa21e72a6")


def test_every_byte_there_and_back():
    codes = Float8Grid.places(FINITE.view(torch.float8_e4m3fn))
    table = torch.tensor(E4M3)
    assert torch.equal(table[codes.long()], FINITE.view(torch.float8_e4m3fn).float() + 0.0)
    again = Float8Grid.stored(codes).view(torch.uint8)
    # -0 is 0.
    assert torch.equal(again, FINITE.where(FINITE != 0x80, torch.zeros_like(FINITE)))
    for byte in (0x7F, 0xFF):
        with pytest.raises(ConfigError, match="1 codes of NaN"):
            Float8Grid.places(torch.tensor([byte], dtype=torch.uint8).view(torch.float8_e4m3fn))
    with pytest.raises(ConfigError, match="codes"):
        Float8Grid.stored(torch.tensor([253], dtype=torch.uint8))


def test_ties_go_to_even_mantissas_and_what_is_larger_becomes_the_largest():
    grid = Float8Grid(block_size=0)
    params = qformats.GridParams(torch.ones(1, 1))
    middles = (torch.tensor(E4M3)[1:] + torch.tensor(E4M3)[:-1]) / 2
    some = torch.cat([middles, torch.tensor([449.0, 464.0, 480.0, 1e6, -1e6, 2.0**-10, 2.0**-10 * 1.01])])
    found = grid.decode(grid.encode(some[None], params), params)[0]
    # In float64: the nearest of the table, and of two as near the one whose byte is even.
    table = torch.tensor(E4M3, dtype=torch.float64)
    for value, chosen in zip(some.tolist(), found.tolist(), strict=True):
        distance = (table - value).abs()
        near = [level for level in table[distance == distance.min()].tolist()]
        even = [x for x in near if int(torch.tensor(x).to(torch.float8_e4m3fn).view(torch.uint8)) % 2 == 0]
        assert chosen in near
        assert len(near) == 1 or chosen in even


@pytest.mark.parametrize("block", [(128, 128), (32, 48), (1, 0), (0, 0)])
def test_blocks_of_any_shape(block):
    """Scales and values by a loop over blocks; those at the edges are short."""
    weight = weights()
    grid = Float8Grid(block_size=block[1], block_rows=block[0])
    height, width = block[0] or weight.shape[0], block[1] or weight.shape[1]
    quantized = grid.quantize(weight)
    values = quantized.dequantize()
    for i in range(-(-weight.shape[0] // height)):
        for j in range(-(-weight.shape[1] // width)):
            here = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
            scale = weight[here].abs().max() / 448
            assert quantized.scale[i, j] == scale
            assert torch.equal(values[here], (weight[here] / scale).to(torch.float8_e4m3fn).float() * scale)
    grid.validate(quantized)


@pytest.mark.parametrize("format", ["fp8:block", "compressed-tensors:fp8-channel"])
def test_rows_are_cut_between_blocks(format):
    packer = qformats.packer(format)
    weight = weights()
    packed = packer.encode_reference(weight)
    step = packer.row_step(packed.shape)
    assert step == (128 if format == "fp8:block" else 1)
    parts = [cut(packed, start, min(300, start + 128)).dequantize() for start in (0, 128, 256)]
    assert torch.equal(torch.cat(parts), packed.dequantize())


def test_what_holds_what():
    """A scale per tensor fits in blocks and rows; blocks fit in neither, unless their scales are equal."""
    names = {
        kind: qformats.packer(f"compressed-tensors:fp8-{kind}") for kind in ("tensor", "channel", "block")
    }
    weight = weights()
    for source, target, holds in (
        ("tensor", "block", True),
        ("tensor", "channel", True),
        ("channel", "block", False),
        ("block", "tensor", False),
        ("block", "channel", False),
    ):
        packed = names[source].encode_reference(weight)
        answer, reason = names[target].foresee(names[source], weight.shape)
        assert answer is (Answer.ALWAYS if holds else Answer.DATA)
        if holds:
            held = names[target].pack(names[target].represent(packed.unpack()))
            assert torch.equal(held.dequantize(), packed.dequantize())
        else:
            assert reason == "a block may span several scales"
            with pytest.raises(NotExactError, match="spans several scales"):
                names[target].represent(packed.unpack())
    same = names["block"].encode_reference(torch.full((256, 256), 0.5))
    assert names["tensor"].represent(same.unpack()).scale.shape == (1, 1)


def test_other_grids():
    """Whole numbers up to 16 are E4M3 numbers; E4M3 is in no grid of equal steps."""
    four = qformats.packer("gptq:4bit--1g").grid.quantize(weights(64, 64))
    held = qformats.packer("compressed-tensors:fp8-channel").represent(four)
    assert torch.equal(held.dequantize(), four.dequantize() + 0.0)
    eight = qformats.packer("fp8:block").encode_reference(weights(64, 64)).unpack()
    for other in ("gguf:q8_0", "gptq:8bit-32g", "compressed-tensors:w8a8-channel"):
        with pytest.raises(NotExactError):
            qformats.packer(other).represent(eight)
