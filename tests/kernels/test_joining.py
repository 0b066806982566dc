"""Weights that are multiplied with the same activations: each is what it was, and one launch gives all products."""

import pytest
import torch
from kernels.weights import of_format

from qformats.kernels import launch, ops, reference
from qformats.kernels.device import arrange, restore
from qformats.kernels.joining import join
from qformats.kernels.prepared import JoinedLinear

FORMATS = ["gguf:q4_0", "gguf:q5_1", "bitsandbytes:nf4", "glm:int8"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Borders inside of a program's rows.
ROWS = [(40, 64, 8), (72, 56)]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    monkeypatch.setenv("QFORMATS_KERNEL", "triton")
    return request.param


def weights(format, rows, device):
    made = [of_format(format, count, 256, seed=seed) for seed, count in enumerate(rows)]
    return [arrange(quantized.to(device), bits) for quantized, bits in made]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", ROWS)
def test_products(format, rows, device):
    alone = weights(format, rows, device)
    whole, parts = join(alone)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(device)
    bias = torch.randn(sum(rows), generator=torch.Generator().manual_seed(1)).to(device)
    found = launch.joined_linear(x, whole, bias, rows)
    for weight, product, own in zip(alone, found, bias.split(list(rows)), strict=True):
        expected = reference.linear(x, weight) + own
        assert product.shape == expected.shape
        assert product.is_contiguous()
        assert (product - expected).norm() < 1e-6 * expected.norm()
    for weight, part in zip(alone, parts, strict=True):
        assert torch.equal(restore(part).codes, restore(weight).codes)
        assert torch.equal(ops.dequantize(part), ops.dequantize(weight))
        assert torch.equal(ops.linear(x, part), ops.linear(x, weight))


def test_columns_in_another_order(device):
    order = torch.randperm(256, generator=torch.Generator().manual_seed(0)).to(torch.int32).to(device)
    alone = [weight._replace(order=order) for weight in weights("gptq:4bit-128g", (64, 32), device)]
    whole, _ = join(alone)
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0)).to(device)
    for product, weight in zip(JoinedLinear(whole, (64, 32)).products(x), alone, strict=True):
        expected = ops.linear(x, weight)
        assert product.shape == expected.shape
        assert (product - expected).norm() < 1e-6 * expected.norm()


def test_what_stays_apart(device):
    first, second = weights("gguf:q4_0", (32, 32), device)
    assert join([first]) is None
    assert join([first] * 4) is None
    assert join([first, *weights("gguf:q5_0", (32,), device)]) is None
    narrow, _ = of_format("gguf:q4_0", 32, 128)
    assert join([first, arrange(narrow.to(device))]) is None
    assert join([first, second._replace(scale=second.scale.float())]) is None
    order = torch.arange(256, dtype=torch.int32, device=device)
    assert join([first._replace(order=order), second]) is None
    assert join([first._replace(order=order), second._replace(order=order.flip(0))]) is None
    _, parts = join([first, second])
    assert join(parts) is None
