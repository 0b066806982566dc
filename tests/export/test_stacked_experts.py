"""Experts that a folder keeps one by one, in the stacks of a GGUF file and back, unchanged where that is possible."""

from __future__ import annotations

import pytest
import torch
from models.architectures import build

import qformats

EXACT = [("glm:int8", "gguf:q8_0"), ("glm:int4", "gguf:q4_0"), ("gptq:4bit-32g", "gguf:q4_0")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build("qwen3_moe", tmp_path_factory.mktemp("model"), moe_intermediate_size=64)


@pytest.mark.parametrize(("format", "target"), EXACT)
def test_values_stay_in_a_stack(format, target, folder, tmp_path):
    qformats.export(folder, tmp_path / "packed", format=format, quantizer="rtn")
    report = qformats.export(tmp_path / "packed", tmp_path / "m.gguf", format=target, require_exact=True)
    stacks = [tensor for tensor in report.tensors if "_exps" in tensor.name]
    assert len(stacks) == 3 * 3
    assert {(tensor.format, tensor.exact, tensor.exact_share) for tensor in stacks} == {(target, "yes", 1.0)}
    one, other = qformats.open(tmp_path / "packed"), qformats.open(tmp_path / "m.gguf")
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor.dequantize(), other.tensors[name].dequantize()), name


def test_values_come_out_of_a_stack(folder, tmp_path):
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q4_0")
    rules = {"embed_tokens|lm_head": "f32"}
    qformats.export(
        tmp_path / "m.gguf",
        tmp_path / "packed",
        format="gptq:4bit-32g",
        tensor_types=rules,
        require_exact=True,
    )
    one, other = qformats.open(tmp_path / "m.gguf"), qformats.open(tmp_path / "packed")
    name = "model.layers.1.mlp.experts.4.down_proj.weight"
    assert other.tensors[name].format == "gptq:4bit-32g"
    assert torch.equal(one.tensors[name].dequantize(), other.tensors[name].dequantize())


def test_a_stack_whose_values_change_says_why(folder, tmp_path):
    qformats.export(folder, tmp_path / "packed", format="bitsandbytes:nf4")
    report = qformats.export(tmp_path / "packed", tmp_path / "m.gguf", format="gguf:q4_0")
    (stack,) = [tensor for tensor in report.tensors if tensor.name == "blk.1.ffn_up_exps.weight"]
    (alone,) = [tensor for tensor in report.tensors if tensor.name == "blk.1.attn_output.weight"]
    assert (stack.exact, stack.reason) == (alone.exact, alone.reason)
    assert 0 < stack.relative_error < 0.1
    values = qformats.open(tmp_path / "m.gguf").stored["blk.1.ffn_up_exps.weight"].dequantize()
    packer = qformats.packer("gguf:q4_0")
    for number in range(6):
        expert = qformats.open(tmp_path / "packed").read(
            f"model.layers.1.mlp.experts.{number}.up_proj.weight"
        )
        assert torch.equal(values[number], packer.encode_reference(expert).dequantize())
