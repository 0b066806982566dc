"""NVFP4: matrices that vLLM joins share their number per tensor, or it is told that they do not."""

from __future__ import annotations

import shutil

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import ConfigError

CT, FIELD = "compressed-tensors:nvfp4", "weight_global_scale"
LAYER = "model.layers.0"
QKV = [f"{LAYER}.self_attn.{name}_proj" for name in "qkv"]
BOTH = [f"{LAYER}.mlp.{name}_proj" for name in ("gate", "up")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Neighbours with different largest weights."""
    folder = tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float32")
    stored = load_file(folder / "model.safetensors")
    for factor, name in zip((1.0, 3.0, 0.3), QKV, strict=True):
        stored[f"{name}.weight"] *= factor
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def numbers(folder, modules, field=FIELD):
    stored = load_file(folder / "model.safetensors")
    return {float(stored[f"{name}.{field}"]) for name in modules}


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
@pytest.mark.parametrize("program", [None, "vllm"])
def test_neighbours_share_the_number_of_the_largest(quantizer, program, llama, tmp_path):
    options = {"samples": "2", "sequence-length": "64"} if quantizer == "gptq" else {}
    report = qformats.export(
        llama, tmp_path / "out", format=CT, quantizer=quantizer, quantizer_options=options, program=program
    )
    assert not [note for note in report.notes if "neighbours" in note]
    plain = load_file(llama / "model.safetensors")
    top = max(plain[f"{name}.weight"].abs().max() for name in QKV)
    assert numbers(tmp_path / "out", QKV) == {
        float((top if quantizer == "rtn" else 2 * top).reciprocal() * 2688)
    }
    assert len(numbers(tmp_path / "out", BOTH)) == 1
    if quantizer == "rtn":
        # Others are as they would be alone, and these lose little: scales have exponents of their own.
        down = f"{LAYER}.mlp.down_proj.weight"
        alone = qformats.packer(CT).encode_reference(plain[down])
        assert torch.equal(qformats.open(tmp_path / "out").read(down), alone.dequantize())
        for name in QKV:
            weight, found = plain[f"{name}.weight"], qformats.open(tmp_path / "out").read(f"{name}.weight")
            own = qformats.packer(CT).encode_reference(weight).dequantize()
            assert (found - weight).norm() < 1.05 * (own - weight).norm()


def test_what_is_copied_keeps_its_numbers(llama, tmp_path):
    """A folder in which they differ goes to vLLM only if it is quantized anew; the same folder with one is fine."""
    qformats.export(llama, tmp_path / "same", format=CT)
    report = qformats.export(tmp_path / "same", tmp_path / "copy", format=CT)
    assert [note for note in report.notes if "--for vllm checks that they agree" in note]
    report = qformats.export(tmp_path / "same", tmp_path / "good", format=CT, program="vllm")
    assert not [note for note in report.notes if "vllm" in note]
    shutil.copytree(tmp_path / "same", tmp_path / "own")
    stored = load_file(tmp_path / "same" / "model.safetensors")
    for name in QKV:
        own = qformats.packer(CT).encode_reference(qformats.open(llama).read(f"{name}.weight"))
        stored |= {f"{name}.{field}": value for field, value in own.fields.items()}
    save_file(stored, tmp_path / "own" / "model.safetensors")
    for target in (CT, "modelopt:nvfp4"):
        # Quantized anew they would share one; as they are, they do not.
        with pytest.raises(ConfigError, match="for: found "):
            qformats.export(tmp_path / "own", tmp_path / "bad", format=target, program="vllm")
    with pytest.raises(
        ConfigError, match=rf"{FIELD} of {LAYER}.self_attn.[qkv]_proj.weight \(.*one for matrices that"
    ):
        qformats.export(tmp_path / "own", tmp_path / "bad", format=CT, program="vllm")
    assert not (tmp_path / "bad").exists()


def test_a_number_that_was_shared_still_is(llama, tmp_path):
    """Where scales must be rounded into the reciprocal, it is that of the number."""
    qformats.export(llama, tmp_path / "one", format="modelopt:nvfp4")
    assert len(numbers(tmp_path / "one", QKV, "weight_scale_2")) == 1
    before = qformats.open(tmp_path / "one").tensors
    for name in (*QKV, *BOTH):
        packed = before[f"{name}.weight"].read()
        near = qformats.packer(CT).grid.nearest(packed.unpack())
        assert near.outer == float(packed.fields["weight_scale_2"].reciprocal())
        assert torch.allclose(near.dequantize(), packed.dequantize(), rtol=2**-22, atol=0)
