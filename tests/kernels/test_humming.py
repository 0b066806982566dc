"""Many rows of activations by Humming: the same numbers, where it is fit; elsewhere the shared kernels, and a word."""

import importlib.util

import pytest
import torch
from kernels.weights import by_hand, of_format

from qformats.errors import BackendUnavailableError
from qformats.kernels import ops
from qformats.kernels.device import arrange
from qformats.kernels.humming import HummingLinear, unfit
from qformats.kernels.prepared import PreparedLinear

FIT = ["gguf:q4_0", "gguf:q5_0", "gguf:q8_0", "gptq:4bit-128g", "gptq:8bit-64g-asym", "glm:int4", "glm:int8"]
HAS = importlib.util.find_spec("humming") is not None
gpu = pytest.mark.gpu


def weight(format, device="cpu", rows=256, columns=512):
    quantized, bits = of_format(format, rows, columns)
    return arrange(quantized.to(device), bits)


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return "cuda"


@pytest.mark.parametrize("format", FIT)
def test_what_is_fit(format):
    assert unfit(weight(format), torch.float16) is None
    assert "bfloat16" in unfit(weight(format), torch.bfloat16)


@pytest.mark.parametrize(
    ("format", "told"),
    [
        ("gguf:q4_1", "one scale a group and nothing else"),
        ("bitsandbytes:nf4", "one scale a group and nothing else"),
        ("gguf:q4_k", "one scale a group and nothing else"),
        ("bitsandbytes:int8", "float16 cannot hold its scales"),
    ],
)
def test_what_is_not(format, told):
    assert told in unfit(weight(format), torch.float16)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"bits": 4, "rows": 64, "columns": 192, "group": 48}, "groups of 48 columns"),
        ({"bits": 4, "rows": 64, "columns": 192, "group": 8}, "groups of 8 columns"),
        ({"bits": 4, "rows": 72, "columns": 192, "group": 64}, "72 x 192 is not a multiple of 64"),
        ({"bits": 4, "rows": 64, "columns": 128, "group": 32, "below": 3}, "zero points from -3 to -3"),
    ],
)
def test_shapes_it_does_not_have(made, told):
    assert told in unfit(arrange(by_hand(**made), made["bits"]), torch.float16)


@gpu
@pytest.mark.skipif(not HAS, reason="humming-kernels is not installed; it takes a CUDA device and compiler")
@pytest.mark.parametrize("format", FIT)
def test_products(format, cuda, monkeypatch):
    made = weight(format, cuda)
    linear = PreparedLinear(made)
    monkeypatch.setenv("QFORMATS_KERNEL", "humming")
    for count in (64, 100, 700):
        x = torch.randn(2, count // 2, 512, device=cuda, dtype=torch.float16)
        bias = torch.randn(256, device=cuda, dtype=torch.float16)
        expected = x.double() @ ops.dequantize(made, torch.float32).double().T + bias.double()
        found = linear(x, bias)
        assert found.shape == expected.shape
        assert found.dtype == torch.float16
        assert (found.double() - expected).norm() < 1e-3 * expected.norm()
    assert linear._humming[torch.float16] is not None
    # A few rows are the shared kernel's, bit for bit.
    monkeypatch.delenv("QFORMATS_KERNEL")
    few = x[0, :4]
    expected = linear(few)
    monkeypatch.setenv("QFORMATS_KERNEL", "humming")
    assert torch.equal(linear(few), expected)


@gpu
@pytest.mark.skipif(not HAS, reason="humming-kernels is not installed; it takes a CUDA device and compiler")
def test_what_is_unfit_stays_and_says_so(cuda, monkeypatch):
    made = weight("gguf:q4_1", cuda)
    monkeypatch.setenv("QFORMATS_KERNEL", "humming")
    x = torch.randn(64, 512, device=cuda, dtype=torch.float16)
    with pytest.warns(UserWarning, match="stays with the shared kernels, because its codes have one scale"):
        found = PreparedLinear(made)(x)
    assert torch.equal(found, ops.linear(x, made))


@gpu
@pytest.mark.skipif(HAS, reason="humming-kernels is installed")
def test_a_package_that_is_missing(cuda, monkeypatch):
    monkeypatch.setenv("QFORMATS_KERNEL", "humming")
    made = weight("gguf:q4_0", cuda)
    with pytest.raises(BackendUnavailableError, match="humming: the package is not installed"):
        PreparedLinear(made)(torch.randn(64, 512, device=cuda, dtype=torch.float16))
    with pytest.raises(BackendUnavailableError):
        HummingLinear(made)
