"""The kernels of a step of one token compute what torch computes."""

import pytest
import torch
from torch.nn import functional

step = pytest.importorskip("qformats.kernels.step", reason="needs Triton")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter runs where there is no CUDA device")
    return request.param


@pytest.fixture
def random(device):
    generator = torch.Generator().manual_seed(0)

    def make(*shape, dtype=torch.float16):
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return make


def close(found, expected, ulps=2.0):
    near = ulps * torch.finfo(found.dtype).eps
    assert (found.double() - expected.double()).norm() <= near * expected.double().norm()


@pytest.mark.parametrize(("plus_one", "late"), [(False, True), (True, False)])
def test_norm(random, plus_one, late):
    x, weight = random(3, 1, 100), random(100)
    wide = x.double()
    expected = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * (weight.double() + plus_one)
    close(step.norm(x, weight, 1e-5, plus_one=plus_one, late=late), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_rotary(random, rows):
    # As the views of an attention's projections lie.
    q = random(3, 1, 5 * 12).view(3, 1, 5, 12).transpose(1, 2)
    k = random(3, 1, 2 * 12).view(3, 1, 2, 12).transpose(1, 2)
    cos, sin = random(rows, 1, 12), random(rows, 1, 12)
    for found, x in zip(step.rotary(q, k, cos, sin), (q, k), strict=True):
        low, high = x.double().chunk(2, -1)
        turned = torch.cat((-high, low), -1)
        close(found, x.double() * cos.double()[:, None] + turned * sin.double()[:, None])


def test_store(random, device):
    keys, values = random(2, 3, 10, 8), random(2, 3, 10, 6)
    expected = keys.clone(), values.clone()
    k, v = random(2, 3, 1, 8), random(2, 1, 3, 6).transpose(1, 2)
    step.store(k, v, keys, values, torch.tensor([4], device=device))
    expected[0][:, :, 4:5], expected[1][:, :, 4:5] = k, v
    assert torch.equal(keys, expected[0])
    assert torch.equal(values, expected[1])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "widths", "length", "options"),
    [
        (4, 2, (32, 32), 0, {}),
        (4, 2, (32, 32), 70, {}),
        (16, 1, (24, 40), 99, {}),
        (3, 3, (64, 64), 99, {"window": 33}),
        (6, 3, (32, 32), 64, {"cap": 2.0, "window": 1000}),
        (4, 2, (32, 32), 31, {"sinks": True}),
    ],
)
def test_attention(random, device, heads, kv_heads, widths, length, options):
    room, pads = 128, torch.tensor([0, min(length, 9)], device=device)
    q = random(2, 1, heads * widths[0]).view(2, 1, heads, widths[0]).transpose(1, 2)
    keys, values = random(2, kv_heads, room, widths[0]), random(2, kv_heads, room, widths[1])
    sinks = random(heads) if options.get("sinks") else None
    given = {**options, "sinks": sinks}
    scores = q.double() @ keys.double().repeat_interleave(heads // kv_heads, 1).transpose(-1, -2) * 0.3
    if "cap" in options:
        scores = options["cap"] * (scores / options["cap"]).tanh()
    place = torch.arange(room, device=device)
    seen = (place <= length) & (place >= pads[:, None])
    if "window" in options:
        seen &= place > length - options["window"]
    scores = scores.masked_fill(~seen[:, None, None], -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double()[None, :, None, None].expand(2, -1, 1, 1)), -1)
    shares = scores.softmax(-1)[..., :room]
    expected = shares @ values.double().repeat_interleave(heads // kv_heads, 1)
    where = torch.tensor([length], device=device)
    # Twice: the counters that programs share must be as they were.
    for _ in range(2):
        found = step.attention(q, keys, values, pads, where, scaling=0.3, **given)
        close(found, expected.transpose(1, 2), ulps=4)


@pytest.mark.parametrize("kind", list(step.GATES))
def test_gated(random, kind):
    gate, up = random(2, 1, 1100) * 3, random(2, 1, 1100)
    wide = gate.double()
    act = functional.silu(wide) if kind == "silu" else functional.gelu(wide, approximate="tanh")
    close(step.gated(gate, up, kind), act * up.double())


def test_heads_of_any_strides(random, device):
    q, k, v = (random(2, heads, 32, 3)[..., :1].transpose(-1, -2) for heads in (4, 2, 2))
    assert q.stride(-1) != 1
    cos, sin = random(1, 1, 32), random(1, 1, 32)
    for found, expected in zip(
        step.rotary(q, k, cos, sin), step.rotary(q.contiguous(), k.contiguous(), cos, sin), strict=True
    ):
        assert torch.equal(found, expected)
    keys, values = random(2, 2, 8, 32), random(2, 2, 8, 32)
    where, pads = torch.tensor([5], device=device), torch.zeros(2, dtype=torch.int64, device=device)
    others = keys.clone(), values.clone()
    step.store(k, v, keys, values, where)
    step.store(k.contiguous(), v.contiguous(), *others, where)
    assert torch.equal(keys, others[0])
    assert torch.equal(values, others[1])
    found = step.attention(q, keys, values, pads, where, scaling=0.3)
    assert torch.equal(found, step.attention(q.contiguous(), *others, pads, where, scaling=0.3))
