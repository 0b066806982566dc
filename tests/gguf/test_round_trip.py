"""GGUF to folder to GGUF, and folder to GGUF to folder: nothing changes that need not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models import smollm2, tiny
from oracles import hf
from safetensors.torch import load_file

import qformats
from qformats_gguf.reader import read


def same_tensors(first: Path, second: Path) -> None:
    """Compare the tensors of two GGUF files by name, type and bytes."""
    with read(first) as one, read(second) as other:
        assert set(one.tensors) == set(other.tensors)
        for name, tensor in one.tensors.items():
            assert tensor.type == other.tensors[name].type, name
            assert np.array_equal(one.data(name), other.data(name)), name


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
@pytest.mark.parametrize("name", ["demo", "llama-tied", "qwen3", "gpt2"])
def test_gguf_to_folder_to_gguf_keeps_the_bytes(name: str, kind: str, tmp_path: Path) -> None:
    model = "demo" if name == "demo" else tiny.build(name, tmp_path / name)
    # An output layer in q6_k, whose scales are searched for, need not come back.
    options = {"format": f"gguf:{kind}", "output_type": "q8_0" if kind[0] == "q" else None}
    qformats.export(model, tmp_path / "a.gguf", **options)
    qformats.export(tmp_path / "a.gguf", tmp_path / "folder", format="dense:f32")
    qformats.export(tmp_path / "folder", tmp_path / "b.gguf", **options)
    same_tensors(tmp_path / "a.gguf", tmp_path / "b.gguf")


@pytest.mark.parametrize("name", list(tiny.TINY))
def test_folder_to_float32_gguf_to_folder_keeps_weights_and_logits(name: str, tmp_path: Path) -> None:
    model = tiny.build(name, tmp_path / name)
    qformats.export(model, tmp_path / "a.gguf", format="gguf:f32")
    qformats.export(tmp_path / "a.gguf", tmp_path / "back", format="dense:f32")
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert set(before) == set(after)
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
    ids = list(range(3, 103))
    assert np.array_equal(hf.logits(model, ids), hf.logits(tmp_path / "back", ids))


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_gguf_to_the_same_type_is_the_same_file(kind: str, tmp_path: Path) -> None:
    qformats.export("demo", tmp_path / "a.gguf", format=f"gguf:{kind}")
    report = qformats.export(tmp_path / "a.gguf", tmp_path / "b.gguf", format=f"gguf:{kind}")
    assert {tensor.action for tensor in report.tensors} == {"copied"}
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.model
def test_the_real_chat_model(tmp_path: Path) -> None:
    """SmolLM2, whose weights lie on the q4_1 grid."""
    source = smollm2.path()
    opened = qformats.open(source)
    assert (opened.architecture, opened.parameters, len(opened.tensors)) == ("llama", 134_515_008, 272)

    qformats.export(source, tmp_path / "same.gguf", format="gguf:q4_1")
    same_tensors(source, tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == source.read_bytes()

    qformats.export(source, tmp_path / "folder", format="dense:f32")
    qformats.export(tmp_path / "folder", tmp_path / "again.gguf", format="gguf:q4_1")
    same_tensors(source, tmp_path / "again.gguf")


@pytest.mark.model
@pytest.mark.parametrize("kind", ["q4_0", "q5_1", "q8_0"])
def test_the_real_chat_model_in_other_types(kind: str, tmp_path: Path) -> None:
    """Every re-quantized tensor is what ggml's own encoder makes of the decoded one; q5_1 holds every value of q4_1."""
    from oracles import ggml

    source = smollm2.path()
    report = qformats.export(source, tmp_path / "out.gguf", format=f"gguf:{kind}")
    assert report.file_nbytes == (tmp_path / "out.gguf").stat().st_size
    with read(source) as before, read(tmp_path / "out.gguf") as after:
        for name in ("blk.0.attn_q.weight", "blk.17.ffn_down.weight"):
            rows = before.tensors[name].shape[0]
            values = ggml.dequantize("q4_1", before.data(name).reshape(rows, -1))
            found = after.data(name)
            if kind == "q5_1":
                assert np.array_equal(ggml.dequantize(kind, found.reshape(rows, -1)), values), name
            else:
                assert np.array_equal(ggml.quantize(kind, values).reshape(-1), found), name
