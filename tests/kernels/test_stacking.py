"""Weights that lie together: each is what it was, and one launch multiplies with those that are chosen."""

import pytest
import torch
from kernels.weights import of_format

from qformats.kernels import ops, reference
from qformats.kernels.device import arrange, restore
from qformats.kernels.stacking import chosen_linear, stack

# A plane and two, tables, minima, zero points, a scale a row, two levels of scales.
FORMATS = ["gguf:q4_0", "gguf:q5_1", "bitsandbytes:nf4", "gptq:3bit-32g", "glm:int8", "gguf:q4_k"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CHOSEN = [0, 3, 2, 2, 1, 3]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return request.param


@pytest.fixture(params=["reference", "triton"])
def kernel(request, monkeypatch):
    monkeypatch.setenv("QFORMATS_KERNEL", request.param)


def weights(format, device, rows=64):
    made = [of_format(format, rows, 256, seed=seed) for seed in range(4)]
    return [arrange(quantized.to(device), bits) for quantized, bits in made]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("format", FORMATS)
def test_chosen_weights(format, device):
    alone = weights(format, device)
    parts = stack(alone)
    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(0)).to(device)
    found = chosen_linear(x, parts, torch.tensor(CHOSEN, device=device), 2)
    expected = torch.cat([reference.linear(x[n // 2][None], alone[k]) for n, k in enumerate(CHOSEN)])
    assert (found - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("format", FORMATS)
def test_a_part_is_the_weight_it_was(format, device):
    alone = weights(format, device)
    part, own = stack(alone)[2], alone[2]
    assert torch.equal(restore(part).codes, restore(own).codes)
    assert torch.equal(ops.dequantize(part, torch.float32), ops.dequantize(own, torch.float32))
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)).to(device)
    assert torch.equal(ops.linear(x, part), ops.linear(x, own))
    ids = torch.tensor([3, 60], device=device)
    assert torch.equal(ops.embedding(ids, part), ops.embedding(ids, own))


def test_weights_of_two_kinds_stay_apart():
    assert stack([*weights("gguf:q4_0", "cpu"), *weights("gguf:q5_0", "cpu")]) is None
    assert stack([*weights("gguf:q4_0", "cpu"), *weights("gguf:q4_0", "cpu", rows=96)]) is None
