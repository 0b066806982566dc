"""Layers without attention, and what their tensors need: exponentials, rows in groups, arrays in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.architectures import build

import qformats
from qformats.errors import CheckpointError, QFormatsError, ShapeError, UnsupportedModelError
from qformats_gguf.architectures import Architecture, Regroup
from qformats_gguf.metadata import Metadata, ValueType, array, u32
from qformats_gguf.rearrange import _log_of_negated, _negated_exp


def described(folder: Path) -> tuple[Metadata, list[str]]:
    """Metadata and names of the file of a model."""
    source = qformats.open(folder)
    architecture = Architecture.from_config(source.config)
    tokens = array(ValueType.STRING, [f"<{i}>" for i in range(source.config["vocab_size"])])
    metadata = {**architecture.metadata(name="m"), "tokenizer.ggml.tokens": tokens}
    return metadata, [tensor.gguf for tensor in architecture.expected_tensors()]


def test_logarithms_give_the_same_exponentials_again() -> None:
    numbers = torch.empty(100_000).uniform_(-8, 4, generator=torch.Generator().manual_seed(0))
    stored = _negated_exp(numbers)
    back = _log_of_negated(stored)
    assert _negated_exp(back).equal(stored)
    assert (back - numbers).abs().max() < 1e-6


def test_rows_move_from_groups_to_parts() -> None:
    rows = np.array(["q0 q1 k0 v0", "q2 q3 k1 v1"])
    names = np.array(" ".join(rows).split())
    whole = Regroup(2, (2, 1, 1))
    assert names[whole.rows(8)].tolist() == ["q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1"]
    assert names[whole.rows(8)][whole.inverse(8)].tolist() == names.tolist()
    some = Regroup(2, (2, 1, 1), only=(0, 2))
    assert names[some.rows(8)].tolist() == ["q0", "q1", "q2", "q3", "v0", "v1"]
    assert some.count == 6
    with pytest.raises(ShapeError, match=r"2 groups of 2 \+ 1 \+ 1 rows"):
        whole.rows(7)


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, ["linear_attention"] * 3 + ["full_attention"]),
        ({"qwen3next.attention.recurrent_layers": None}, ["linear_attention"] * 3 + ["full_attention"]),
        (
            {"qwen3next.attention.recurrent_layers": None, "qwen3next.full_attention_interval": u32(2)},
            ["linear_attention", "full_attention"] * 2,
        ),
    ],
)
def test_kinds_of_layers_come_from_flags_or_from_an_interval(
    changes: dict[str, Any], kinds: list[str], tmp_path: Path
) -> None:
    metadata, names = described(build("qwen3_next", tmp_path / "model"))
    given = {key: value for key, value in (metadata | changes).items() if value is not None}
    back = Architecture.from_metadata(given, names)
    assert back.config["layer_types"] == kinds
    assert back.config["linear_value_head_dim"] == 16


@pytest.mark.parametrize(
    ("name", "key", "values", "message"),
    [
        ("qwen3_next", "qwen3next.attention.recurrent_layers", [True], "4 values"),
        ("lfm2", "lfm2.attention.head_count_kv", [0, 2], "3 values"),
        ("lfm2", "lfm2.attention.head_count_kv", [1, 2, 0], "one number of heads"),
        ("lfm2", "lfm2.attention.head_count_kv", [0, 0, 0], "one number of heads"),
    ],
)
def test_arrays_that_fit_no_model_are_refused(
    name: str, key: str, values: list[Any], message: str, tmp_path: Path
) -> None:
    metadata, names = described(build(name, tmp_path / "model"))
    kind = ValueType.BOOL if isinstance(values[0], bool) else ValueType.I32
    with pytest.raises(CheckpointError, match=message):
        Architecture.from_metadata(metadata | {key: array(kind, values)}, names)


def test_older_configurations_of_lfm2_say_which_layers_attend(tmp_path: Path) -> None:
    folder = build("lfm2-tied", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    expected = Architecture.from_config(config)
    old = {key: value for key, value in config.items() if key not in ("layer_types", "intermediate_size")}
    old |= {"full_attn_idxs": [2], "block_ff_dim": config["intermediate_size"]}
    assert Architecture.from_config(old).expected_tensors() == expected.expected_tensors()
    with pytest.raises(QFormatsError, match="full_attn_idxs"):
        Architecture.from_config(old | {"full_attn_idxs": "2"})
    with pytest.raises(UnsupportedModelError, match="layer_types"):
        Architecture.from_config(config | {"layer_types": ["conv"]})


def test_packed_rows_of_linear_attention_stay_packed(tmp_path: Path) -> None:
    """Rows of q, k, v and z are regrouped on their bytes, there and back."""
    folder = build("qwen3_next", tmp_path / "model")
    qformats.export(folder, tmp_path / "q.gguf", format="gguf:q8_0")
    name = "model.layers.0.linear_attn.in_proj_qkvz.weight"
    stored, given = qformats.open(tmp_path / "q.gguf").tensors[name], qformats.open(folder).tensors[name]
    assert stored.format == "gguf:q8_0"
    assert stored.shape == given.shape
    assert 0 < (stored.dequantize() - given.dequantize()).abs().max() < 0.01
