"""Files whose experts have gate and up in one tensor, as convert_hf_to_gguf.py --fuse-gate-up-exps writes them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from models.architectures import build
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats.errors import CheckpointError

IDS = list(range(3, 51))


def _fused(file: Path, target: Path) -> None:
    """Write a file again with gate above up in each expert's matrix."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, *inner)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, tensor in tensors.items():
        data = np.array(tensor.data)
        if "ffn_up_exps" in name:
            continue
        if "ffn_gate_exps" in name:
            up = np.array(tensors[name.replace("gate", "up")].data)
            name, data = name.replace("gate", "gate_up"), np.concatenate([data, up], 1)
        writer.add_tensor(name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("format", ["f32", "q8_0"])
def test_they_are_the_same_experts(format: str, tmp_path: Path) -> None:
    folder = build("deepseek_v3", tmp_path / "model", moe_intermediate_size=64)
    qformats.export(folder, tmp_path / "plain.gguf", format=f"gguf:{format}")
    _fused(tmp_path / "plain.gguf", tmp_path / "fused.gguf")
    one, other = qformats.open(tmp_path / "plain.gguf"), qformats.open(tmp_path / "fused.gguf")
    assert any("ffn_gate_up_exps" in name for name in other.stored)
    assert one.config == other.config
    assert one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        found = other.tensors[key]
        assert (found.format, found.nbytes, found.shape) == (tensor.format, tensor.nbytes, tensor.shape)
        assert torch.equal(found.dequantize(), tensor.dequantize()), key
        if ".experts." in key:
            assert torch.equal(found.read(1, 4).dequantize(), tensor.read(1, 4).dequantize()), key
    ours = hf.log_probs(qformats.load_model(tmp_path / "fused.gguf", device="cpu"), IDS)
    theirs = hf.log_probs(qformats.load_model(tmp_path / "plain.gguf", device="cpu"), IDS)
    assert (ours == theirs).all()
    if format == "f32":
        with LlamaCpp(tmp_path / "fused.gguf") as llama:
            assert np.abs(llama.log_probs(IDS) - ours).max() < 2e-4


def test_of_another_size_they_are_refused(tmp_path: Path) -> None:
    folder = build("deepseek_v3", tmp_path / "model")
    qformats.export(folder, tmp_path / "plain.gguf", format="gguf:f32")
    _fused(tmp_path / "plain.gguf", tmp_path / "fused.gguf")
    content = (tmp_path / "fused.gguf").read_bytes()
    key = b"deepseek2.expert_feed_forward_length"
    at = content.index(key) + len(key) + 4
    size = int.from_bytes(content[at : at + 4], "little")
    (tmp_path / "wrong.gguf").write_bytes(
        content[:at] + (size // 2).to_bytes(4, "little") + content[at + 4 :]
    )
    with pytest.raises(CheckpointError, match=r"expected \(8, \d+, 64\), from the sizes"):
        qformats.open(tmp_path / "wrong.gguf")
