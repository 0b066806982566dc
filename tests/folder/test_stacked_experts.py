"""Folders with what Transformers holds in memory, experts stacked, are the same models as those it writes."""

from __future__ import annotations

import shutil

import pytest
import torch
from models.architectures import build
from oracles import hf
from safetensors.torch import load_file, save_file

import qformats


def _as_in_memory(folder, other):
    """The same model with the names and stacks of Transformers' parameters."""
    shutil.copytree(folder, other)
    model = hf.load(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state = {name: value.clone() for name, value in model.state_dict().items() if name not in tied}
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    assert any("experts.gate_up_proj" in name for name in state)


@pytest.mark.parametrize(
    "name",
    ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "glm4_moe", "granitemoe", "gpt_oss"],
)
def test_both_forms_are_the_same_tensors(name, tmp_path):
    folder, memory = build(name, tmp_path / name), tmp_path / "memory" / name
    memory.parent.mkdir()
    _as_in_memory(folder, memory)
    one, other = qformats.open(folder), qformats.open(memory)
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor.dequantize(), other.tensors[key].dequantize()), key
        assert tensor.rows == 1 or torch.equal(
            tensor.read(1, tensor.rows).dequantize(), other.tensors[key].read(1, tensor.rows).dequantize()
        )
    # Those of gpt-oss are stacked on disk, too.
    assert any("that Transformers gives them in memory" in note for note in other.notes) == (
        name != "gpt_oss"
    )
    for path, file in ((folder, "one.gguf"), (memory, "other.gguf")):
        qformats.export(path, tmp_path / file, format="gguf:q8_0")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()
    qformats.export(memory, tmp_path / "dense", format="dense:f32")
    assert (
        load_file(tmp_path / "dense" / "model.safetensors").keys()
        == load_file(folder / "model.safetensors").keys()
    )


@pytest.mark.parametrize("format", ["bitsandbytes:nf4", "gptq:4bit-32g", "glm:int8"])
def test_they_are_quantized_alike(format, tmp_path):
    folder, memory = build("mixtral", tmp_path / "mixtral"), tmp_path / "memory" / "mixtral"
    memory.parent.mkdir()
    _as_in_memory(folder, memory)
    packed = []
    for path, out in ((folder, tmp_path / "one"), (memory, tmp_path / "other")):
        qformats.export(path, out, format=format, quantizer="rtn")
        packed.append(load_file(out / "model.safetensors"))
    assert packed[0].keys() == packed[1].keys()
    assert all(torch.equal(value, packed[1][key]) for key, value in packed[0].items())


@pytest.mark.parametrize("name", ["gpt_oss", "llama4", "granitemoe", "mixtral"])
def test_stacks_that_stay_plain_are_named(name, tmp_path):
    folder = build(name, tmp_path / name)
    report = qformats.export(folder, tmp_path / "out", format="bitsandbytes:nf4")
    told = [note for note in report.notes if "keeps its experts stacked" in note]
    if name == "mixtral":
        assert not told
        return
    tensors = qformats.open(tmp_path / "out").tensors.values()
    stacked = sum(tensor.numel for tensor in tensors if len(tensor.shape) == 3)
    assert told[0].startswith(
        f"{100 * stacked / sum(tensor.numel for tensor in tensors):.0f} % of the weights stay f32:"
    )
