"""The compiled kernels: the same bytes as the plain formulas, and arguments that do not fit together."""

import numpy as np
import pytest
import torch
from gptq.cases import BITS, name

import qformats
from qformats.errors import ConfigError, NonFiniteError, ShapeError
from qformats.numbers.bitpack import pack_bits
from qformats_gptq import kernels


def weight(dtype, columns=224):
    """Rows of all magnitudes, of zeros, of one value, of one sign, and of ties."""
    generator = torch.Generator().manual_seed(11)
    rows = torch.randn(64, columns, generator=generator) * torch.logspace(-9, 3, 64)[:, None]
    rows[:5] = 0
    rows[5], rows[6], rows[9] = 0.25, -0.25, -0.0
    rows[7, ::2] = 0
    rows[8] = rows[8].abs()
    rows[10] = (torch.arange(columns) % 17 - 8) * 0.5
    rows[11, -1] = 40000.0
    return rows.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_one_pass_gives_the_bytes_of_the_rule(bits, symmetric, dtype):
    for group in (0, 32, 48, 128, 1024):
        packer = qformats.packer(name(bits, group, symmetric))
        dense = weight(dtype)
        before = dense.clone()
        fast, plain = packer.encode_reference(dense), packer.pack(packer.grid.quantize(dense))
        for field, value in plain.fields.items():
            assert torch.equal(fast.fields[field], value), (group, field)
        assert torch.equal(dense, before)
        # Columns that are no neighbours in memory.
        assert torch.equal(
            packer.encode_reference(dense.t().contiguous().t()).fields["qweight"], fast.fields["qweight"]
        )


@pytest.mark.parametrize("scale", ["bf16", "f32"])
def test_scales_of_other_dtypes(scale):
    packer = qformats.packer(f"gptq:4bit-32g-asym-{scale}")
    fast, plain = (
        packer.encode_reference(weight(torch.float32)),
        packer.pack(packer.grid.quantize(weight(torch.float32))),
    )
    assert all(torch.equal(fast.fields[field], value) for field, value in plain.fields.items())


@pytest.mark.parametrize("variant", ["4bit-32g", "4bit-128g-asym", "8bit--1g", "3bit-48g-asym"])
def test_values_that_cannot_be_kept(variant):
    packer = qformats.packer(f"gptq:{variant}")
    for value in (torch.nan, torch.inf, -torch.inf):
        dense = weight(torch.float32)
        dense[3, 223] = value
        with pytest.raises(NonFiniteError, match="1 of 14336 values are not finite"):
            packer.encode_reference(dense)
    dense = weight(torch.float32)
    dense[20, 100] = 1e8
    with pytest.raises(NonFiniteError, match=r"1 of \d+ blocks need a scale beyond f16"):
        packer.encode_reference(dense)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(32, 32), (32, 96), (64, 64), (160, 288)])
def test_words_are_one_stream(bits, shape):
    codes = np.random.default_rng(0).integers(0, 1 << bits, shape, dtype=np.uint8)
    words = np.empty((shape[1] * bits // 32, shape[0]), np.int32)
    kernels.pack(bits, codes, words)
    assert np.array_equal(pack_bits(torch.from_numpy(codes), bits).view(torch.int32).t().numpy(), words)
    back = np.empty_like(codes)
    kernels.unpack(bits, words, back)
    assert np.array_equal(back, codes)
    # The lowest bits of larger codes count: neighbours are never touched.
    again = np.empty_like(words)
    kernels.pack(bits, codes | np.uint8(256 - (1 << bits)), again)
    assert np.array_equal(again, words)


def _arrays(rows=32, columns=64, bits=4, groups=2):
    return {
        "words": np.zeros((columns * bits // 32, rows), np.int32),
        "codes": np.zeros((rows, columns), np.uint8),
        "scale": np.ones((rows, groups), np.float32),
        "zero": np.zeros((rows, groups), np.float32),
        "out": np.zeros((rows, columns), np.float32),
    }


def test_arguments_that_do_not_fit_together():
    a = _arrays()
    wrong = [
        lambda: kernels.pack(5, a["codes"], a["words"]),
        lambda: kernels.pack(8, a["codes"], a["words"]),
        lambda: kernels.pack(4, a["codes"][:, :60], a["words"]),
        lambda: kernels.pack(4, a["codes"].astype(np.int16), a["words"]),
        lambda: kernels.pack(4, a["codes"], a["words"].astype(np.int64)),
        lambda: kernels.unpack(4, a["words"], np.asfortranarray(a["codes"])),
        lambda: kernels.unpack(4, a["words"][:-1], a["codes"]),
        lambda: kernels.dequantize(4, a["words"], a["scale"], a["zero"], 48, a["out"]),
        lambda: kernels.dequantize(4, a["words"], a["scale"], a["zero"], 0, a["out"]),
        lambda: kernels.dequantize(4, a["words"], a["scale"], a["zero"], 64, a["out"]),
        lambda: kernels.dequantize(4, a["words"], a["scale"], a["zero"].astype(np.int32), 32, a["out"]),
        lambda: kernels.quantize(4, a["out"], 32, a["codes"][:, :32], a["scale"], None),
        lambda: kernels.quantize(4, a["out"], 16, a["codes"], a["scale"], None),
        lambda: kernels.quantize(4, a["out"], 0, a["codes"], a["scale"], None),
        lambda: kernels.quantize(4, a["out"].astype(np.float64), 32, a["codes"], a["scale"], None),
        lambda: kernels.quantize(4, a["out"], 32, a["codes"], a["scale"], a["codes"]),
    ]
    for call in wrong:
        with pytest.raises((ShapeError, ConfigError)):
            call()
