"""What only a GPU can show: the fast decode bit for bit, CUDA graphs, streams, and shapes of real layers."""

import threading

import pytest
import torch
from kernels.weights import BY_HAND, FORMATS, by_hand, moved, of_format

from qformats.kernels import ops, reference
from qformats.kernels.device import arrange
from qformats.kernels.prepared import PreparedLinear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture
def launch():
    return pytest.importorskip("qformats.kernels.launch", reason="needs Triton")


def on_gpu(quantized, bits=None):
    return moved(arrange(quantized, bits), "cuda")


def both_branches(launch, monkeypatch, run):
    fast = run()
    with monkeypatch.context() as patch:
        patch.setattr(launch, "_fast", lambda *_: False)
        return fast, run()


def activations(count, columns, dtype, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(count, columns, generator=generator, device="cuda").to(dtype)


def error(found, weight, x):
    expected = x.double() @ reference.dequantize(weight, torch.float32).double().T
    return float((found.double() - expected).norm() / expected.norm())


def assert_both_agree(weight, launch, monkeypatch):
    for dtype in HALVES:
        fast, portable = both_branches(launch, monkeypatch, lambda d=dtype: launch.dequantize(weight, d))
        assert torch.equal(fast, portable)
        assert torch.equal(fast, reference.dequantize(weight, dtype))
        x = activations(9, weight.form.columns, dtype)
        fast, portable = both_branches(launch, monkeypatch, lambda y=x: launch.linear(y, weight, None))
        assert torch.equal(fast, portable)
        assert error(fast, weight, x) < (1e-3 if dtype == torch.float16 else 8e-3)


@pytest.mark.parametrize("format", FORMATS)
def test_the_fast_decode_equals_the_portable_one_bit_for_bit(format, launch, monkeypatch):
    assert_both_agree(on_gpu(*of_format(format, 96, 1024)), launch, monkeypatch)


@pytest.mark.parametrize("name", BY_HAND)
def test_the_fast_decode_in_odd_shapes_and_modes(name, launch, monkeypatch):
    weight = on_gpu(by_hand(**BY_HAND[name]), BY_HAND[name]["bits"])._replace(order=None)
    assert_both_agree(weight, launch, monkeypatch)


@pytest.mark.parametrize(
    "format", ["gguf:q4_0", "gguf:q5_1", "bitsandbytes:nf4", "gptq:4bit-128g", "glm:int8"]
)
@pytest.mark.parametrize("count", [1, 4, 16, 40, 64, 100, 600])
def test_layers_of_real_size(format, count):
    quantized, bits = of_format(format, 1152, 4224)
    weight = on_gpu(quantized, bits)
    poison = torch.full((count, 1152), float("nan"), device="cuda", dtype=torch.float16)
    del poison  # What the operator writes into held no zeros before.
    x = activations(count, 4224, torch.float16)
    found = ops.linear(x, weight)
    assert error(found, weight, x) < 1e-3
    assert torch.equal(found, ops.linear(x, weight)), "sums are made in one order"


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:q5_1", "bitsandbytes:nf4", "gptq:4bit-128g"])
def test_launches_past_tritons_launcher_give_the_same_bits(format):
    weight = on_gpu(*of_format(format, 1152, 4224))
    linear = PreparedLinear(weight)
    bias = activations(1, 1152, torch.float16)[0]
    for count in (1, 16):
        for seed in range(3):
            x = activations(count, 4224, torch.float16, seed=seed)
            assert torch.equal(linear(x), ops.linear(x, weight))
            assert torch.equal(linear(x, bias), ops.linear(x, weight, bias))
    assert len(linear._launches) == 4
    assert all(each._direct is not None for each in linear._launches.values())


def test_launches_from_a_thread_that_has_not_called_cuda_before():
    weight = on_gpu(*of_format("gguf:q4_0", 256, 512))
    linear = PreparedLinear(weight)
    x = activations(1, 512, torch.float16)
    expected = linear(x)
    made = []
    other = threading.Thread(target=lambda: made.append(linear(x)))
    other.start()
    other.join()
    assert torch.equal(made[0], expected)


def test_large_activations_do_not_overflow():
    weight = on_gpu(*of_format("glm:int8", 128, 1024))
    x = activations(1, 1024, torch.float16) * 10000
    assert error(ops.linear(x, weight), weight, x) < 1e-3


@pytest.mark.parametrize("count", [1, 16, 128])
def test_a_captured_graph_gives_what_the_call_gave(count):
    weight = on_gpu(*of_format("gguf:q4_0", 512, 4096))
    x = activations(count, 4096, torch.float16)
    expected = ops.linear(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = ops.linear(x, weight)
        twice = ops.linear(x, weight)
    for _ in range(3):
        found.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, expected)
        assert torch.equal(twice, expected)


def test_streams_and_graphs_share_no_counters():
    weight = on_gpu(*of_format("gptq:4bit-128g", 512, 4096))
    x = activations(1, 4096, torch.float16)
    expected = ops.linear(x, weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.linear(x, weight)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    results = []
    for _ in range(100):
        graph.replay()
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(ops.linear(x, weight))
    torch.cuda.synchronize()
    assert all(torch.equal(result, expected) for result in [*results, captured])


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # Inductor itself still uses it.
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_inductor_compiles_the_operator_into_its_graph(dtype):
    weight = on_gpu(*of_format("gguf:q4_0", 256, 512))
    x = activations(4, 512, dtype)
    compiled = torch.compile(lambda y: torch.relu(ops.linear(y, weight)) * 2, fullgraph=True)
    assert torch.equal(compiled(x), torch.relu(ops.linear(x, weight)) * 2)


def test_gradients_of_half_precision():
    weight = on_gpu(*of_format("bitsandbytes:nf4", 256, 512))
    x = activations(4, 512, torch.bfloat16).requires_grad_()
    upstream = activations(4, 256, torch.bfloat16, seed=2)
    ops.linear(x, weight).backward(upstream)
    expected = upstream.double() @ reference.dequantize(weight, torch.float32).double()
    assert float((x.grad.double() - expected).norm() / expected.norm()) < 8e-3


def test_arranging_on_the_gpu_equals_arranging_on_the_cpu():
    hand = ("4 bits, ordered, zeros", "table of 16", "5 bits, minimum of a row")
    every = [by_hand(**BY_HAND[name]) for name in hand]
    for quantized in (*every, of_format("gguf:q2_k", 64, 512)[0], of_format("gguf:q6_k", 64, 512)[0]):
        cpu = arrange(quantized)
        gpu = arrange(quantized.to("cuda"))
        assert gpu.form == cpu.form
        for mine, theirs in zip((*gpu.planes, *gpu[1:-1]), (*cpu.planes, *cpu[1:-1]), strict=True):
            assert (mine is None and theirs is None) or torch.equal(mine.cpu(), theirs)
