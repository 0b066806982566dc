"""Products on a CPU go by pieces of rows: the same numbers whatever the pieces."""

import pytest
import torch

import qformats
from qformats.runtime import pieces
from qformats.runtime.linear import QuantLinear

FORMATS = ["gguf:q4_0", "gguf:q4_k", "gptq:4bit-128g", "bitsandbytes:nf4", "bitsandbytes:int8", "glm:int4"]


@pytest.mark.parametrize("size", [1, 1 << 10, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_a_layer_multiplies_with_decoded_rows(format, dtype, size, monkeypatch):
    monkeypatch.setattr(pieces, "_PIECE", size)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 256, generator=generator) * 0.05
    packed = qformats.pack(qformats.quantize(weight, format), format)
    bias = torch.randn(96, generator=generator).to(dtype)
    x = torch.randn(2, 3, 256, generator=generator).to(dtype)
    found = QuantLinear.from_packed(packed, bias)(x)
    values = qformats.dequantize(packed).to(dtype)
    assert (found.shape, found.dtype) == ((2, 3, 96), dtype)
    expected = x.double() @ values.double().T + bias.double()
    error = (found.double() - expected).norm() / expected.norm()
    assert error < (1e-6 if dtype == torch.float32 else 8e-3)


def test_another_layer_does_not_change_what_one_gave():
    first, second = (
        QuantLinear.from_packed(qformats.pack(qformats.quantize(torch.eye(64) * k, "gguf:q8_0"), "gguf:q8_0"))
        for k in (1, 2)
    )
    x = torch.randn(1, 64)
    before = first(x)
    kept = before.clone()
    second(x)
    assert torch.equal(before, kept)
    assert pieces.multiplied(torch.zeros(0, 64), first.packed()).shape == (0, 64)


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:tq2_0", "gptq:4bit-128g-actorder"])
def test_inference_mode_leaves_nothing_behind(format, monkeypatch):
    monkeypatch.setattr(pieces, "_own", type(pieces._own)())
    layer = QuantLinear.from_packed(qformats.pack(qformats.quantize(torch.randn(96, 256), format), format))
    x = torch.randn(1, 256)
    with torch.inference_mode():
        first = layer(x).clone()
    assert torch.equal(layer(x), first)
