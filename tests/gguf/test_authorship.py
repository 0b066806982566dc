"""``general.*`` of files made from folders: what llama.cpp's package makes of the same model card and names."""

import json
import re

import gguf
import pytest
from models.architectures import build

import qformats
from qformats.errors import CheckpointError
from qformats_gguf import sampling
from qformats_gguf.authorship import authorship

CARD = """---
license: other
license_name: llama3.2
license_link: https://example.org/LICENSE
language:
- en
- pt
tags:
- facebook
- llama
pipeline_tag: text-generation
base_model: meta-llama/Llama-3.2-1B-Instruct
datasets:
- allenai/c4
- https://huggingface.co/datasets/squad
model_creator: Somebody
---
# A model
"""


SETTINGS = {"do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0, "eos_token_id": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("authorship") / "Tiny-Llama-135K-Instruct-v0.2"
    build("olmo2", path)
    (path / "README.md").write_text(CARD)
    (path / "generation_config.json").write_text(json.dumps(SETTINGS))
    return path


def written_by_llama_cpp(folder, parameters):
    about = gguf.Metadata.load(model_path=folder, total_params=parameters)
    writer = gguf.GGUFWriter(None, "none")
    about.set_gguf_meta_model(writer)
    found = {key: value.value for key, value in writer.kv_data[0].items()}
    return found | {"general.architecture": "olmo2"}


def test_a_file_says_what_the_card_says(folder, tmp_path):
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q8_0")
    model = qformats.open(folder)
    expected = written_by_llama_cpp(folder, model.parameters)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {key: field.contents() for key, field in reader.fields.items() if key.startswith("general.")}
    assert expected.items() <= found.items()
    own = ("general.type", "general.size_label", "general.file_type", "general.quantization_version")
    assert {*found} - {*expected} <= {*own}
    assert found["general.name"] == "Tiny Llama 135K Instruct v0.2"
    assert found["general.license.name"] == "llama3.2"
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct"
    card = qformats.open(tmp_path / "m.gguf").card
    assert card["base_model"] == ["meta-llama/Llama-3.2-1B-Instruct"]
    assert (card["license"], card["language"]) == ("other", ["en", "pt"])


def test_settings_of_generation_there_and_back(folder, tmp_path):
    made = json.loads((folder / "generation_config.json").read_text()) | {"temperature": 0.7, "mirostat": 2}
    files = {"generation_config.json": json.dumps(made).encode()}
    found = sampling.to_metadata(files, "folder")
    assert {key: value.data for key, value in found.items()} == {
        "general.sampling.top_k": 20,
        "general.sampling.top_p": 0.75,
        "general.sampling.min_p": 0,
        "general.sampling.temp": 0.7,
        "general.sampling.mirostat": 2,
    }
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q8_0")
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="dense:f32")
    back = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert {key: back[key] for key in SETTINGS if key != "eos_token_id"} == {
        key: value for key, value in SETTINGS.items() if key != "eos_token_id"
    }
    qformats.export(tmp_path / "back", tmp_path / "again.gguf", format="gguf:q8_0")
    kept = [
        {key: value for key, value in qformats.open(tmp_path / name).metadata.items() if ".sampling." in key}
        for name in ("m.gguf", "again.gguf")
    ]
    assert kept[0] == kept[1] != {}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"temperature": "hot"}, 'temperature "hot"; expected a number'),
        ({"top_k": 2.5}, "top_k 2.5; expected a whole number"),
        ({"top_p": True}, "top_p true; expected a number"),
        ({"sequence": 3}, "sequence 3; expected a text"),
    ],
)
def test_settings_of_another_kind(setting, told):
    with pytest.raises(CheckpointError, match=re.escape(told)):
        sampling.to_metadata({"generation_config.json": json.dumps(setting).encode()}, "folder")


def test_without_a_card(tmp_path):
    folder = build("olmo2", tmp_path / "model")
    qformats.export(folder, tmp_path / "m.gguf", format="gguf:q8_0")
    found = qformats.open(tmp_path / "m.gguf").metadata
    assert found["general.name"] == "Model"
    assert not any("license" in key or "base_model" in key for key in found)


STRANGE = {
    "license": {"name": "mine"},
    "tags": [1, None, "kept", ["nested"]],
    "language": 3,
    "base_model": [{"name": "x"}, "org/name"],
    "name": ["not", "a", "name"],
    "version": 2.0,
    "author": "",
}


def test_what_is_neither_text_nor_a_list_of_texts_is_left_out():
    found = {key: value.data for key, value in authorship(STRANGE, {}, "folder", 1000).items()}
    assert found == {
        "general.name": "Folder",
        "general.base_model.count": 1,
        "general.base_model.0.name": "Name",
        "general.base_model.0.organization": "Org",
        "general.base_model.0.repo_url": "https://huggingface.co/org/name",
        "general.tags": ["kept"],
    }


@pytest.mark.parametrize("path", [None, 3, "", ["a"], "/home/me/models/x", "org/My-Model-7B"])
def test_names_in_config_json(path):
    found = authorship({}, json.loads(json.dumps({"_name_or_path": path})), "folder", 7_000_000_000)
    assert found["general.name"].data == ("My Model 7B" if path == "org/My-Model-7B" else "Folder")
    assert ("general.organization" in found) is (path == "org/My-Model-7B")
