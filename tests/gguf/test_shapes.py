"""Weights and configuration of different models are refused, in both directions, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError
from qformats_gguf.header import TensorInfo, serialize
from qformats_gguf.reader import read


@pytest.mark.parametrize(
    ("name", "tensor", "shape"),
    [
        ("llama", "model.layers.1.self_attn.k_proj.weight", (64, 32)),
        ("llama-bias", "model.layers.0.self_attn.q_proj.bias", (7,)),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight", (3,)),
        ("gpt2", "transformer.wpe.weight", (5, 64)),
        ("qwen2", "model.norm.weight", (65,)),
    ],
)
def test_a_folder_whose_tensor_has_another_shape(
    name: str, tensor: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    model = tiny.build(name, tmp_path / name)
    state = load_file(model / "model.safetensors")
    assert tuple(state[tensor].shape) != shape
    state[tensor] = torch.zeros(shape)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"config.json: tensor '{tensor}': shape \({shape[0]},.*expected \("
    ):
        qformats.export(model, tmp_path / "out.gguf", format="gguf:q8_0")
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_config_of_a_larger_model(tmp_path: Path) -> None:
    model = tiny.build("llama", tmp_path / "llama")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 4096}))
    with pytest.raises(CheckpointError, match=r"mlp.*expected \(.*4096"):
        qformats.export(model, tmp_path / "out.gguf", format="gguf")


def test_a_gguf_file_whose_tensor_has_another_shape(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    qformats.export(tiny.build("llama", tmp_path / "llama"), good, format="gguf:f32")
    with read(good) as file:
        infos = [TensorInfo(t.name, t.shape, t.type) for t in file.tensors.values() if t.type]
        infos = [TensorInfo(i.name, (3,), i.type) if i.name == "output_norm.weight" else i for i in infos]
        header = serialize(file.metadata, infos)
    bad.write_bytes(header.data.ljust(header.total_size, b"\0"))
    with pytest.raises(CheckpointError, match=r"bad.gguf: tensor 'output_norm.weight': shape \(3,\)"):
        qformats.open(bad)
