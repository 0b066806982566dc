"""ModelOpt: its own bytes and values, and folders as it declares them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import architectures, tiny
from models.tensors import same, values
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, InexactExportError, NotExactError

GOLDEN = Path(__file__).parents[1] / "golden" / "modelopt"
UP = "model.layers.0.mlp.up_proj"


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "layers.safetensors")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


@pytest.fixture(scope="module")
def folder(llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("folders") / "nvfp4"
    qformats.export(llama, out, format="modelopt:nvfp4")
    return out


def rewritten(folder, target, change):
    """The folder with its tensors and its ``quantization_config`` changed; without one, if that becomes None."""
    target.mkdir()
    config = json.loads((folder / "config.json").read_text())
    tensors, declared = change(load_file(folder / "model.safetensors"), config.pop("quantization_config"))
    config |= {} if declared is None else {"quantization_config": declared}
    (target / "config.json").write_text(json.dumps(config))
    (target / "hf_quant_config.json").write_bytes((folder / "hf_quant_config.json").read_bytes())
    save_file(tensors, target / "model.safetensors")
    return target


@pytest.mark.parametrize("case", ["normal", "powers"])
def test_the_same_scales_and_values_as_modelopt(case, golden):
    stored = {name: golden[f"{case}.{name}"] for name in ("weight", "weight_scale", "weight_scale_2")}
    packer, weight = qformats.packer("modelopt:nvfp4"), golden[f"{case}.original"]
    made = packer.encode_reference(weight)
    assert torch.equal(made.fields["weight_scale"].float(), stored["weight_scale"].float())
    assert torch.equal(made.fields["weight_scale_2"], stored["weight_scale_2"])
    read = packer.from_stored(stored, tuple(weight.shape))
    for packed in (made, read):
        assert torch.equal(packed.dequantize() + 0.0, golden[f"{case}.values"] + 0.0)


def test_fp8_as_modelopt_has_it(golden):
    packer, weight = qformats.packer("modelopt:fp8"), golden["fp8.original"]
    made = packer.encode_reference(weight)
    assert torch.equal(made.fields["weight"].float() + 0.0, golden["fp8.weight"].float() + 0.0)
    assert torch.equal(made.fields["weight_scale"], golden["fp8.weight_scale"].reshape(()))
    assert torch.equal(made.dequantize() + 0.0, golden["fp8.values"] + 0.0)


@pytest.mark.parametrize(("case", "exact"), [("powers", True), ("normal", False)])
def test_the_reciprocal_is_exact_where_it_is_a_power_of_two(case, exact, golden):
    """compressed-tensors stores the other number: its codes and scales are the same, and values if none rounds."""
    one, other = qformats.packer("modelopt:nvfp4"), qformats.packer("compressed-tensors:nvfp4")
    quantized = one.unpack(one.encode_reference(golden[f"{case}.original"]))
    reciprocal = 1 / one.pack(quantized).fields["weight_scale_2"].double()
    if not exact:
        with pytest.raises(NotExactError, match="numbers of E4M3 over one number"):
            other.represent(quantized)
        return
    packed = other.pack(other.represent(quantized))
    assert packed.fields["weight_global_scale"].double() == reciprocal
    assert torch.equal(packed.dequantize() + 0.0, quantized.dequantize() + 0.0)
    back = one.pack(one.represent(other.unpack(packed)))
    again = one.pack(quantized).fields
    assert all(
        torch.equal(back.fields[n].view(torch.uint8), again[n].view(torch.uint8))
        for n in ("weight_scale", "weight")
    )


def test_where_scales_must_be_rounded_codes_stay(folder, tmp_path):
    target = tmp_path / "ct"
    with pytest.raises(InexactExportError):
        qformats.export(folder, target, format="compressed-tensors:nvfp4", require_exact=True)
    assert not target.exists()
    qformats.export(folder, target, format="compressed-tensors:nvfp4")
    one, other = (load_file(path / "model.safetensors") for path in (folder, target))
    packed = [name.removesuffix(".weight_scale_2") for name in one if name.endswith("weight_scale_2")]
    assert len(packed) == 14
    for name in packed:
        assert torch.equal(other[f"{name}.weight_packed"], one[f"{name}.weight"])
        assert torch.equal(other[f"{name}.weight_scale"].float(), one[f"{name}.weight_scale"].float())
    before, after = values(folder), values(target)
    assert all(torch.allclose(before[name], after[name], rtol=2.0**-22, atol=0) for name in before)


def test_to_gguf_and_back_is_the_same_folder(folder, tmp_path):
    """Every byte, though rows of queries and keys lie in another order in between."""
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:nvfp4", require_exact=True)
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="modelopt:nvfp4", require_exact=True)
    assert same(folder, tmp_path / "back")
    one, other = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    for name in one:
        if name.endswith(("weight_scale", "weight_scale_2")):
            assert torch.equal(one[name].float(), other[name].float())


def test_what_is_declared(folder):
    declared = json.loads((folder / "config.json").read_text())["quantization_config"]
    beside = json.loads((folder / "hf_quant_config.json").read_text())
    assert (declared["quant_method"], declared["quant_algo"]) == ("modelopt", "W4A16_NVFP4")
    assert declared["ignore"] == ["lm_head"] == beside["quantization"]["exclude_modules"]
    assert beside["quantization"]["quant_algo"] == "W4A16_NVFP4"
    assert beside["quantization"]["group_size"] == 16


def test_only_the_file_beside_config_declares_it(folder, tmp_path):
    older = rewritten(folder, tmp_path / "older", lambda tensors, declared: (tensors, None))
    assert same(folder, older)


def test_scales_of_activations_are_left_out_and_named(folder, tmp_path):
    more = {f"{UP}.input_scale": torch.ones(()), "model.layers.0.self_attn.k_proj.k_scale": torch.ones(())}
    static = rewritten(folder, tmp_path / "static", lambda tensors, declared: (tensors | more, declared))
    assert same(folder, static)
    assert {*qformats.open(static).left_out} == {*more}


def test_what_changes_a_weights_meaning_is_refused(folder, tmp_path):
    more = {f"{UP}.pre_quant_scale": torch.ones(64)}
    smoothed = rewritten(folder, tmp_path / "awq", lambda t, d: (t | more, d | {"quant_algo": "NVFP4_AWQ"}))
    with pytest.raises(CheckpointError, match="pre_quant_scale: activations are multiplied by it"):
        qformats.open(smoothed)
    rotated = rewritten(folder, tmp_path / "svd", lambda t, d: (t, d | {"quant_algo": "NVFP4_SVD"}))
    with pytest.raises(CheckpointError, match="quant_algo"):
        qformats.open(rotated)
    nan = torch.full((192, 4), 127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    broken = rewritten(folder, tmp_path / "nan", lambda t, d: (t | {f"{UP}.weight_scale": nan}, d))
    with pytest.raises(CheckpointError, match="codes of NaN"):
        qformats.open(broken).read(f"{UP}.weight")


@pytest.mark.parametrize(("scale", "format"), [("channel", "fp8-channel"), ("block", "fp8-block")])
def test_other_scales_of_fp8_are_read(scale, format, llama, tmp_path):
    """Rows and blocks, which go to compressed-tensors unchanged."""
    folder = tmp_path / "fp8"
    qformats.export(llama, folder, format="modelopt:fp8")
    whole = qformats.packer(f"compressed-tensors:{format}").encode_reference(
        qformats.open(llama).read(f"{UP}.weight")
    )
    fields = {f"{UP}.weight": whole.fields["weight"], f"{UP}.weight_scale": whole.fields["weight_scale"]}
    if scale == "channel":
        fields[f"{UP}.weight_scale"] = fields[f"{UP}.weight_scale"].flatten()
    mixed = rewritten(
        folder, tmp_path / "mixed", lambda t, d: (t | fields, d | {"quant_algo": "MIXED_PRECISION"})
    )
    model = qformats.open(mixed)
    assert model.tensors[f"{UP}.weight"].format == f"modelopt:{format}"
    assert torch.equal(model.read(f"{UP}.weight"), whole.dequantize())
    qformats.export(folder, tmp_path / "ct", format="compressed-tensors:fp8-tensor", require_exact=True)
    assert same(folder, tmp_path / "ct")


def test_several_algorithms_are_written_and_read_again(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="modelopt:nvfp4", tensor_types={"down_proj": "fp8"})
    declared = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert declared["quant_algo"] == "MIXED_PRECISION"
    assert declared["quantized_layers"]["model.layers.1.mlp.down_proj"] == {"quant_algo": "FP8"}
    assert declared["quantized_layers"][UP] == {"quant_algo": "W4A16_NVFP4", "group_size": 16}
    beside = json.loads((tmp_path / "out" / "hf_quant_config.json").read_text())["quantization"]
    assert beside["quantized_layers"] == declared["quantized_layers"]
    model = qformats.open(tmp_path / "out")
    assert model.tensors["model.layers.1.mlp.down_proj.weight"].format == "modelopt:fp8"
    assert model.tensors[f"{UP}.weight"].format == "modelopt:nvfp4"
    qformats.export(tmp_path / "out", tmp_path / "dense", format="dense:f32", require_exact=True)
    assert same(tmp_path / "out", tmp_path / "dense")


def test_experts_in_a_stack_keep_their_factors(tmp_path):
    """Each matrix has its own, also in one tensor of a file, and each is quantized by itself there."""
    model = architectures.build("mixtral", tmp_path / "model", "float16", intermediate_size=128)
    qformats.export(model, tmp_path / "out", format="modelopt:nvfp4")
    qformats.export(tmp_path / "out", tmp_path / "m.gguf", format="gguf:nvfp4", require_exact=True)
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="modelopt:nvfp4", require_exact=True)
    assert same(tmp_path / "out", tmp_path / "back")
    qformats.export(model, tmp_path / "direct.gguf", format="gguf:nvfp4")
    # Gates and ups share theirs in the folder, for programs that join them; what comes down has none to share it with.
    stack = "blk.0.ffn_down_exps.weight"
    found, direct = (qformats.open(tmp_path / name).in_own_names[stack] for name in ("m.gguf", "direct.gguf"))
    assert torch.equal(found.dequantize(), direct.dequantize())
    assert len(found.read().fields["scale"].unique()) == found.shape[0]


def test_runs_packed_with_the_values_of_the_plain_model(folder, tmp_path):
    qformats.export(folder, tmp_path / "plain", format="dense:f32")
    packed, plain = (qformats.load_model(path, dtype="f32") for path in (folder, tmp_path / "plain"))
    ids = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
    with torch.inference_mode():
        first, second = (model(ids).logits for model in (packed, plain))
    assert torch.allclose(first, second, rtol=1e-5, atol=1e-5)
