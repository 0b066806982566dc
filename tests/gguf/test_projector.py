"""The vision model of a Gemma 3 folder: llama.cpp with ``--mmproj`` makes of an image what Transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.command import call
from models.architectures import build, build_multimodal
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, QFormatsError, UnsupportedModelError

SIZE = 56
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
MEAN, STD = [0.5, 0.4, 0.6], [0.5, 0.6, 0.4]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = build_multimodal("gemma3", tmp_path / "model", tied=True)
    processor = {"image_mean": MEAN, "image_std": STD, "size": {"height": SIZE, "width": SIZE}}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def test_llama_cpp_sees_what_transformers_sees(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Gemma3ForConditionalGeneration

    model, file = tmp_path / "m.gguf", tmp_path / "mmproj.gguf"
    qformats.export(folder, model, format="gguf:f32")
    done = call(capsys, "export", folder, "--format", "gguf:f32", "--mmproj", "-o", file)
    assert done.code == 0, done.err
    assert "--mmproj" in done.out + done.err
    reference = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    values = (torch.from_numpy(PIXELS).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    with torch.no_grad():
        found: Any = reference.get_image_features(values.permute(2, 0, 1)[None])
    theirs = getattr(found, "pooler_output", found)[0].numpy()
    with LlamaCpp(model) as gguf:
        ours = gguf.image_embedding(file, PIXELS, theirs.shape[-1])
    assert ours.shape == theirs.shape == (4, 64)
    # llama.cpp computes GELU from a table of 16-bit floats.
    assert np.abs(ours - theirs).max() < 1e-2 * np.abs(theirs).max()


def test_every_tensor_is_written_or_named(folder: Path, tmp_path: Path) -> None:
    report = qformats.export(folder, tmp_path / "mmproj.gguf", format="gguf:q8_0", options={"mmproj": "yes"})
    assert {each.reason for each in report.left_out} == {
        "part of the language model, which is a file by itself",
        "a head that the language model does not use",
    }
    written = qformats.open(tmp_path / "mmproj.gguf")
    assert len(report.left_out) + len(written.tensors) == len(qformats.open(folder).tensors)
    formats = {name: tensor.format for name, tensor in written.stored.items()}
    assert formats["v.blk.0.attn_q.weight"] == "gguf:q8_0"
    assert formats["mm.input_projection.weight"] == "gguf:f16"
    assert formats["v.patch_embd.weight"] == formats["v.blk.0.ln1.bias"] == "gguf:f32"


@pytest.mark.parametrize(
    ("where", "change", "message"),
    [
        ("vision", {"hidden_act": "silu"}, "hidden_act"),
        ("vision", {"patch_size": 28}, "shape"),
        ("config", {"mm_tokens_per_image": 9}, "whole number of patches"),
        ("processor", {"do_pan_and_scan": True}, "do_pan_and_scan"),
        ("processor", {"size": {"height": 112, "width": 56}}, "size"),
        ("processor", {"image_mean": [0.5]}, "three colours"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    where: str, change: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    file = folder / ("preprocessor_config.json" if where == "processor" else "config.json")
    content = json.loads(file.read_text())
    (content["vision_config"] if where == "vision" else content).update(change)
    file.write_text(json.dumps(content))
    with pytest.raises(QFormatsError, match=message):
        qformats.export(folder, tmp_path / "mmproj.gguf", format="gguf:f16", options={"mmproj": "yes"})
    assert not (tmp_path / "mmproj.gguf").exists()


def test_other_folders_have_no_vision_model(folder: Path, tmp_path: Path) -> None:
    text = build("gemma", tmp_path / "text")
    with pytest.raises(UnsupportedModelError, match="expected gemma3"):
        qformats.export(text, tmp_path / "mmproj.gguf", format="gguf:f16", options={"mmproj": "yes"})
    tensors = load_file(folder / "model.safetensors")
    name = next(each for each in tensors if "layers.1.mlp.fc2.weight" in each and "vision" in each)
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="no tensor"):
        qformats.export(folder, tmp_path / "mmproj.gguf", format="gguf:f16", options={"mmproj": "yes"})
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json"):
        qformats.export(folder, tmp_path / "mmproj.gguf", format="gguf:f16", options={"mmproj": "yes"})
