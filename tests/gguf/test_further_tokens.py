"""Models whose last block predicts further tokens, as llama.cpp's converter writes them and as they are published."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from models import further
from models.architectures import build
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file, save_file

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


@pytest.fixture(scope="module", params=further.FURTHER)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, further.build(request.param, tmp_path_factory.mktemp("published") / request.param)


def _predicting(folder: Path) -> set[str]:
    """Tensors of a folder that Transformers' class does not have."""
    from transformers import AutoModelForCausalLM

    path = folder.parent / "saved"
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(path)
    return load_file(folder / "model.safetensors").keys() - load_file(path / "model.safetensors").keys()


def test_what_a_folder_has_of_it_is_kept_or_named(published: tuple[str, Path], tmp_path: Path) -> None:
    """Bytes and metadata are compared with upstream's in test_converter_goldens.py."""
    name, folder = published
    more = _predicting(folder)
    assert len(more) > 10
    report = qformats.export(folder, tmp_path / "m.gguf", format="gguf:q8_0")
    left_out = {entry.name: entry.reason for entry in report.left_out}
    if name == "deepseek_v3":
        assert left_out.keys() == more
        assert all("predicts further tokens" in reason for reason in left_out.values())
    else:
        assert not left_out
        types = {tensor.name: tensor.format for tensor in report.tensors}
        assert [key for key in types if key.endswith("nextn.eh_proj.weight")]
        assert all(kind == "gguf:q8_0" for key, kind in types.items() if key.endswith("nextn.eh_proj.weight"))
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    arch = reader.fields["general.architecture"].contents()
    blocks = {int(tensor.name.split(".")[1]) for tensor in reader.tensors if tensor.name.startswith("blk.")}
    assert reader.fields[f"{arch}.block_count"].contents() == len(blocks)
    # Without those blocks it is the model that Transformers runs.
    opened = qformats.open(tmp_path / "m.gguf")
    assert {key.split(".")[1] for key in opened.left_out} == (set() if left_out else {str(max(blocks))})
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="dense:f32")
    hf.load(tmp_path / "back")
    qformats.export(folder, tmp_path / "plain.gguf", format="gguf:f32")
    with LlamaCpp(tmp_path / "plain.gguf") as llama:
        assert np.abs(llama.log_probs(IDS) - hf.log_probs(hf.load(folder.parent / "saved"), IDS)).max() < 2e-4


def test_an_incomplete_block_is_refused_by_name(tmp_path: Path) -> None:
    folder = further.build("glm4_moe", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    # The model's own embedding is taken where the block has none.
    del tensors["model.layers.3.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    report = qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32")
    assert "blk.3.nextn.embed_tokens.weight" not in {tensor.name for tensor in report.tensors}
    with LlamaCpp(tmp_path / "m.gguf") as llama:
        assert np.isfinite(llama.log_probs(IDS)).all()
    del tensors["model.layers.3.enorm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.3\.enorm\.weight.*missing"):
        qformats.export(folder, tmp_path / "n.gguf", format="gguf:f32")
    assert not (tmp_path / "n.gguf").exists()


def test_calibration_rounds_it_by_itself(tmp_path: Path) -> None:
    """Transformers' class does not run it; the rest of the model is calibrated."""
    folder = further.build("glm4_moe", tmp_path / "model")
    text = tmp_path / "t.txt"
    text.write_text("It was the best of times, it was the worst of times; 1234567890 things were said. " * 60)
    options = {
        "samples": "4",
        "sequence-length": "32",
        "calibration": str(text),
        "log": str(tmp_path / "log"),
    }
    qformats.export(
        folder, tmp_path / "m.gguf", format="gguf:q4_0", quantizer="gptq", quantizer_options=options
    )
    qformats.export(folder, tmp_path / "rtn.gguf", format="gguf:q4_0", quantizer="rtn")
    one, other = (qformats.open(tmp_path / name).stored for name in ("m.gguf", "rtn.gguf"))
    same = {name for name in one if torch.equal(one[name].dequantize(), other[name].dequantize())}
    assert {name for name in one if name.startswith("blk.3.")} <= same
    assert "blk.2.attn_output.weight" not in same
    layers = [json.loads(line)["layer"] for line in (tmp_path / "log").read_text().splitlines()]
    assert layers
    assert not [layer for layer in layers if "layers.3." in layer]
