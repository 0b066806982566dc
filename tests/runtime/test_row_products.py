"""Layers multiply a few vectors by their format's code for rows."""

import copy
import pickle

import pytest
import torch

import qformats
from qformats.runtime import products
from qformats.runtime.linear import QuantLinear
from qformats.work.pool import torch_threads


def layer(seed=0, format="gguf:q4_k", rows=64, columns=512):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return QuantLinear.from_packed(qformats.pack(qformats.quantize(weight, format), format))


def close(found, x, linear):
    expected = x.double() @ linear.dequantize().double().T
    return (found.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("shape", [(512,), (1, 512), (2, 4, 512), (9, 512), (0, 512)])
def test_few_vectors_and_many(shape):
    linear, x = layer(), torch.randn(shape)
    found = linear(x)
    assert found.shape == (*shape[:-1], 64)
    assert close(found, x, linear)


def test_dtypes_and_strides():
    linear, x = layer(), torch.randn(512, 2)
    assert close(linear(x.T), x.T, linear)
    for dtype in (torch.float16, torch.bfloat16):
        low = x.T.to(dtype)
        found = linear(low)
        assert found.dtype == dtype
        # Values and sums in float32, rounded once.
        assert torch.equal(found, linear(low.float()).to(dtype))


def test_threads_give_the_same_bits(monkeypatch):
    linear, x = layer(rows=67), torch.randn(3, 512)
    alone = linear(x)
    monkeypatch.setattr(products, "_THREAD", 1)
    for threads in (2, 3):
        with torch_threads(threads):
            assert torch.equal(linear(x), alone)


def test_another_weight_is_noticed():
    linear, x = layer(), torch.randn(1, 512)
    linear(x)
    other = layer(1)
    linear.load_state_dict(other.state_dict())
    assert close(linear(x), x, other)
    linear.set_packed(layer(2, "gguf:q8_0").packed())
    assert close(linear(x), x, layer(2, "gguf:q8_0"))
    # In place, too: nothing about scales is remembered.
    linear.packed().fields["blocks"].copy_(layer(3, "gguf:q8_0").packed().fields["blocks"])
    assert close(linear(x), x, layer(3, "gguf:q8_0"))


def test_copies_and_pickles_are_layers_of_their_own():
    linear, x = layer(), torch.randn(1, 512)
    before = linear(x)
    for other in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        linear.packed().fields["blocks"].zero_()
        assert torch.equal(other(x), before)
        linear.load_state_dict(other.state_dict())


def test_tied_and_compiled():
    linear, x = layer(), torch.randn(1, 512)
    other = layer(1)
    other.tie(linear)
    assert torch.equal(other(x), linear(x))
    with torch.inference_mode():
        compiled = torch.compile(linear, backend="eager")
        assert torch.equal(compiled(x), linear(x))


def test_gradients_take_the_other_way():
    linear, x = layer(), torch.randn(1, 512, requires_grad=True)
    linear(x).sum().backward()
    assert torch.allclose(x.grad[0], linear.dequantize().sum(0), atol=1e-4)
