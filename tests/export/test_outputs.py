"""What is written: exact sizes known before, the same bytes however it is written, readable by others."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from models import tiny
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats

IDS = [5, 17, 100, 33, 2, 64]


def content(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("kind", "target", "more"),
    [
        ("gguf:q4_0", "out.gguf", []),
        ("gguf:f16", "out.gguf", ["--max-shard-size", "60KB"]),
        ("dense:f16", "out", []),
        ("dense:bf16", "out", ["--max-shard-size", "60KB"]),
    ],
    ids=["file", "split", "folder", "sharded-folder"],
)
def test_dry_run_is_exact(capsys, llama, tmp_path, kind, target, more):
    arguments = ["export", llama, "-f", kind, "-o", tmp_path / target, *more]
    planned = call(capsys, *arguments, "--dry-run", "--json")
    assert planned.code == 0
    assert list(tmp_path.iterdir()) == []
    report = json.loads(planned.out)
    text = call(capsys, *arguments, "--dry-run").out
    assert list(tmp_path.iterdir()) == []
    assert f"would take {report['file_nbytes']:,} bytes" in text
    assert call(capsys, *arguments).code == 0
    folder = tmp_path / target if kind.startswith("dense") else tmp_path
    sizes = {str(f.relative_to(folder)): f.stat().st_size for f in folder.rglob("*")}
    record = sizes.pop("qformats.json" if kind.startswith("dense") else "out.gguf.qformats.json")
    assert record > 0
    assert sizes == dict(report["files"])
    assert sum(sizes.values()) == report["file_nbytes"]
    if more:
        assert len([name for name in sizes if "-of-" in name]) > 2


@pytest.mark.parametrize(("kind", "target"), [("gguf:q4_0", "out.gguf"), ("dense:f16", "out")])
def test_same_bytes_with_any_number_of_threads(llama, tmp_path, kind, target):
    for workers in (1, 4):
        place = tmp_path / str(workers)
        qformats.export(llama, place / target, format=kind, workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "4")


def test_record_tells_no_time_and_no_place(llama, tmp_path):
    """Two exports of one model have the same record, wherever and whenever they were made."""
    qformats.export(llama, tmp_path / "a" / "out.gguf", format="gguf:q4_0")
    text = (tmp_path / "a" / "out.gguf.qformats.json").read_text()
    record = json.loads(text)
    assert str(tmp_path) not in text
    assert str(llama.parent) not in text
    assert record["source"] == "llama"
    assert not {"seconds", "resumed", "target", "run_with"} & set(record)
    assert [t["name"] for t in record["tensors"]][:2] == ["token_embd.weight", "output_norm.weight"]
    assert record["files"] == [["out.gguf", (tmp_path / "a" / "out.gguf").stat().st_size]]


def test_split_files_run_in_llama_cpp(llama, tmp_path):
    whole = qformats.export(llama, tmp_path / "one.gguf", format="gguf:q8_0")
    split = qformats.export(
        llama, tmp_path / "many.gguf", format="gguf:q8_0", options={"max-shard-size": "50KB"}
    )
    assert len(split.files) > 3
    assert split.run_with.startswith(f"llama-cli -m {tmp_path / split.files[0][0]} ")
    assert not (tmp_path / "many.gguf").exists()
    one, many = qformats.open(tmp_path / "one.gguf"), qformats.open(tmp_path / split.files[-1][0])
    assert list(one.tensors) == list(many.tensors)
    assert all(bool((one.read(name) == many.read(name)).all()) for name in one.tensors)
    assert whole.nbytes == split.nbytes
    with LlamaCpp(tmp_path / "one.gguf") as model:
        expected = model.logits(IDS)
    with LlamaCpp(tmp_path / split.files[0][0]) as model:
        np.testing.assert_array_equal(model.logits(IDS), expected)


def test_sharded_folder_runs_in_transformers(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="dense:f32", options={"max-shard-size": "60KB"})
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    np.testing.assert_array_equal(hf.logits(tmp_path / "out", IDS), hf.logits(llama, IDS))


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_mixed_dtypes(llama, copy, tmp_path, kind):
    """Norms in float32, one matrix in float16, one in float64, the rest in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    state = {name: value.bfloat16() for name, value in load_file(copy / "model.safetensors").items()}
    for name, value in state.items():
        dtype = torch.float32 if value.ndim == 1 else torch.float16 if "q_proj" in name else value.dtype
        state[name] = value.to(torch.float64 if "down_proj" in name else dtype)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    qformats.export(copy, tmp_path / "out.gguf", format=f"gguf:{kind}")
    plain = {name: value.float().contiguous() for name, value in state.items()}
    save_file(plain, copy / "model.safetensors", metadata={"format": "pt"})
    qformats.export(copy, tmp_path / "plain.gguf", format=f"gguf:{kind}")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize("variant", ["sharded", "bin", "old-bin", "many-bins"])
def test_every_kind_of_weight_file(llama, tmp_path, variant):
    """However a folder stores the same weights, the output is the same."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "llama"
    shards = {"bin": 1, "many-bins": 3}.get(variant, 0)
    size = "60KB" if variant == "sharded" else "5GB"
    tiny.build("llama", folder, max_shard_size=size, bin_shards=shards)
    if variant == "old-bin":
        state = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert variant != "sharded" or len(list(folder.glob("*.safetensors"))) > 2
    qformats.export(folder, tmp_path / "out.gguf", format="gguf:q4_0")
    qformats.export(llama, tmp_path / "expected.gguf", format="gguf:q4_0")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_folder_without_a_tokenizer(capsys, copy, tmp_path):
    for file in copy.glob("*token*"):
        file.unlink()
    result = call(capsys, "export", copy, "-f", "gguf", "-o", tmp_path / "out.gguf")
    assert result.code == 3
    assert f"{copy}: no tokenizer" in result.err
    assert not (tmp_path / "out.gguf").exists()
    assert call(capsys, "export", copy, "-f", "dense:f16", "-o", tmp_path / "out").code == 0
