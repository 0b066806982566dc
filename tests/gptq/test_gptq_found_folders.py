"""Folders with a configuration of their own, other names of files, and biases that are not there."""

import json

import pytest
import torch
from gptq.cases import name, weights
from models import tiny
from models.records import forget
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import InexactExportError
from qformats.exact import Answer

DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


@pytest.fixture
def folder(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn")
    # Found somewhere: nothing tells how it was made.
    return forget(tmp_path / "out")


def test_both_files_say_the_same(folder):
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert json.loads((folder / "quantize_config.json").read_text()) == config


@pytest.mark.parametrize(
    "file", ["gptq_model-4bit-32g.safetensors", "gptq_model-4bit-32g.bin", "llama-4bit-32g.pt"]
)
@pytest.mark.parametrize("config", ["quantize_config.json", "quant_config.json"])
def test_files_of_auto_gptq(file, config, folder):
    expected = {n: t.read().dequantize() for n, t in qformats.open(folder).tensors.items()}
    content = json.loads((folder / "config.json").read_text())
    del content["quantization_config"]
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "quantize_config.json").rename(folder / config)
    stored = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (save_file if file.endswith("safetensors") else torch.save)(stored, folder / file)
    model = qformats.open(folder)
    assert folder / config in model.files
    assert model.tensors.keys() == expected.keys()
    assert all(torch.equal(model.read(name), value) for name, value in expected.items())


def test_biases_of_zeros_are_left_out(folder, tmp_path):
    """AutoGPTQ gives every module one; no program for the model itself expects it."""
    stored = load_file(folder / "model.safetensors")
    for field in [field for field in stored if field.endswith(".scales")]:
        bias = torch.zeros(stored[field].shape[1], dtype=torch.float16)
        stored[field.removesuffix("scales") + "bias"] = bias
    save_file(stored, folder / "model.safetensors")
    assert not any(name.endswith(".bias") for name in qformats.open(folder).tensors)
    report = qformats.export(folder, tmp_path / "m.gguf", format="gguf:q4_0", require_exact=True)
    assert report is not None


def test_biases_of_the_model_are_kept(tmp_path):
    source = tiny.build("llama-bias", tmp_path / "source", "float16")
    qformats.export(source, tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn")
    before, after = qformats.open(source), qformats.open(tmp_path / "out")
    assert before.tensors.keys() == after.tensors.keys()
    biases = [name for name in before.tensors if name.endswith(".bias")]
    assert len(biases) == 14
    assert all(torch.equal(before.read(name), after.read(name)) for name in biases)


def test_an_order_of_columns_is_not_taken_for_exact(folder, tmp_path):
    """Formats of other plugins know nothing of it, and the plan says that the data must tell."""
    source = qformats.packer(name(4, 32, permuted=True))
    assert qformats.packer("gguf:q4_0").foresee(source, (64, 192))[0] is Answer.DATA
    stored = load_file(folder / "model.safetensors")
    packed = source.pack(weights(4, 32, (64, 192), permuted=True))
    save_file(stored | {f"{DOWN}.{f}": v for f, v in packed.fields.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["desc_act"] = True
    (folder / "config.json").write_text(json.dumps(config))
    assert qformats.open(folder).tensors[f"{DOWN}.weight"].format == source.name
    with pytest.raises(InexactExportError):
        qformats.export(folder, tmp_path / "m.gguf", format="gguf:q4_0", require_exact=True)
