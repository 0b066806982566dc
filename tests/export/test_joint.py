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


SHARED = 0.004951890092343092
"""As a factor of these scales of E4M3, it is a divisor's reciprocal: of each matrix alone there are several."""
INNER = ((448.0, 104.0), (320.0, 11.0), (9.0, 0.875))


def of_modelopt(llama, target):
    """A folder of ModelOpt whose queries, keys and values share a number, with few different scales."""
    qformats.export(llama, target, format="modelopt:nvfp4")
    stored = load_file(target / "model.safetensors")
    for name, inner in zip(QKV, INNER, strict=True):
        scales = stored[f"{name}.weight_scale"]
        chosen = torch.tensor(inner).repeat(scales.numel() // 2).view(scales.shape)
        stored[f"{name}.weight_scale"] = chosen.to(torch.float8_e4m3fn)
        stored[f"{name}.weight_scale_2"] = torch.tensor(SHARED)
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    (target / "qformats.json").unlink()
    return target


def test_one_number_is_found_that_keeps_all_of_them(llama, tmp_path):
    """ModelOpt's factor becomes a divisor: of those that keep a matrix unchanged, one that keeps its neighbours too."""
    source = of_modelopt(llama, tmp_path / "source")
    before, packer = qformats.open(source), qformats.packer(CT)
    alone = {
        float(packer.pack(packer.represent(before.tensors[f"{name}.weight"].read().unpack())).fields[FIELD])
        for name in QKV
    }
    assert len(alone) == 2
    names = [f"{name}.weight" for name in QKV]
    qformats.export(source, tmp_path / "out", format=CT, program="vllm")
    assert len(numbers(tmp_path / "out", QKV)) == 1
    after = qformats.open(tmp_path / "out")
    assert all(torch.equal(after.read(name), before.read(name)) for name in names)


def test_where_scales_are_rounded_neighbours_share_the_reciprocal(llama, tmp_path):
    """No divisor keeps these scales, and vLLM takes the folder."""
    qformats.export(llama, tmp_path / "one", format="modelopt:nvfp4")
    qformats.export(tmp_path / "one", tmp_path / "out", format=CT, program="vllm")
    stored = load_file(tmp_path / "one" / "model.safetensors")
    for group in (QKV, BOTH):
        (number,) = {float(stored[f"{name}.weight_scale_2"].reciprocal()) for name in group}
        assert numbers(tmp_path / "out", group) == {number}


def test_one_that_none_has_is_not_made_up(llama, tmp_path):
    """A neighbour whose scales no divisor gives is rounded, the others stay as they are, and vLLM is told."""
    source = of_modelopt(llama, tmp_path / "source")
    stored = load_file(source / "model.safetensors")
    scales = stored[f"{QKV[1]}.weight_scale"]
    every = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    stored[f"{QKV[1]}.weight_scale"] = every.repeat(scales.numel() // 126 + 1)[: scales.numel()].view(
        scales.shape
    )
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"{FIELD} of .*one for matrices that vllm joins"):
        qformats.export(source, tmp_path / "bad", format=CT, program="vllm")
    qformats.export(source, tmp_path / "out", format=CT)
    before, after = qformats.open(source), qformats.open(tmp_path / "out")
    for name, same in zip(QKV, (True, False, True), strict=True):
        pair = (after.read(f"{name}.weight"), before.read(f"{name}.weight"))
        assert torch.equal(*pair) == same
        assert torch.allclose(*pair, rtol=2**-20, atol=0)
