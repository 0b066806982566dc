"""nvfp4: gguf-py's values, factors in a tensor of their own, and the logits of llama.cpp."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from models import tiny
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats import PackedTensor
from qformats.errors import CheckpointError

PACKER = qformats.packer("gguf:nvfp4")
IDS = [1, 5, 9, 33, 7, 2, 60, 12]


def test_any_bytes_decode_as_in_gguf_py():
    """Signs of scales and the byte of NaN among them."""
    blocks = np.random.default_rng(7).integers(0, 256, (500, 36), dtype=np.uint8)
    blocks[:256, 0] = np.arange(256)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4)
    for factor in (1.0, 2.0**-9):
        fields = {"blocks": torch.from_numpy(blocks), "scale": torch.tensor([factor])}
        found = PackedTensor(PACKER, (500, 64), fields).dequantize()
        assert torch.equal(found + 0.0, torch.from_numpy(expected) * factor + 0.0)


def test_what_is_packed_is_what_gguf_py_reads():
    weight = torch.randn((8, 128), generator=torch.Generator().manual_seed(1)) * 0.1
    packed = PACKER.encode_reference(weight)
    kind = gguf.GGMLQuantizationType.NVFP4
    plain = torch.from_numpy(gguf.quants.dequantize(packed.fields["blocks"].numpy(), kind))
    # Its product is rounded once less.
    assert torch.allclose(plain * packed.fields["scale"], packed.dequantize(), rtol=2.0**-22, atol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float32")


def test_llama_cpp_has_the_same_logits(folder, tmp_path):
    """It multiplies products by the factors, and rounds activations here as for other types."""
    file = tmp_path / "m.gguf"
    report = qformats.export(folder, file, format="gguf:nvfp4")
    assert report.types["gguf:nvfp4"] == 14
    names = {tensor.name for tensor in gguf.GGUFReader(file).tensors}
    assert sum(name.endswith(".scale") for name in names) == 14
    assert "token_embd.scale" not in names
    qformats.export(file, tmp_path / "plain", format="dense:f32")
    expected = hf.logits(hf.load(tmp_path / "plain"), IDS)
    with LlamaCpp(file) as model:
        found = model.logits(IDS)
    with LlamaCpp(q8(folder, tmp_path)) as model:
        usual = np.abs(model.logits(IDS) - hf.logits(hf.load(tmp_path / "plain8"), IDS)).max()
    assert np.abs(found - expected).max() < 4 * usual


def q8(folder, scratch):
    """The same in q8_0, whose activations llama.cpp rounds in the same way."""
    qformats.export(folder, scratch / "m8.gguf", format="gguf:q8_0")
    qformats.export(scratch / "m8.gguf", scratch / "plain8", format="dense:f32")
    return scratch / "m8.gguf"


def test_files_without_factors_stay_without_them(folder, tmp_path):
    """Those of llama-quantize; what says how activations are quantized is copied, and left out of folders."""
    source = tmp_path / "m.gguf"
    qformats.export(folder, source, format="gguf:nvfp4")
    reader = gguf.GGUFReader(source)
    bare = tmp_path / "bare.gguf"
    writer = gguf.GGUFWriter(bare, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        if not tensor.name.endswith(".scale"):
            raw = None if tensor.data.dtype == np.float32 else tensor.tensor_type
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=raw)
    writer.add_tensor("blk.0.attn_q.input_scale", np.ones(1, np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    model = qformats.open(bare)
    assert "blk.0.attn_q.input_scale" in model.left_out
    assert float(model.in_own_names["blk.0.attn_q.weight"].read().fields["scale"]) == 1
    qformats.export(bare, tmp_path / "copy.gguf", format="gguf:nvfp4")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "copy.gguf").tensors}
    assert names == {tensor.name for tensor in gguf.GGUFReader(bare).tensors}
    before, after = model.tensors, qformats.open(tmp_path / "copy.gguf").tensors
    assert all(torch.equal(before[name].dequantize(), after[name].dequantize()) for name in before)


def test_factors_of_another_number_are_refused(folder, tmp_path):
    source = tmp_path / "m.gguf"
    qformats.export(folder, source, format="gguf:nvfp4")
    data = bytearray(source.read_bytes())
    # The entry of a factor: one dimension of 1, then float32; it becomes two halves, in the same four bytes.
    at = data.index(b"blk.0.attn_q.scale") + len("blk.0.attn_q.scale")
    assert data[at : at + 4] == (1).to_bytes(4, "little")
    data[at + 4 : at + 12] = (2).to_bytes(8, "little")
    data[at + 12 : at + 16] = (1).to_bytes(4, "little")
    source.write_bytes(data)
    with pytest.raises(CheckpointError, match="f32, one for each matrix"):
        qformats.open(source)
