"""Which files are read if there are several: those that Transformers reads, which is the oracle here."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from cli.command import call
from folder.folders import (
    WEIGHTS,
    agree,
    change_config,
    change_weights,
    logits,
    split,
    transformers_logits,
    write_index,
)
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError

# What load_model says of such models; that it says it is tested with it.
pytestmark = pytest.mark.filterwarnings("ignore:.* as in Transformers.*:UserWarning")

NAME = "model.layers.1.mlp.down_proj.weight"
BIN = "pytorch_model.bin"


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    """Weights of another model of the same shape."""
    folder = tiny.build("llama", tmp_path_factory.mktemp("old") / "old")
    change_weights(folder, lambda state: [state[name].mul_(-0.7) for name in state])
    return folder


def same_as_transformers(folder: Path) -> bool:
    return agree(logits(qformats.load_model(folder, dtype="f32")), transformers_logits(folder))


def test_one_file_takes_precedence_over_an_index(copy, old):
    shutil.copytree(old, copy.parent / "shards")
    where = split(copy.parent / "shards")
    write_index(copy, where)
    assert same_as_transformers(copy)
    for file in set(where.values()):
        shutil.copy(copy.parent / "shards" / file, copy)
    assert same_as_transformers(copy)
    read = qformats.open(copy)
    assert torch.equal(read.read(NAME), load_file(copy / WEIGHTS)[NAME])
    assert read.notes == (
        "Not read: model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, "
        "model.safetensors.index.json; as in Transformers, model.safetensors takes precedence",
    )


def test_safetensors_take_precedence_over_bin(copy, old):
    torch.save(load_file(old / WEIGHTS), copy / BIN)
    assert same_as_transformers(copy)
    split(copy)
    assert same_as_transformers(copy)
    assert qformats.open(copy).notes == (
        f"Not read: {BIN}; as in Transformers, {WEIGHTS}.index.json takes precedence",
    )


def test_one_bin_takes_precedence_over_an_index_of_them(copy, old):
    torch.save(load_file(copy / WEIGHTS), copy / BIN)
    (copy / WEIGHTS).unlink()
    shard = "pytorch_model-00001-of-00001.bin"
    state = load_file(old / WEIGHTS)
    torch.save(state, copy / shard)
    write_index(copy, dict.fromkeys(state, shard), f"{BIN}.index.json")
    assert same_as_transformers(copy)
    assert f"Not read: {shard}" in qformats.open(copy).notes[0]


def test_what_training_left_behind_is_no_weights(copy):
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
        "adapter_model.safetensors",
    ):
        (copy / name).write_bytes(b"x")
    assert qformats.open(copy).notes == ()


def test_notes_are_told(capsys, copy, old):
    torch.save(load_file(old / WEIGHTS), copy / BIN)
    told = f"Not read: {BIN}; as in Transformers, {WEIGHTS} takes precedence"
    target = copy.parent / "out.gguf"
    assert told in call(capsys, "inspect", copy).out
    assert told in call(capsys, "export", copy, "-f", "gguf:q8_0", "-o", target, "--dry-run").out
    assert told in call(capsys, "export", copy, "-f", "gguf:q8_0", "-o", target).out
    assert told in Path(f"{target}.qformats.json").read_text()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_file_that_the_configuration_names(copy, old, tmp_path, sharded):
    shutil.copy(copy / WEIGHTS, copy / "chosen.safetensors")
    shutil.copy(old / WEIGHTS, copy / WEIGHTS)
    name = "chosen.safetensors"
    if sharded:
        write_index(copy, dict.fromkeys(load_file(copy / name), name), "chosen.safetensors.index.json")
        name = "chosen.safetensors.index.json"
    change_config(copy, transformers_weights=name)
    assert same_as_transformers(copy)
    assert torch.equal(qformats.open(copy).read(NAME), load_file(copy / "chosen.safetensors")[NAME])
    # An export has files of its own.
    qformats.export(copy, tmp_path / "out", format="dense:f32")
    assert "transformers_weights" not in qformats.open(tmp_path / "out").config


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("x.bin", "transformers_weights 'x.bin'; expected the name of a .safetensors file or of its index"),
        (7, "transformers_weights 7; expected the name of"),
        ("../in/x.safetensors", "expected a file inside the folder"),
        ("/etc/x.safetensors", "expected a file inside the folder"),
        ("a\0.safetensors", "expected a file inside the folder"),
        ("gone.safetensors", "is missing, although transformers_weights in config.json names it"),
    ],
)
def test_a_file_that_cannot_be_named(copy, named, found):
    change_config(copy, transformers_weights=named)
    with pytest.raises(CheckpointError) as caught:
        qformats.open(copy)
    assert found in str(caught.value)


def test_tensors_that_the_index_omits_are_read(copy):
    where = split(copy)
    del where[NAME]
    write_index(copy, where)
    assert same_as_transformers(copy)
    assert qformats.open(copy).notes == (
        f"{NAME} is in the files and not in their index: it is read, as in Transformers",
    )


def test_of_a_tensor_in_several_files_the_last_is_read(copy, old):
    where = split(copy)
    last = copy / sorted(set(where.values()))[-1]
    first = next(name for name, file in where.items() if file != last.name and name.endswith("proj.weight"))
    state = load_file(last) | {first: load_file(old / WEIGHTS)[first]}
    save_file(state, last, metadata={"format": "pt"})
    assert same_as_transformers(copy)
    opened = qformats.open(copy)
    assert torch.equal(opened.read(first), state[first])
    assert opened.notes == (f"{first} is in several files: the last one is read, as in Transformers",)


@pytest.mark.parametrize(
    ("model", "absent"),
    [("llama-tied", "lm_head.weight"), ("qwen2", "lm_head.weight"), ("gpt2", "lm_head.weight")],
)
def test_an_index_that_names_a_tied_tensor(tmp_path, model, absent):
    folder = tiny.build(model, tmp_path / "model")
    write_index(folder, split(folder) | {absent: "model-00001-of-00002.safetensors"})
    assert same_as_transformers(folder)


def test_an_index_that_names_a_head_of_an_untied_model(copy):
    change_weights(copy, lambda state: state.pop("lm_head.weight"))
    write_index(copy, split(copy) | {"lm_head.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(CheckpointError, match=r"tensor 'lm_head\.weight': is not in this file"):
        qformats.open(copy)


def test_shards_of_another_name_with_an_index(copy):
    """As programs that quantize write them."""
    where = split(copy)
    (copy / f"{WEIGHTS}.index.json").unlink()
    for file in set(where.values()):
        (copy / file).rename(copy / file.replace("model", "gptq_model-4bit-128g"))
    renamed = {name: file.replace("model", "gptq_model-4bit-128g") for name, file in where.items()}
    write_index(copy, renamed, "gptq_model-4bit-128g.safetensors.index.json")
    opened = qformats.open(copy)
    assert {file.name for file in opened.files if file.suffix == ".safetensors"} == set(renamed.values())
    assert opened.tensors.keys() == where.keys()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("null", "a JSON null"),
        ("[]", "a JSON list"),
        ('"x"', "a JSON string"),
        ("5", "a JSON number"),
        ("true", "a JSON boolean"),
        ('{"metadata": {}}', "an object without a weight_map"),
        ('{"weight_map":', "is not JSON (Expecting value"),
        ('{"weight_map": null}', "a weight_map that does not map to file names"),
    ],
)
def test_an_index_that_is_none(content, found, tmp_path):
    """In JSON's words, not in Python's."""
    folder = tiny.build("llama", tmp_path / "m")
    (folder / WEIGHTS).unlink()
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        qformats.open(folder)
    assert str(caught.value).startswith(f"{index}: {found}")
    assert not any(
        word in str(caught.value) for word in ("NoneType", "TypeError", "KeyError", "subscriptable")
    )


def test_a_configuration_that_is_none(tmp_path):
    folder = tiny.build("llama", tmp_path / "m")
    (folder / "config.json").write_text("null")
    with pytest.raises(CheckpointError, match=r"config\.json: a JSON null; expected an object"):
        qformats.open(folder)
