"""FP8 folders: what Transformers reads, exponents as scales, exact conversions, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from models import tiny
from models.records import forget
from models.tensors import same, values
from oracles import package_folder
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, InexactExportError, NotExactError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_fp8.family import FP8

NAME = "model.layers.1.mlp.down_proj"
IDS = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "bfloat16")


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("fp8") / "out"
    qformats.export(llama, out, format="fp8:block")
    return out


def rewritten(folder, target, tensors, **changes):
    target.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] |= changes
    (target / "config.json").write_text(json.dumps(content))
    save_file(tensors(load_file(folder / "model.safetensors")), target / "model.safetensors")
    return forget(target)


def located(fields, **config):
    def read(field):
        return fields[field].contiguous().flatten().view(torch.uint8).numpy().tobytes()

    stored = {field: (tuple(value.shape), dtype_name(value.dtype)) for field, value in fields.items()}
    packer = FP8().detect({"quant_method": "fp8", **config})
    found = FP8().locate(packer, ModuleFields("m", stored, read))
    return None if found is None else (found[0], found[0].from_stored(fields, found[1]))


def test_blocks_as_transformers_decodes_them():
    """Its own dequantizer, at multiples of the block: at others it takes blocks from the shapes, and is wrong."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    config = SimpleNamespace(weight_block_size=[128, 128], scale_fmt="float", modules_to_not_convert=None)
    reader = Fp8Dequantize(SimpleNamespace(quantization_config=config))
    weight = torch.randn((256, 384), generator=torch.Generator().manual_seed(1))
    packed = qformats.packer("fp8:block").encode_reference(weight)
    wanted = reader._dequantize_one(
        packed.fields["weight"], packed.fields["weight_scale_inv"], torch.bfloat16
    )
    assert torch.equal(packed.dequantize().bfloat16(), wanted)


def test_written_as_transformers_loads_it(folder):
    """On a CPU it decodes to bfloat16, once rounded."""
    from transformers import AutoModelForCausalLM

    declared = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert declared == {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
    }
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values())
    found, expected = dict(model.named_parameters()), values(folder)
    small = [name for name in expected if "_proj" in name and max(expected[name].shape) <= 128]
    assert len(small) >= 8
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in small)


@pytest.mark.parametrize("byte", [torch.uint8, torch.float8_e8m0fnu])
def test_scales_that_are_exponents(byte):
    packed = qformats.packer("fp8:block").encode_reference(torch.randn(200, 300))
    exponents = torch.tensor([[120, 127, 131], [0, 126, 128]], dtype=torch.uint8)
    fields = {"weight": packed.fields["weight"], "weight_scale_inv": exponents.view(byte)}
    packer, found = located(fields, weight_block_size=[128, 128], scale_fmt="ue8m0")
    assert packer.name == "fp8:block-ue8m0"
    assert found.fields["weight_scale_inv"].dtype == torch.float8_e8m0fnu
    scale = torch.exp2(exponents.double() - 127).float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert torch.equal(found.dequantize(), packed.fields["weight"].float() * scale[:200, :300])
    spoilt = exponents.clone()
    spoilt[0, 1] = 255
    fields["weight_scale_inv"] = spoilt.view(byte)
    with pytest.raises(ConfigError, match="1 values that are NaN"):
        located(fields, weight_block_size=[128, 128])


def test_exponents_are_written_as_transformers_writes_them(llama, tmp_path):
    """Its own quantizer gives the same bytes, and reads them; DeepSeek's code wants ``scale_fmt``."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = SimpleNamespace(weight_block_size=[128, 128], scale_fmt="ue8m0")
    theirs = Fp8Quantize(SimpleNamespace(quantization_config=config))
    weight = torch.randn(256, 384) * torch.logspace(-6, 4, 384)
    weight[128:, :128] = 0
    # The largest of a block is exactly 448 times a power of two.
    weight[0, 300] = 448 * 2.0**9
    packed = qformats.packer("fp8:block-ue8m0").encode_reference(weight)
    for name, value in theirs._quantize_one("x.weight", weight).items():
        own = packed.fields[name.removeprefix("x.")]
        # Of their zeros some are negative.
        assert torch.equal(own.float(), value.float()), name
    qformats.export(llama, tmp_path / "out", format="fp8:block-ue8m0")
    declared = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert declared["scale_fmt"] == "ue8m0"
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored[f"{NAME}.weight_scale_inv"].dtype == torch.float8_e8m0fnu
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"]
    loaded, expected = dict(model.named_parameters()), values(tmp_path / "out")
    small = [name for name, value in expected.items() if "_proj" in name and max(value.shape) <= 128]
    assert small
    assert all(torch.equal(loaded[name], expected[name].bfloat16()) for name in small)


def test_powers_of_two_go_wherever_floats_go(llama, folder, tmp_path):
    """Into scales of float32 and bfloat16 unchanged, into dense bfloat16 too, and back; others do not fit."""
    source = tmp_path / "ue8m0"
    qformats.export(llama, source, format="fp8:block-ue8m0")
    for format in ("fp8:block", "compressed-tensors:fp8-block-bf16", "compressed-tensors:fp8-block"):
        target = tmp_path / format.replace(":", "-")
        report = qformats.export(source, target, format=format, require_exact=True)
        assert {tensor.exact for tensor in report.tensors if tensor.format == format} == {"yes"}
        assert same(source, target)
        back = target.with_name(target.name + "-back")
        qformats.export(target, back, format="fp8:block-ue8m0", require_exact=True)
        one, other = (load_file(path / "model.safetensors") for path in (source, back))
        assert all(torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one)
    qformats.export(source, tmp_path / "dense", format="dense:bf16", require_exact=True)
    with pytest.raises(InexactExportError, match="is not a power of two"):
        qformats.export(folder, tmp_path / "no", format="fp8:block-ue8m0", require_exact=True)


def test_one_scale_per_tensor_or_row():
    weight = torch.randn(6, 32).to(torch.float8_e4m3fn)
    for name, scale, kind in (
        ("weight_scale", torch.tensor(0.25), "tensor"),
        ("weight_scale_inv", torch.tensor([0.25]), "tensor"),
        ("weight_scale", torch.rand(6, 1), "channel"),
        ("weight_scale", torch.rand(6), "channel"),
    ):
        packer, packed = located({"weight": weight, name: scale}, weight_block_size=None)
        assert packer.name == f"fp8:{kind}"
        assert not packer.writable
        assert torch.equal(packed.dequantize(), weight.float() * scale.reshape(-1, 1))


def test_compressed_tensors_and_back(folder, tmp_path):
    """The same bytes; the other library decodes them to the same values."""
    ct = tmp_path / "ct"
    qformats.export(folder, ct, format="compressed-tensors:fp8-block", require_exact=True)
    assert same(folder, ct)
    qformats.export(ct, tmp_path / "back", format="fp8:block", require_exact=True)
    first, last = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert first.keys() == last.keys()
    for name in first:
        assert torch.equal(first[name].view(torch.uint8), last[name].view(torch.uint8)), name
    # bfloat16 scales are not float32 ones.
    with pytest.raises(InexactExportError, match="is not a bf16 number"):
        qformats.export(
            folder, tmp_path / "bf16", format="compressed-tensors:fp8-block-bf16", require_exact=True
        )


@pytest.mark.parametrize("kind", ["channel-bf16", "block-bf16"])
def test_transformers_loads_compressed_tensors(kind, llama, tmp_path, monkeypatch):
    package_folder("compressed-tensors", "compressed_tensors", "0.20.0")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    qformats.export(llama, out, format=f"compressed-tensors:fp8-{kind}")
    content = json.loads((out / "config.json").read_text())
    # Dequantized as it is loaded: its forward takes activations in groups of 128, and this model has 64.
    content["quantization_config"]["dequantize"] = True
    (out / "config.json").write_text(json.dumps(content))
    model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(info.values())
    found, expected = dict(model.named_parameters()), values(out)
    linear = [name for name in expected if "_proj" in name]
    assert all(torch.equal(found[name], expected[name].bfloat16()) for name in linear)


def test_nan_is_refused_with_the_tensor(folder, tmp_path):
    def spoil(stored):
        stored[f"{NAME}.weight"].view(torch.uint8)[3, 5] = 0xFF
        return stored

    spoilt = rewritten(folder, tmp_path / "nan", spoil)
    with pytest.raises(CheckpointError, match=rf"{NAME}.weight.*codes of NaN"):
        qformats.export(spoilt, tmp_path / "out.gguf", format="gguf:q8_0")
    assert not (tmp_path / "out.gguf").exists()


def test_heads_and_embeddings_of_a_released_model_are_quantized_as_usual(folder, tmp_path):
    """FP8 is how models are released; nobody left anything plain on purpose."""
    report = qformats.export(folder, tmp_path / "m.gguf", format="gguf:q8_0")
    assert report is not None
    assert qformats.open(tmp_path / "m.gguf").tensors["lm_head.weight"].format == "gguf:q8_0"


def test_runs_packed_with_the_values_of_the_plain_model(folder, tmp_path):
    qformats.export(folder, tmp_path / "plain", format="dense:f32")
    packed, plain = (qformats.load_model(path, dtype="f32") for path in (folder, tmp_path / "plain"))
    with torch.inference_mode():
        first, second = (model(IDS).logits for model in (packed, plain))
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)


def test_calibration_of_floats(llama, tmp_path):
    """GPTQ chooses scales row by row, so that those of blocks are not its to choose."""
    options = {"samples": "2"}
    out = tmp_path / "out"
    kind = "compressed-tensors:fp8-channel"
    qformats.export(llama, out, format=kind, quantizer="gptq", quantizer_options=options)
    assert qformats.open(out).tensors[f"{NAME}.weight"].format == kind
    with pytest.raises(ConfigError, match="another for fp8:block, where 128 rows share a scale"):
        qformats.export(
            llama, tmp_path / "no", format="fp8:block", quantizer="gptq", quantizer_options=options
        )
    assert not (tmp_path / "no").exists()


def test_powers_of_two_from_other_formats_keep_the_signs_and_zeros_of_scales():
    """Exponents have neither: signs go to the codes, and blocks of zeros get the scale 1."""
    packer = qformats.packer("fp8:block-1x32-ue8m0")
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(1, 6)
    scale = torch.tensor([[0.25, -0.5, 0.0]])
    source = qformats.QuantizedTensor(codes, scale, (1, 32))
    packed = packer.pack(packer.represent(source))
    assert torch.equal(packed.dequantize(), source.dequantize())
    assert packed.fields["weight_scale_inv"].float()[0, 2] == 1
    with pytest.raises(NotExactError, match="power of two"):
        packer.represent(qformats.QuantizedTensor(codes, scale * 3, (1, 32)))
