"""Files of types beside the legacy ones: opened, made into a folder, and quantized again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models.architectures import build_wide
from oracles import ggml
from safetensors.torch import load_file

import qformats
from qformats_gguf.header import TensorInfo, serialize
from qformats_gguf.reader import read
from qformats_gguf.types import by_name

KINDS = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "tq2_0"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, whose rows divide into blocks of 256, as float32 GGUF."""
    path = tmp_path_factory.mktemp("plain")
    target = path / "model.gguf"
    qformats.export(build_wide("llama", path / "model"), target, format="gguf:f32")
    return target


def quantized_by_ggml(plain: Path, kind: str, target: Path) -> dict[str, np.ndarray]:
    """Write the model with every matrix quantized by ggml; give the values that ggml decodes."""
    values: dict[str, np.ndarray] = {}
    infos, parts = [], []
    with read(plain) as file:
        for name, tensor in file.tensors.items():
            dense = file.data(name).view(np.float32).reshape(tensor.shape)
            matrix = len(tensor.shape) == 2
            infos.append(TensorInfo(name, tensor.shape, by_name(kind if matrix else "f32")))
            parts.append(ggml.quantize(kind, dense) if matrix else dense)
            values[name] = ggml.dequantize(kind, parts[-1]) if matrix else dense
        header = serialize(file.metadata, infos)
    data = bytearray(header.total_size)
    data[: len(header.data)] = header.data
    for offset, part in zip(header.offsets, parts, strict=True):
        content = part.tobytes()
        data[offset : offset + len(content)] = content
    target.write_bytes(data)
    return values


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_this_type_is_read_and_converted(plain: Path, kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    values = quantized_by_ggml(plain, kind, source)

    opened = qformats.open(source)
    assert torch.equal(
        opened.read("model.layers.1.mlp.down_proj.weight"), torch.from_numpy(values["blk.1.ffn_down.weight"])
    )

    qformats.export(source, tmp_path / "folder", format="dense:f32")
    written = load_file(tmp_path / "folder" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], torch.from_numpy(values["output.weight"]))

    report = qformats.export(source, tmp_path / "again.gguf", format="gguf:q8_0")
    assert {t.action for t in report.tensors} <= {"requantized", "transcoded", "copied"}
    before = values["blk.0.attn_k.weight"]
    with read(tmp_path / "again.gguf") as again:
        found = again.data("blk.0.attn_k.weight")
    if kind in ("q3_k", "iq4_nl", "iq4_xs", "mxfp4", "tq1_0", "tq2_0"):
        # One scale for 32 levels that q8_0 has: codes are kept, and at most the scale is rounded.
        after = ggml.dequantize("q8_0", found).reshape(before.shape)
        rounded = 2**-11 if kind in ("q3_k", "iq4_xs") else 0
        assert np.abs(after - before).max() <= np.abs(before).max() * rounded
    else:
        assert np.array_equal(found, ggml.quantize("q8_0", before).reshape(-1))
