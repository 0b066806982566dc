"""The operators against float64 of the same codes: the torch reference, and Triton (interpreted without a GPU)."""

import re

import pytest
import torch
from kernels.weights import BY_HAND, FORMATS, by_hand, moved, of_format

from qformats.errors import BackendUnavailableError, ConfigError, ShapeError
from qformats.kernels import ops
from qformats.kernels.device import arrange

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What a result rounded to the dtype differs by, and sums of products of a rounded weight.
CLOSE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(params=["reference", "triton"], autouse=True)
def kernel(request, monkeypatch):
    monkeypatch.setenv("QFORMATS_KERNEL", request.param)
    return request.param


def arranged(quantized, bits=None):
    return moved(arrange(quantized, bits), DEVICE)


def activations(count, columns, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, columns, generator=generator).to(dtype).to(DEVICE)


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def check(quantized, bits, dtype, counts, kernel):
    weight, values = arranged(quantized, bits), quantized.dequantize().to(DEVICE)
    found = ops.dequantize(weight, dtype)
    if kernel == "triton" and dtype == torch.bfloat16 and DEVICE == "cpu":
        # The interpreter cuts float32 off instead of rounding it, and multiplies the bits of bfloat16 as if they
        # were integers: products of bfloat16 are tested on a GPU.
        assert torch.allclose(found.float(), values, rtol=2**-7, atol=0)
        counts = ()
    else:
        assert torch.equal(found, values.to(dtype))
    bias = activations(1, len(values), dtype, seed=2)[0]
    for count in counts:
        x = activations(count, values.shape[1], dtype)
        expected = x.double() @ values.double().T
        assert error(ops.linear(x, weight, bias), expected + bias.double()) < CLOSE[dtype], count


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format(format, dtype, kernel):
    check(*of_format(format, 32, 256), dtype, (3,), kernel)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", BY_HAND)
def test_odd_shapes_groups_and_modes(name, dtype, kernel):
    check(by_hand(**BY_HAND[name]), BY_HAND[name]["bits"], dtype, (5,), kernel)


@pytest.mark.parametrize("count", [1, 9, 33, 64, 65])
def test_any_number_of_rows(count, kernel):
    check(by_hand(4, 70, 520, 64, mode="zeros"), 4, torch.float16, (count,), kernel)


def test_without_a_bias(kernel):
    quantized = by_hand(4, 8, 64, 32)
    x, values = activations(2, 64, torch.float32), quantized.dequantize().to(DEVICE)
    assert error(ops.linear(x, arranged(quantized)), x.double() @ values.double().T) < CLOSE[torch.float32]


def test_no_rows_at_all(kernel):
    weight = arranged(by_hand(4, 8, 64, 32))
    assert ops.linear(torch.zeros(0, 64, device=DEVICE), weight).shape == (0, 8)


@pytest.mark.parametrize("value", [0.0, 65504.0])
def test_zero_and_huge_scales(value, kernel):
    quantized = by_hand(4, 8, 64, 32)
    quantized.scale.fill_(value)
    found = ops.dequantize(arranged(quantized), torch.float32)
    assert torch.equal(found, quantized.dequantize().to(DEVICE))


def test_constant_codes_and_scales_too_small_for_normal_numbers(kernel):
    quantized = by_hand(4, 8, 64, 32)
    quantized.scale.fill_(2**-24)
    quantized.codes.fill_(15)
    for dtype in (torch.float32, torch.float16):
        found = ops.dequantize(arranged(quantized), dtype)
        assert torch.equal(found, quantized.dequantize().to(dtype).to(DEVICE))


def test_activations_of_any_shape_and_stride(kernel):
    quantized = by_hand(4, 8, 64, 32, ordered=True)
    weight, values = arranged(quantized), quantized.dequantize().to(DEVICE)
    x = activations(12, 128, torch.float32).view(3, 4, 128)[..., ::2]
    assert error(ops.linear(x, weight), x.double() @ values.double().T) < 2e-6
    assert ops.linear(x, weight).shape == (3, 4, 8)
    assert ops.linear(x[0, 0], weight).shape == (8,)


@pytest.mark.parametrize("name", ["4 bits, ordered, zeros", "table of 16", "5 bits, minimum of a row"])
def test_rows_are_looked_up(name, kernel):
    quantized = by_hand(**BY_HAND[name])
    ids = torch.tensor([[0, 3], [3, quantized.shape[0] - 1]], device=DEVICE)
    found = ops.embedding(ids, arranged(quantized), torch.float16)
    assert torch.equal(found, quantized.dequantize().half().to(DEVICE)[ids])


@pytest.mark.parametrize("name", ["4 bits, ordered, zeros", "table of 16", "8 bits, minimum, f32"])
def test_gradients_reach_the_input_and_the_bias(name, kernel):
    quantized = by_hand(**BY_HAND[name])
    weight, values = arranged(quantized), quantized.dequantize().to(DEVICE)
    x = activations(5, values.shape[1], torch.float32).requires_grad_()
    bias = activations(1, len(values), torch.float32)[0].requires_grad_()
    upstream = activations(5, len(values), torch.float32, seed=3)
    ops.linear(x, weight, bias).backward(upstream)
    assert error(x.grad, upstream.double() @ values.double()) < 2e-6
    assert error(bias.grad, upstream.double().sum(0)) < 2e-6


def test_gradients_through_checkpointing(kernel):
    weight = arranged(by_hand(4, 8, 64, 32))
    x = activations(5, 64, torch.float32).requires_grad_()
    torch.utils.checkpoint.checkpoint(
        lambda y: ops.linear(y, weight), x, use_reentrant=False
    ).sum().backward()
    expected = torch.ones(5, 8, device=DEVICE) @ ops.dequantize(weight, torch.float32)
    assert torch.allclose(x.grad, expected, rtol=1e-5, atol=1e-5)


def test_the_operators_are_declared_as_torch_wants_them(kernel):
    weight = arranged(by_hand(4, 8, 64, 32, mode="zeros"))
    x = activations(2, 64, torch.float32).requires_grad_()
    parts = (list(weight.planes), *weight[1:-1], list(weight.form))
    torch.library.opcheck(torch.ops.qformats.linear.default, (x, None, *parts))
    torch.library.opcheck(torch.ops.qformats.dequantize.default, (*parts, torch.float16))
    ids = torch.tensor([1, 2], device=DEVICE)
    torch.library.opcheck(torch.ops.qformats.embedding.default, (ids, *parts, torch.float16))


def test_compiling_breaks_no_graph(kernel):
    weight = arranged(by_hand(4, 8, 64, 32))
    x = activations(3, 64, torch.float32)
    compiled = torch.compile(lambda y: torch.relu(ops.linear(y, weight)), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), torch.relu(ops.linear(x, weight)))


def test_wrong_input_is_named(kernel):
    weight = arranged(by_hand(4, 8, 64, 32))
    with pytest.raises(ShapeError, match="64 columns"):
        ops.linear(torch.zeros(2, 32, device=DEVICE), weight)
    with pytest.raises(ConfigError, match="float16, bfloat16 or float32"):
        ops.linear(torch.zeros(2, 64, device=DEVICE, dtype=torch.float64), weight)


def test_an_unknown_kernel_is_named(monkeypatch):
    weight = arranged(by_hand(4, 8, 64, 32))
    monkeypatch.setenv("QFORMATS_KERNEL", "cuda")
    with pytest.raises(ConfigError, match=r"QFORMATS_KERNEL.*reference"):
        ops.dequantize(weight)


@pytest.mark.skipif(DEVICE == "cuda", reason="tensors are on a CUDA device here")
def test_triton_on_a_cpu_is_refused_outside_the_interpreter(monkeypatch):
    weight = arranged(by_hand(4, 8, 64, 32))
    monkeypatch.setenv("QFORMATS_KERNEL", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendUnavailableError, match="on cpu"):
        ops.dequantize(weight)


@pytest.mark.parametrize(("bf16", "largest"), [(False, 256), (True, 64)], ids=["float16", "bfloat16"])
def test_the_fast_decode_subtracts_exact_zero_points(bf16, largest):
    # The interpreter does not run the fast branch, but what it subtracts stands in its text.
    from qformats.kernels.triton_decode import pair_assembly

    dtype, one = (torch.bfloat16, 128) if bf16 else (torch.float16, 1024)
    for zero in range(-largest, largest + 1):
        (word,) = re.findall(r"mov\.b32 z, (0x[0-9a-f]+);", pair_assembly(4, 0, 0, zero, bf16))
        halves = torch.tensor([int(word, 16)], dtype=torch.int64).to(torch.int32).view(dtype)
        assert halves.tolist() == [one + zero, one + zero]
