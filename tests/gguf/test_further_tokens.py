"""Files whose last block predicts further tokens, as llama.cpp's converter writes GLM-4.5."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from models.architectures import build
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats.errors import CheckpointError

IDS = list(range(3, 51))


def with_further_block(plain: Path, target: Path, further: int = 1) -> set[str]:
    """Write a file again with one more block, which is like the last one; names of its tensors."""
    reader, writer = gguf.GGUFReader(plain), gguf.GGUFWriter(target, "glm4moe")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, *inner = field.types
        value = 4 if field.name == "glm4moe.block_count" else field.contents()
        writer.add_key_value(field.name, value, kind, *inner)
    writer.add_nextn_predict_layers(further)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    more = {name.replace("blk.2.", "blk.3."): data for name, data in tensors.items() if "blk.2." in name}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GLM4_MOE, 4)
    embedding = tensors["token_embd.weight"]
    for part, data in {
        "eh_proj": np.concatenate([embedding[:64], embedding[64:128]], 1),
        "embed_tokens": embedding,
        "enorm": tensors["output_norm.weight"],
        "hnorm": tensors["output_norm.weight"],
        "shared_head.head": embedding,
        "shared_head.norm": tensors["output_norm.weight"],
    }.items():
        more[f"{names.get_name(f'model.layers.3.{part}')}.weight"] = data
    for name, data in (tensors | more).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return set(more)


def test_the_model_without_that_block_is_read_and_named(tmp_path: Path) -> None:
    folder, plain, file = build("glm4_moe", tmp_path / "model"), tmp_path / "plain.gguf", tmp_path / "m.gguf"
    qformats.export(folder, plain, format="gguf:f32")
    more = with_further_block(plain, file)
    with LlamaCpp(file) as llama:
        assert np.abs(llama.log_probs(IDS) - hf.log_probs(folder, IDS)).max() < 1e-4
    opened, expected = qformats.open(file), qformats.open(plain)
    assert opened.config == expected.config
    assert opened.left_out.keys() == more
    assert all("predicts further tokens" in reason for reason in opened.left_out.values())
    assert opened.tensors.keys() == expected.tensors.keys()
    report = qformats.export(file, tmp_path / "back", format="dense:f32")
    assert {each.name for each in report.left_out} == more
    assert np.abs(hf.log_probs(tmp_path / "back", IDS) - hf.log_probs(folder, IDS)).max() < 1e-6
    packed = qformats.load_model(file, device="cpu")
    assert np.abs(hf.log_probs(packed, IDS) - hf.log_probs(folder, IDS)).max() < 1e-4


def test_it_stays_in_files_made_from_such_files(tmp_path: Path) -> None:
    plain, file = tmp_path / "plain.gguf", tmp_path / "m.gguf"
    qformats.export(build("glm4_moe", tmp_path / "model"), plain, format="gguf:f32")
    more = with_further_block(plain, file)
    qformats.export(file, tmp_path / "q.gguf", format="gguf:q8_0")
    made = gguf.GGUFReader(tmp_path / "q.gguf")
    types = {tensor.name: tensor.tensor_type.name for tensor in made.tensors}
    assert more < types.keys()
    assert types["blk.3.attn_q.weight"] == "Q8_0"
    assert made.fields["glm4moe.nextn_predict_layers"].contents() == 1
    assert qformats.open(tmp_path / "q.gguf").left_out.keys() == more


def test_more_such_blocks_than_there_are_blocks_are_refused(tmp_path: Path) -> None:
    plain, file = tmp_path / "plain.gguf", tmp_path / "m.gguf"
    qformats.export(build("glm4_moe", tmp_path / "model"), plain, format="gguf:f32")
    with_further_block(plain, file, further=4)
    with pytest.raises(CheckpointError, match=r"block_count = 4; expected more than the 4 that predict"):
        qformats.open(file)
