"""The formats glm:* on a model that is no GLM: a Hugging Face folder with qformats' own declaration."""

import json

import numpy as np
import pytest
import torch
from models import chatglm, tiny
from oracles import hf
from safetensors.torch import load_file

import qformats

IDS = [3, 14, 15, 9, 26, 5, 35, 8]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("llama"), "float16")


@pytest.mark.parametrize("bits", [4, 8])
def test_round_trip(bits, llama, tmp_path):
    qformats.export(llama, tmp_path / "packed", format=f"glm:int{bits}")
    declared = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert (declared["quant_method"], declared["format"]) == ("qformats", f"glm:int{bits}")
    plain, packed = (
        load_file(llama / "model.safetensors"),
        load_file(tmp_path / "packed" / "model.safetensors"),
    )
    reference = hf.load(llama)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("_proj.weight"):
                codes, scale = chatglm.quantize(plain[name], bits)
                stored = chatglm.pack_nibbles(codes) if bits == 4 else codes
                assert torch.equal(packed[name], stored), name
                assert torch.equal(packed[name.replace(".weight", ".weight_scale")], scale), name
                parameter.copy_(chatglm.dequantize(codes, scale))
    qformats.export(tmp_path / "packed", tmp_path / "back", format="dense:f32")
    assert np.array_equal(hf.logits(hf.load(tmp_path / "back"), IDS), hf.logits(reference, IDS))
    # Quantizing what is quantized changes nothing.
    qformats.export(tmp_path / "packed", tmp_path / "again", format=f"glm:int{bits}", require_exact=True)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], values) for name, values in packed.items())


def test_scales_in_other_dtypes(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="glm:int4-f32")
    name = "model.layers.0.mlp.up_proj.weight"
    checkpoint = qformats.open(tmp_path / "out")
    assert checkpoint.tensors[name].format == "glm:int4-f32"
    codes, scale = chatglm.quantize(load_file(llama / "model.safetensors")[name], 4)
    # From halves the scale is a half, widened; the quotient by a float32 is a float32.
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")[name + "_scale"], scale.float())
    assert (checkpoint.read(name) - chatglm.dequantize(codes, scale)).abs().max() <= scale.max()
