"""Layers that are given the same states are computed together; every product is that of the layer alone."""

import copy
import threading

import pytest
import torch
from torch import nn

import qformats
from qformats.kernels.joining import join
from qformats.runtime.linear import QuantLinear
from qformats.runtime.neighbours import Neighbours, join_neighbours, trusted

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    monkeypatch.setenv("QFORMATS_KERNEL", "triton")
    return request.param


def layer(rows, seed, device, bias=False, format="gguf:q4_0"):
    values = torch.randn(rows, 128, generator=torch.Generator().manual_seed(seed))
    packed = qformats.pack(qformats.quantize(values, format), format)
    made = QuantLinear.from_packed(packed, torch.full((rows,), float(seed)) if bias else None)
    made.arrange(device)
    return made.to(device)


def neighbours(device, *biases):
    layers = [
        layer(rows, seed, device, bias)
        for seed, (rows, bias) in enumerate(zip((32, 16, 16), biases, strict=True))
    ]
    alone = [each.arranged() for each in layers]
    whole, parts = join(alone)
    made = Neighbours(layers, whole)
    for each, part in zip(layers, parts, strict=True):
        each.rearranged(part)
    return layers, made


def plain(layer, x):
    return nn.functional.linear(x, layer.dequantize(x.dtype), layer.bias)


def near(found, expected):
    return found is not None and (found - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("biases", [(False, False, False), (True, True, True)])
@torch.no_grad()
def test_products_are_those_of_each_layer(biases, device):
    layers, made = neighbours(device, *biases)
    for seed in range(2):
        x = torch.randn(2, 1, 128, generator=torch.Generator().manual_seed(seed)).to(device)
        for each in layers:
            assert near(made.product(each, x), plain(each, x))
        # Asked again, for the same states.
        assert near(made.product(layers[1], x), plain(layers[1], x))
    if all(biases):
        layers[0].bias.add_(1)
        x = x + 1
        assert near(made.product(layers[0], x), plain(layers[0], x))


@torch.no_grad()
def test_states_that_change_are_computed_anew(device):
    layers, made = neighbours(device, False, False, False)
    x = torch.randn(1, 128, generator=torch.Generator().manual_seed(0)).to(device)
    assert near(made.product(layers[0], x), plain(layers[0], x))
    x.mul_(2)
    assert near(made.product(layers[1], x), plain(layers[1], x))
    other = x.clone()
    assert near(made.product(layers[2], other), plain(layers[2], other))


@torch.no_grad()
def test_layers_of_other_states_part(device):
    layers, made = neighbours(device, False, False, False)
    for seed in range(12):
        x = torch.randn(1, 128, generator=torch.Generator().manual_seed(seed)).to(device)
        found = made.product(layers[seed % 3], x)
        assert found is None or near(found, plain(layers[seed % 3], x))
    assert not made.together


@torch.no_grad()
def test_threads_do_not_take_each_others(device):
    layers, made = neighbours(device, False, False, False)
    states = [torch.randn(1, 128, generator=torch.Generator().manual_seed(n)).to(device) for n in range(2)]
    # Triton's interpreter runs one kernel at a time.
    found, turn, alone = {}, threading.Barrier(2), threading.Lock()

    def run(number):
        with torch.no_grad():
            for _ in range(3):
                for place, each in enumerate(layers):
                    turn.wait(60)
                    with alone:
                        found[number, place] = made.product(each, states[number])

    others = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join()
    assert len(found) == 6
    assert all(near(each, plain(layers[place], states[number])) for (number, place), each in found.items())
    assert made.together


def test_some_biases(device):
    layers, made = neighbours(device, True, False, False)
    with torch.no_grad():
        assert made.product(layers[0], torch.ones(1, 128, device=device)) is None


def test_inference_mode_takes_trust(device):
    layers, made = neighbours(device, False, False, False)
    with torch.inference_mode():
        x = torch.ones(1, 128, device=device)
        assert made.product(layers[0], x) is None
        with trusted():
            assert near(made.product(layers[0], x), plain(layers[0], x))
        assert made.product(layers[0], x) is None


class Attention(nn.Module):
    def __init__(self, device):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (layer(rows, rows, device) for rows in (64, 32, 16))
        self.o_proj = layer(128, 1, device)


@pytest.mark.gpu
def test_a_model(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    monkeypatch.delenv("QFORMATS_KERNEL", raising=False)
    device = "cuda"
    model = Attention(device)
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        before = [each(x) for each in model.children()]
        packed = [each.packed().fields for each in model.children()]
        join_neighbours(model)
        assert model.q_proj.neighbours is model.v_proj.neighbours is not None
        assert model.o_proj.neighbours is None
        for _ in range(2):
            for each, expected in zip(model.children(), before, strict=True):
                assert near(each(x), expected)
        again = copy.deepcopy(model)
        assert again.q_proj.neighbours is None
        assert near(again.k_proj(x), before[1])
        for each, fields in zip(model.children(), packed, strict=True):
            assert all(torch.equal(fields[name], value) for name, value in each.packed().fields.items())
        model.cpu()
        assert model.q_proj.neighbours is None
        assert near(model.k_proj(x.cpu()), before[1].cpu())
