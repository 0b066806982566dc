"""Layers whose weight stays packed: values, gradients, memory, and the bytes that they give back."""

import copy
import math

import pytest
import torch
from oracles import ggml
from torch.nn import functional

import qformats
from qformats.errors import ShapeError
from qformats.numbers.float4 import is_e2m1
from qformats.numbers.float8 import is_e4m3
from qformats.runtime import QuantEmbedding, QuantLinear
from qformats.runtime import layer as layers

FORMATS = [
    "gguf:q4_0",
    "gguf:q4_1",
    "gguf:q5_0",
    "gguf:q5_1",
    "gguf:q8_0",
    "gptq:2bit-32g",
    "gptq:3bit-32g-asym",
    "gptq:4bit-64g",
    "gptq:8bit--1g",
    "bitsandbytes:nf4",
    "bitsandbytes:nf4-dq",
    "bitsandbytes:fp4",
    "bitsandbytes:int8",
    "glm:int4",
    "glm:int8",
]
ROWS, COLUMNS = 64, 192
STATES = ["packed", "arranged"]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed_in(format, rows=ROWS, columns=COLUMNS):
    return qformats.pack(qformats.quantize(random(rows, columns, seed=1), format), format)


def reordered():
    """A weight whose columns belong to groups in no order, as act-order leaves them."""
    generator = torch.Generator().manual_seed(3)
    g_idx = (torch.arange(COLUMNS) // 32)[torch.randperm(COLUMNS, generator=generator)].int()
    codes = torch.randint(0, 16, (ROWS, COLUMNS), generator=generator, dtype=torch.uint8)
    scale = (torch.rand(ROWS, COLUMNS // 32, generator=generator) * 0.1 + 1e-3).half()
    quantized = qformats.QuantizedTensor(codes, scale, (1, 32), zero_point=8, g_idx=g_idx)
    return qformats.pack(quantized, "gptq:4bit-32g-actorder")


def bytes_of(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def same_bytes(one, other):
    return (
        one.format == other.format
        and one.fields.keys() == other.fields.keys()
        and all(
            value.dtype == other.fields[name].dtype
            and value.shape == other.fields[name].shape
            and torch.equal(bytes_of(value), bytes_of(other.fields[name]))
            for name, value in one.fields.items()
        )
    )


def layer_of(packed, state, bias=None):
    layer = QuantLinear.from_packed(packed, bias)
    if state == "arranged":
        assert layer.arrange()
        assert layer.is_arranged
    return layer


@pytest.fixture(params=[*FORMATS, "act-order"])
def packed(request):
    return reordered() if request.param == "act-order" else packed_in(request.param)


@pytest.mark.parametrize("state", STATES)
def test_computes_what_the_values_say(packed, state):
    values, bias, x = packed.dequantize(), random(ROWS, seed=2), random(3, 5, COLUMNS)
    layer = layer_of(packed, state, bias)
    assert torch.equal(layer.dequantize(), values)
    expected = x.double() @ values.double().T + bias.double()
    assert (layer(x) - expected).norm() < 1e-6 * expected.norm()
    assert (layer(x[0, 0]) - expected[0, 0]).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("state", STATES)
def test_gradients_reach_input_and_bias(packed, state):
    values, x = packed.dequantize().double(), random(3, 5, COLUMNS).requires_grad_()
    layer = layer_of(packed, state, random(ROWS, seed=2))
    layer.bias.requires_grad_(True)
    grad = random(3, 5, ROWS, seed=4)
    layer(x).backward(grad)
    expected = grad.double() @ values
    assert (x.grad - expected).norm() < 1e-6 * expected.norm()
    torch.testing.assert_close(layer.bias.grad, grad.sum((0, 1)))


@pytest.mark.parametrize("state", STATES)
def test_nothing_dense_is_kept_for_the_backward_pass(state):
    layer, kept = layer_of(packed_in("gguf:q4_0"), state), []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    x = random(2, COLUMNS).requires_grad_()
    own = {value.data_ptr() for value in (*layer.parameters(), *layer.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x).sum().backward()
    assert all(tensor.data_ptr() in own or tensor.numel() <= x.numel() for tensor in kept)
    assert x.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("state", STATES)
def test_computes_in_the_dtype_of_the_input(state, dtype):
    packed, x = packed_in("gptq:4bit-64g"), random(4, COLUMNS, dtype=torch.float64)
    result = layer_of(packed, state)(x.to(dtype))
    assert result.dtype == dtype
    expected = x.to(dtype).double() @ packed.dequantize().double().T
    assert (result - expected).norm() < 4 * torch.finfo(dtype).eps * expected.norm()


def test_weights_are_decoded_in_pieces(monkeypatch):
    packed = packed_in("bitsandbytes:nf4", 60, 48)  # Blocks end with every fourth row.
    layer = QuantLinear.from_packed(packed)
    monkeypatch.setattr(layers, "_PIECE", 480)
    largest = []
    decode = layer.packer.dequantize

    def seen(part):
        largest.append(part.shape[0])
        return decode(part)

    monkeypatch.setattr(layer.packer, "dequantize", seen)
    found = layer.dequantize(torch.bfloat16)
    monkeypatch.undo()
    assert torch.equal(found, packed.dequantize().bfloat16())
    assert max(largest) == 8
    assert sum(largest) == 60


def test_the_packed_bytes_are_what_is_in_memory(packed):
    layer = QuantLinear.from_packed(packed)
    assert layer.nbytes == packed.nbytes
    held = [*layer.parameters(), *layer.buffers()]
    assert sum(value.nbytes for value in held) == packed.nbytes
    assert not any(value.requires_grad for value in held)


@pytest.mark.parametrize("state", STATES)
def test_gives_back_the_bytes_that_it_got(packed, state):
    layer = layer_of(packed, state)
    assert same_bytes(layer.packed(), packed)
    for moved in (layer.to(torch.bfloat16), layer.double(), copy.deepcopy(layer)):
        assert same_bytes(moved.packed(), packed), "casts are for activations"


def test_level_two_is_the_shared_kernel():
    """A format says that the kernel runs it if the kernel covers what it stores, in the words of the kernel."""
    formats = [spec for spec in qformats.formats() if qformats.packer(spec.name).grid is not None]
    assert len(formats) > 30
    for spec in formats:
        packed = packed_in(spec.name, 32, 256)
        assert layer_of(packed, "packed").arrange() == (spec.level == 2), spec.name
        quantized, kernel = packed.unpack(), spec.kernel
        if kernel is None:
            assert spec.level < 2, spec.name
            continue
        mode = "minimum" if quantized.minimum is not None else "affine"
        if quantized.codebook is not None:
            floats = is_e4m3(quantized.codebook) or is_e2m1(quantized.codebook)
            mode = "float" if floats else "table"
        assert kernel.mode == mode, spec.name
        assert (kernel.bits, kernel.block_size) == (spec.bits, spec.block_size), spec.name
        dtype = {"f16": torch.float16, "f32": torch.float32}[kernel.scale_dtype]
        assert quantized.scale.dtype == dtype, spec.name


def test_arranged_weights_keep_little_beside_the_layout(packed):
    layer = layer_of(packed, "arranged")
    assert not layer._kept
    assert all("device_" in name for name, _ in layer.named_buffers())
    assert layer.kernel_note == "shared kernel"


def test_what_the_source_was_is_given_back_too():
    """The description in a 4-bit folder says which dtype the weight had: no number that a kernel needs."""
    packed = qformats.packer("bitsandbytes:nf4-dq").encode_reference(random(64, 192, dtype=torch.bfloat16))
    layer = layer_of(packed, "arranged")
    assert same_bytes(layer.packed(), packed)
    assert layer.nbytes < layer.arranged().nbytes + 300, "the description alone is kept"


@pytest.mark.parametrize("state", STATES)
def test_state_dict_holds_the_fields_of_the_format(packed, state):
    layer = layer_of(packed, state, random(ROWS))
    content = layer.state_dict()
    assert content.keys() == {*packed.fields, "bias"}
    assert all(torch.equal(bytes_of(content[n]), bytes_of(v)) for n, v in packed.fields.items())
    for device in ("meta", "cpu"):
        other = QuantLinear(COLUMNS, ROWS, packer=packed.format, device=device)
        other.load_state_dict(content, assign=device == "meta")
        assert same_bytes(other.packed(), packed)
        assert torch.equal(other.bias, layer.bias)
    layer.load_state_dict(content)
    assert layer.is_arranged == (state == "arranged")
    assert same_bytes(layer.packed(), packed)


def test_a_state_dict_that_does_not_fit_is_refused():
    packed = packed_in("glm:int4")
    layer = QuantLinear.from_packed(packed)
    content = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_scale"):
        layer.load_state_dict({"weight": content["weight"]})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*qzeros"):
        layer.load_state_dict({**content, "qzeros": content["weight"]})
    with pytest.raises(RuntimeError, match=r"weight_scale of glm:int4: found .*float32, expected .*float16"):
        layer.load_state_dict({**content, "weight_scale": content["weight_scale"].float()})
    assert same_bytes(layer.packed(), packed)


@pytest.mark.parametrize("state", STATES)
def test_embeddings_look_rows_up(packed, state):
    values, ids = packed.dequantize(), torch.tensor([[5, 0, 5], [63, 1, 17]])
    layer = QuantEmbedding.from_packed(packed)
    if state == "arranged":
        assert layer.arrange()
    assert torch.equal(layer(ids), values[ids])
    assert layer(ids[:0]).shape == (0, 3, COLUMNS)
    layer.to(torch.bfloat16)
    assert torch.equal(layer(ids), values[ids].bfloat16())
    assert same_bytes(layer.packed(), packed)


def test_only_rows_that_are_looked_up_are_decoded(monkeypatch):
    layer, seen = QuantEmbedding.from_packed(packed_in("gguf:q8_0")), []
    decode = layer.packer.dequantize
    monkeypatch.setattr(layer.packer, "dequantize", lambda part: seen.append(part.shape) or decode(part))
    layer(torch.tensor([[3, 9, 3]]))
    assert seen == [(2, COLUMNS)]


def test_ids_beyond_the_table_are_refused():
    layer = QuantEmbedding.from_packed(packed_in("gguf:q8_0"))
    for wrong in (-1, ROWS):
        with pytest.raises(IndexError, match=f"ids run from .*table has {ROWS} rows"):
            layer(torch.tensor([0, wrong]) if wrong > 0 else torch.tensor([wrong, 0]))


@pytest.mark.parametrize("state", STATES)
def test_a_tied_head_has_no_weight_of_its_own(state):
    packed = packed_in("gguf:q4_1")
    table = QuantEmbedding.from_packed(packed)
    head = QuantLinear(COLUMNS, ROWS, bias=False, packer="gguf:q4_1", device="meta")
    head.tie(table)
    if state == "arranged":
        assert head.arrange()
        assert table.is_arranged
    assert not [*head.parameters(), *head.buffers(), *head.modules()][1:]
    assert head.state_dict() == {}
    assert head.weight.data_ptr() == table.weight.data_ptr()
    x = random(2, COLUMNS)
    torch.testing.assert_close(head(x), x @ packed.dequantize().T)
    model = torch.nn.ModuleDict({"table": table, "head": head}).to(torch.bfloat16)
    again = copy.deepcopy(model)
    assert again["head"].weight.data_ptr() == again["table"].weight.data_ptr()
    with pytest.raises(ShapeError):
        QuantLinear(COLUMNS, ROWS + 32, bias=False, packer="gguf:q4_1").tie(table)


def test_a_format_without_canonical_form_runs_and_says_so():
    blocks = ggml.quantize("IQ3_S", random(8, 512).numpy())
    packed = qformats.PackedTensor(
        qformats.packer("gguf:iq3_s"), (8, 512), {"blocks": torch.from_numpy(blocks)}
    )
    layer, x = QuantLinear.from_packed(packed), random(2, 512)
    values = torch.from_numpy(ggml.dequantize("IQ3_S", blocks))
    torch.testing.assert_close(layer(x), x @ values.T)
    assert torch.equal(QuantEmbedding.from_packed(packed)(torch.tensor([7, 2])), values[[7, 2]])
    assert layer.kernel_note == "decoded at each use"
    assert not layer.arrange()
    assert layer.kernel_note == "decoded at each use, because gguf:iq3_s has no canonical form"
    torch.testing.assert_close(layer(x), x @ values.T)
    assert same_bytes(layer.packed(), packed)


def test_blocks_that_straddle_rows_run_and_say_so():
    packed = packed_in("bitsandbytes:nf4", 6, 40)
    layer = QuantLinear.from_packed(packed)
    assert not layer.arrange()
    assert "because blocks of 64 straddle rows of 40 columns" in layer.kernel_note
    assert layer.kernel_note in repr(layer)
    x = random(2, 40)
    torch.testing.assert_close(layer(x), x @ packed.dequantize().T)
    assert same_bytes(layer.packed(), packed)


def test_arranged_layers_compile_without_a_break():
    layer = layer_of(packed_in("gguf:q4_0"), "arranged", random(ROWS))
    table = QuantEmbedding.from_packed(packed_in("gguf:q4_0"))
    table.arrange()

    def run(ids):
        return layer(table(ids))

    ids = torch.tensor([[1, 2, 3]])
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), run(ids))


def test_layers_pass_for_the_modules_that_they_replace():
    linear_layer = QuantLinear.from_packed(packed_in("gguf:q4_0"))
    table = QuantEmbedding.from_packed(packed_in("gguf:q4_0"))
    assert isinstance(linear_layer, torch.nn.Linear)
    assert isinstance(table, torch.nn.Embedding)
    assert (linear_layer.in_features, linear_layer.out_features) == (COLUMNS, ROWS)
    assert (table.num_embeddings, table.embedding_dim) == (ROWS, COLUMNS)
    assert linear_layer.weight.dtype == torch.uint8
    assert "gguf:q4_0" in repr(linear_layer)
    with pytest.raises(ShapeError):
        linear_layer.set_packed(packed_in("gguf:q4_0", ROWS, 2 * COLUMNS))
    linear_layer.set_packed(packed_in("glm:int8"))
    x = random(2, COLUMNS)
    torch.testing.assert_close(linear_layer(x), functional.linear(x, packed_in("glm:int8").dequantize()))
    assert math.isclose(linear_layer.nbytes, packed_in("glm:int8").nbytes)
