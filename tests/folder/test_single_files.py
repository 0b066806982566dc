"""A model in one file, in a folder that has a config.json and no weights of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli.command import call

import qformats
from qformats.errors import CheckpointError, ModelNotFoundError
from qformats.sources import outline_model


@pytest.fixture
def folder(copy) -> Path:
    """As GGUF repositories of the hub look: configuration and tokenizer of the original beside the file."""
    qformats.export(copy, copy / "model-q8_0.gguf", format="gguf:q8_0")
    (copy / "model.safetensors").unlink()
    return copy


def test_the_only_one_is_opened(capsys, folder, tmp_path):
    (folder / "training_args.bin").write_bytes(b"x")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        model = qformats.open(path)
        assert model.container == "gguf"
        assert model.path == path / "model-q8_0.gguf"
        assert model.name == "model"
    assert outline_model(folder, {}).tensors["model.norm.weight"].file == folder / "model-q8_0.gguf"
    result = call(capsys, "export", folder, "-f", "dense:f16", "-o", tmp_path / "out")
    assert result.code == 0, result.err


def test_weights_of_the_folder_come_first(folder, llama):
    shutil.copy(llama / "model.safetensors", folder)
    assert qformats.open(folder).container == "huggingface"


def test_of_several_one_must_be_named(folder):
    for number in range(9):
        shutil.copy(folder / "model-q8_0.gguf", folder / f"other-{number}.gguf")
    with pytest.raises(ModelNotFoundError) as caught:
        qformats.open(folder)
    told = str(caught.value)
    assert "a folder with 10 models in one file each, and no other weights" in told
    assert f"Give one of them: {folder / 'model-q8_0.gguf'}, {folder / 'other-0.gguf'}, " in told
    assert told.endswith("and 2 more.")
    # What needs no weights still works.
    assert len(outline_model(folder, {}).tensors) == 21


def test_a_split_model_is_one(folder):
    (folder / "model-q8_0.gguf").unlink()
    qformats.export("demo", folder / "split", format="gguf:q8_0", options={"max-shard-size": "2MB"})
    parts = sorted(folder.glob("*.gguf"))
    assert len(parts) > 2
    assert qformats.open(folder).files == parts
    parts[0].unlink()
    with pytest.raises(CheckpointError, match=f"{parts[0].name} is missing"):
        qformats.open(folder)


def test_a_link_out_of_the_folder_is_none(folder, tmp_path):
    shutil.move(folder / "model-q8_0.gguf", tmp_path / "away.gguf")
    (folder / "model-q8_0.gguf").symlink_to(tmp_path / "away.gguf")
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        qformats.open(folder)
    # Named by the user, it is opened.
    assert qformats.open(folder / "model-q8_0.gguf").container == "gguf"


def test_a_repository_of_the_hub(folder, tmp_path, monkeypatch):
    """With a stand-in for the network, which tests must not need."""
    import huggingface_hub

    wanted: list[list[str]] = []

    def download(repository, allow_patterns, local_files_only):
        wanted.append(allow_patterns)
        return str(folder)

    class Api:
        names = ("config.json", "model-q8_0.gguf")

        def model_info(self, repository, timeout):
            files = [type("File", (), {"rfilename": name})() for name in self.names]
            return type("Info", (), {"siblings": files})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    assert qformats.open("some/model").container == "gguf"
    assert "model-q8_0.gguf" in wanted[0]
    Api.names = ("config.json", "model-q8_0.gguf", "model-q4_0.gguf")
    with pytest.raises(
        ModelNotFoundError, match=r"2 single-file models and no other weights\. Name the file, such as"
    ):
        qformats.open("some/model")
    Api.names = ("config.json", "model.safetensors", "model-q4_0.gguf")
    qformats.open("some/model")
    assert "model-q4_0.gguf" not in wanted[1]
