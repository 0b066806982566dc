"""Whole numbers that nothing describes are not weights: words of eight codes each, under names that no format has."""

from __future__ import annotations

import json
import re

import pytest
import torch
from cli.command import call
from models import tiny
from safetensors.torch import load_file, save_file

import qformats


@pytest.fixture
def undeclared(tmp_path):
    """A llama folder with the layers of its blocks packed by an unknown program: eight outputs to a word."""
    folder = tiny.build("llama", tmp_path / "llama")
    file = folder / "model.safetensors"
    packed, words = {}, 0
    for name, weight in load_file(file).items():
        if "layers" in name and weight.ndim == 2:
            rows, columns = weight.shape
            module = name.removesuffix(".weight")
            packed[f"{module}.qcodes"] = torch.zeros(columns, rows // 8, dtype=torch.int32)
            packed[f"{module}.qpoints"] = torch.zeros(columns // 32, rows // 8, dtype=torch.int32)
            packed[f"{module}.scales"] = torch.ones(columns // 32, rows, dtype=torch.float16)
            words += columns * (rows // 8) + columns // 32 * (rows // 8)
        else:
            packed[name] = weight
    save_file(packed, file, metadata={"format": "pt"})
    return folder, words, sum(t.numel() for t in packed.values())


def test_packed_words_are_named_and_not_counted(capsys, undeclared):
    folder, words, every = undeclared
    assert qformats.open(folder).parameters == every - words
    shown = call(capsys, "inspect", folder).out
    assert re.search(rf"^weights +{every - words:,} in ", shown, re.MULTILINE)
    assert re.search(
        r"^packed words +\S+ kB in 28 tensors \(qcodes, qpoints\): whole numbers", shown, re.MULTILINE
    )
    assert re.search(r"^dense:i32 +28 +0 ", shown, re.MULTILINE)
    # Nobody knows how many weights the words hold.
    assert "bits per weight" not in shown
    facts = json.loads(call(capsys, "inspect", folder, "--json").out)
    assert facts["bits_per_weight"] is None
    assert len(facts["packed_words"]) == 28


def test_indices_and_masks_are_no_weights_either(capsys, tmp_path):
    folder = tiny.build("llama", tmp_path / "llama")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    before = qformats.open(folder).parameters
    tensors["model.embeddings.position_ids"] = torch.arange(64)[None]
    tensors["model.mask"] = torch.ones(4, 4, dtype=torch.bool)
    save_file(tensors, file, metadata={"format": "pt"})
    assert qformats.open(folder).parameters == before
    shown = call(capsys, "inspect", folder).out
    assert "packed words" not in shown
    assert "bits per weight" in shown
