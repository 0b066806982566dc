"""Links in models that lead out of them: what lies elsewhere on the disk is not read, and not copied into an export."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from cli.command import call
from folder.folders import WEIGHTS, split
from glm_ranks import sat_oracle
from models import chatglm

import qformats
from qformats.errors import CheckpointError

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture
def secret(tmp_path) -> Path:
    file = tmp_path / "home" / ".ssh" / "id_rsa"
    file.parent.mkdir(parents=True)
    file.write_text(SECRET)
    return file


def replace(file: Path, target: Path) -> None:
    """Put a link in the place of a file."""
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    file.symlink_to(target)


def cached(folder: Path, cache: Path) -> Path:
    """The model as the hub's cache holds it: a snapshot of links to blobs."""
    repository = cache / "models--some--model"
    snapshot = repository / "snapshots" / "0123abcd"
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json", "generation_config.json"),
        *(
            "chat_template.jinja",
            "tokenizer.model",
            "additional_chat_templates/x.jinja",
            "quantize_config.json",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["dense:f16", "gguf:f16"])
def test_a_file_from_elsewhere(capsys, copy, secret, tmp_path, name, kind):
    before = (copy / name).read_bytes() if (copy / name).exists() else SECRET.encode()
    replace(copy / name, secret)
    for content in (SECRET.encode(), before):
        # Not even if it is what one would expect there.
        secret.write_bytes(content)
        result = call(capsys, "export", copy, "-f", kind, "-o", tmp_path / "out")
        assert result.code == 3
        assert (
            f"{copy / name}: is a link that leads out of the folder, to {secret}; expected a file"
            in result.err
        )
        assert SECRET not in result.err
        assert sorted(os.listdir(tmp_path)) == ["home", "in"]


def test_a_folder_from_elsewhere(copy, secret, tmp_path):
    (secret.parent / "a.jinja").write_text(SECRET)
    (copy / "additional_chat_templates").symlink_to(secret.parent)
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        qformats.open(copy)


def test_a_link_that_appears_after_the_model_was_opened(copy, secret, tmp_path):
    model = qformats.open(copy)
    replace(copy / "tokenizer.json", secret)
    for read in (model.tokenizer_files, lambda: qformats.export(model, tmp_path / "out", format="dense:f16")):
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            read()
    assert not (tmp_path / "out").exists()


def test_shards_and_bin_files_from_elsewhere(copy, tmp_path):
    state = {name: tensor.read().dequantize() for name, tensor in qformats.open(copy).tensors.items()}
    shard = copy / sorted(set(split(copy).values()))[1]
    shutil.move(shard, tmp_path / shard.name)
    replace(shard, tmp_path / shard.name)
    with pytest.raises(CheckpointError, match=f"{shard.name}: is a link that leads out"):
        qformats.open(copy)
    for file in copy.glob("model*"):
        file.unlink()
    torch.save(state, tmp_path / "weights")
    replace(copy / "pytorch_model.bin", tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is a link that leads out"):
        qformats.open(copy)
    replace(copy / "model.safetensors.index.json", tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"index\.json: is a link that leads out"):
        qformats.open(copy)


def test_links_within_the_folder_and_to_it(copy, tmp_path):
    shutil.move(copy / WEIGHTS, copy / "weights")
    (copy / WEIGHTS).symlink_to("weights")
    (copy / "chat_template.jinja").symlink_to(copy / "tokenizer_config.json")
    (tmp_path / "link").symlink_to(copy)
    for path in (copy, tmp_path / "link", tmp_path / "link" / ".." / "model"):
        assert len(qformats.open(path).tensors) == 21
    report = qformats.export(tmp_path / "link", tmp_path / "out", format="dense:f16")
    assert ("tokenizer.json", (copy / "tokenizer.json").stat().st_size) in report.files


def test_a_cache_of_the_hub(copy, secret, tmp_path):
    snapshot = cached(copy, tmp_path / "cache")
    model = qformats.open(snapshot)
    assert model.tokenizer_files()["tokenizer.json"] == (copy / "tokenizer.json").read_bytes()
    qformats.export(model, tmp_path / "out", format="dense:f16")
    # Blobs of this repository, not of another one, and not whatever a link of that name leads to.
    other = tmp_path / "cache" / "models--other--model" / "blobs" / "0"
    other.parent.mkdir(parents=True)
    shutil.copy(copy / "tokenizer.json", other)
    for place in (other, secret):
        replace(snapshot / "tokenizer.json", place)
        with pytest.raises(CheckpointError, match="leads out of the folder"):
            qformats.open(snapshot)
    blobs = snapshot.parents[1] / "blobs"
    (blobs / "id_rsa").write_text("{}")
    replace(snapshot / "tokenizer.json", blobs / "id_rsa")
    qformats.open(snapshot).tokenizer_files()
    shutil.rmtree(blobs)
    blobs.symlink_to(secret.parent)
    for file in copy.iterdir():
        (snapshot / file.name).unlink()
        shutil.copy(file, snapshot)
    replace(snapshot / "tokenizer.json", Path("../../blobs/id_rsa"))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        qformats.open(snapshot)


@pytest.fixture
def parts(llama, tmp_path) -> list[Path]:
    target = tmp_path / "parts" / "toy"
    qformats.export(llama, target, format="gguf:q8_0", options={"max-shard-size": "60KB"})
    return sorted(target.parent.glob("*.gguf"))


def test_parts_of_a_gguf_model(parts, tmp_path):
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(parts[1], away / parts[1].name)
    replace(parts[1], away / parts[1].name)
    with pytest.raises(CheckpointError, match=f"{parts[1].name}: is a link that leads out of the folder"):
        qformats.open(parts[0])
    # What the user names may be anywhere, and its parts where it really is.
    assert len(parts) > 2
    for part in (parts[0], *parts[2:]):
        shutil.move(part, away / part.name)
        part.symlink_to(away / part.name)
    assert len(qformats.open(parts[0]).files) == len(parts)


def test_parts_of_a_gguf_model_in_a_cache_of_the_hub(parts, tmp_path):
    snapshot = cached(parts[0].parent, tmp_path / "cache")
    assert len(qformats.open(snapshot / parts[0].name).files) == len(parts)


@pytest.mark.parametrize("name", ["latest", "model_config.json", "49300/mp_rank_01_model_states.pt", "49300"])
def test_ranks(tmp_path, name):
    folder = sat_oracle.save(tmp_path / "ranks", sat_oracle.split(sat_oracle.model(), 4))
    (folder / "model_config.json").write_text("{}")
    shutil.move(folder / name, tmp_path / "moved")
    replace(folder / name, tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is a link that leads out of the folder"):
        qformats.open(folder)


@pytest.mark.parametrize("name", ["config.json", "modeling_chatglm.py", "tokenizer.model", WEIGHTS])
def test_chatglm(tmp_path, secret, name):
    folder = tmp_path / "glm"
    chatglm.save(chatglm.model(), folder)
    if (folder / name).exists():
        secret.write_bytes((folder / name).read_bytes())
    replace(folder / name, secret)
    with pytest.raises(CheckpointError, match="is a link that leads out of the folder"):
        qformats.export(folder, tmp_path / "out", format="glm:int8")
    assert not (tmp_path / "out").exists()


def test_a_loader_of_a_plugin_that_does_not_look(llama, secret, monkeypatch):
    from qformats.folder.model import FolderCheckpoint

    opened = FolderCheckpoint.files.fget
    monkeypatch.setattr(FolderCheckpoint, "files", property(lambda self: [*opened(self), secret]))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        qformats.open(llama)


def test_a_model_may_be_named_by_a_link_to_its_file(llama, tmp_path):
    qformats.export(llama, tmp_path / "a" / "toy.gguf", format="gguf:q8_0")
    (tmp_path / "link.gguf").symlink_to(tmp_path / "a" / "toy.gguf")
    assert qformats.open(tmp_path / "link.gguf").container == "gguf"
