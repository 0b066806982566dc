"""Models on a CUDA device: their weights lie in the layout of the shared kernels, and nothing else changes."""

import pytest
import torch

import qformats
from qformats.runtime import PackedLayer, QuantLinear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
IDS = [5, 17, 90, 3, 3, 44, 61, 8, 95, 33, 12, 70, 2, 51]
FORMATS = [
    "gguf:q4_0",
    "gguf:q4_1",
    "gguf:q5_0",
    "gguf:q5_1",
    "gguf:q8_0",
    "gptq:4bit-64g",
    "gptq:3bit-32g-asym",
    "bitsandbytes:nf4",
    "bitsandbytes:nf4-dq",
    "bitsandbytes:int8",
    "glm:int4",
    "glm:int8",
]


def packed_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLayer)}


def assert_same_bytes(one, other):
    assert one.fields.keys() == other.fields.keys()
    for field, value in one.fields.items():
        bytes_of = [
            part.cpu().contiguous().reshape(-1).view(torch.uint8) for part in (value, other.fields[field])
        ]
        assert torch.equal(*bytes_of), field


def logits_of(model):
    with torch.no_grad():
        return model(torch.tensor([IDS], device=model.device)).logits.float().cpu()


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
@pytest.mark.parametrize("format", FORMATS)
def test_models_run_on_the_shared_kernels(name, format, exported):
    path = exported(name, format)
    plain, model = (
        qformats.load_model(path, device="cpu"),
        qformats.load_model(path, device="cuda", dtype="f32"),
    )
    expected, found = logits_of(plain), logits_of(model)
    assert (found - expected).norm() < 2e-3 * expected.norm()
    for layer_name, layer in packed_layers(model).items():
        assert layer.is_arranged, layer.kernel_note
        assert layer.weight.is_cuda
        assert_same_bytes(layer.packed(), packed_layers(plain)[layer_name].packed())
    assert {weight.note for weight in model.qformats_report.weights} == {"shared kernel"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_computes_in_halves(dtype, exported):
    path = exported("llama", "gguf:q4_0")
    model = qformats.load_model(path, device="cuda", dtype=dtype)
    expected = logits_of(qformats.load_model(path, device="cpu"))
    assert (logits_of(model) - expected).norm() < 100 * torch.finfo(dtype).eps * expected.norm()


def test_models_move(exported):
    path = exported("qwen2", "gptq:4bit-64g")
    model = qformats.load_model(path, device="cpu")
    before, expected = {n: m.packed() for n, m in packed_layers(model).items()}, logits_of(model)
    model.to("cuda")
    assert all(layer.is_arranged for layer in packed_layers(model).values())
    assert (logits_of(model) - expected).norm() < 2e-3 * expected.norm()
    model.to("cpu")
    assert (logits_of(model) - expected).norm() < 2e-3 * expected.norm()
    for name, layer in packed_layers(model).items():
        assert_same_bytes(layer.packed(), before[name])


def test_quantizing_while_loading(exported):
    loaded = qformats.load_model(exported("qwen2", "gguf:q8_0"), device="cuda")
    direct = qformats.load_model(exported.model("qwen2"), device="cuda", format="gguf:q8_0")
    assert torch.equal(logits_of(loaded), logits_of(direct))


@pytest.mark.parametrize("format", ["gguf:q4_0", "bitsandbytes:nf4"])
def test_what_the_kernels_do_not_cover_runs_where_the_model_is(format):
    weight = torch.randn(6, 40 if format.endswith("nf4") else 64, generator=torch.Generator().manual_seed(0))
    packed = qformats.pack(qformats.quantize(weight, format), format)
    layer = QuantLinear.from_packed(packed).to("cuda")
    assert layer.is_arranged == format.startswith("gguf")
    assert layer.weight.is_cuda
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x.cuda()).cpu(), x @ packed.dequantize().T, rtol=1e-3, atol=1e-3)
    assert_same_bytes(layer.packed(), packed)


def test_generates_the_same_text(exported):
    path, start = exported("llama", "gguf:q8_0"), torch.tensor([IDS])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    found = []
    for device in ("cpu", "cuda"):
        model = qformats.load_model(path, device=device, dtype="f32")
        ids = start.to(device)
        found.append(model.generate(ids, attention_mask=torch.ones_like(ids), **settings).tolist())
    assert found[0] == found[1]
