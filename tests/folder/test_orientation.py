"""What a folder stores transposed, leaves dense, or cannot convert."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from models import moe, tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import ConfigError
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor


def test_integers_are_no_format_for_weights(tmp_path: Path) -> None:
    for format in ("dense:i8", "dense:bool", "gguf:i8"):
        with pytest.raises(ConfigError, match=f"found '{format}'; expected one that can be written"):
            qformats.export("demo", tmp_path / "out", format=format)
    assert not list(tmp_path.iterdir())


def test_a_one_dimensional_conv1d_is_left_alone(tmp_path: Path) -> None:
    model = tiny.build("gpt2", tmp_path / "gpt2")
    state = load_file(model / "model.safetensors")
    state["transformer.h.0.attn.c_attn.weight"] = torch.ones(5)
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    assert qformats.open(model).tensors["transformer.h.0.attn.c_attn.weight"].shape == (5,)


def test_conv1d_weights_keep_their_orientation_through_a_folder(tmp_path: Path) -> None:
    model = tiny.build("gpt2", tmp_path / "gpt2")
    qformats.export(model, tmp_path / "half", format="dense:f16")
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "half" / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(value.half(), after[name]), name


def test_the_dtype_of_the_config_is_that_of_most_weights(tmp_path: Path) -> None:
    model = tiny.build("llama", tmp_path / "llama", dtype="float16")
    qformats.export(model, tmp_path / "model.gguf", format="gguf:f16")
    qformats.export(tmp_path / "model.gguf", tmp_path / "back", format="dense:f16")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "float16"


def test_rows_of_a_format_without_row_slices_are_packed_again_without_rounding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = qformats.pack(qformats.quantize(torch.randn(8, 64), "gguf:q8_0"), "gguf:q8_0")
    whole = qformats.packer("gguf:q8_0").dequantize(packed)
    monkeypatch.setattr(type(qformats.packer("gguf:q8_0")), "row_step", lambda self, shape: 0)

    def load(start: int, stop: int) -> PackedTensor:
        assert (start, stop) == (0, 8)
        return packed

    stored = StoredTensor("w", (8, 64), packed.packer, packed.nbytes, Path("f"), load)
    order = np.array([5, 1, 7])
    taken = stored.take_rows(order)
    assert (taken.shape, taken.format, taken.step) == ((3, 64), "gguf:q8_0", 0)
    assert torch.equal(taken.read(1, 3).dequantize(), whole[[1, 7]])


def test_rows_of_a_format_whose_blocks_straddle_rows_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = qformats.pack(qformats.quantize(torch.randn(8, 64), "gguf:q8_0"), "gguf:q8_0")
    whole = qformats.packer("gguf:q8_0").dequantize(packed)
    monkeypatch.setattr(type(qformats.packer("gguf:q8_0")), "row_step", lambda self, shape: 0)
    monkeypatch.setattr(type(qformats.packer("gguf:q8_0")), "row_packer", lambda self, shape: None)
    stored = StoredTensor("w", (8, 64), packed.packer, packed.nbytes, Path("f"), lambda start, stop: packed)
    taken = stored.take_rows(np.array([5, 1, 7]))
    assert (taken.format, taken.stored_format, taken.step) == ("dense:f32", "gguf:q8_0", 0)
    assert torch.equal(taken.read(1, 3).dequantize(), whole[[1, 7]])


def test_a_type_that_nobody_decodes_is_copied_and_not_converted(tmp_path: Path) -> None:
    from qformats_gguf.header import TensorInfo, serialize
    from qformats_gguf.metadata import string
    from qformats_gguf.types import by_name

    header = serialize(
        {"general.architecture": string("unheard-of")}, [TensorInfo("a.weight", (4, 64), by_name("q2_0"))]
    )
    source = tmp_path / "q2.gguf"
    source.write_bytes(header.data.ljust(header.total_size, b"\1"))
    with pytest.raises(
        ConfigError,
        match=re.escape("format of a.weight: found 'gguf:q2_0'; expected a format that can be decoded"),
    ):
        qformats.export(source, tmp_path / "out.gguf", format="gguf:q8_0")


def test_an_option_that_no_loader_knows(tmp_path: Path) -> None:
    for model in ("demo", qformats.open("demo")):
        with pytest.raises(ConfigError, match="option: found 'archh'; expected one of arch"):
            qformats.export(model, tmp_path / "out.gguf", format="gguf", options={"archh": "llama"})
    with pytest.raises(ConfigError, match="ignore-unsupported: found 'maybe'; expected yes or no"):
        qformats.export("demo", tmp_path / "out.gguf", format="gguf", options={"ignore-unsupported": "maybe"})


def test_a_named_pipe_is_no_model(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(qformats.QFormatsError, match="not a model that can be read"):
        qformats.open(tmp_path / "pipe.gguf")


def test_embeddings_and_routers_are_no_linear_weights(tmp_path: Path) -> None:
    from qformats.folder import HuggingFaceFolder

    drafts = {
        d.name: d for d in HuggingFaceFolder().draft(qformats.open(tiny.build("gpt2", tmp_path / "gpt2")), {})
    }
    assert drafts["transformer.wpe.weight"].keep == drafts["transformer.wte.weight"].keep == "dense:f32"
    mixture = qformats.open(moe.build("qwen2-moe", tmp_path / "moe"))
    kept = {d.name: d.keep for d in HuggingFaceFolder().draft(mixture, {})}
    assert kept["model.layers.0.mlp.gate.weight"] == "dense:f32"
    assert kept["model.layers.0.mlp.shared_expert_gate.weight"] == "dense:f32"
    assert kept["model.layers.0.mlp.shared_expert.gate_proj.weight"] is None
    linear = drafts["transformer.h.0.attn.c_attn.weight"]
    assert (linear.keep, linear.dense_transposed, linear.source.shape) == (None, True, (192, 64))
