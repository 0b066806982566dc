"""Every token that ends a text: where llama.cpp stops, what is said of the rest, and what comes back."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from models import tiny
from models.vocabularies import as_files, byte_level, llama_cpp

import qformats
from qformats_gguf.metadata import Metadata, ValueType, array
from qformats_gguf.tokenizer import from_gguf, to_gguf
from qformats_gguf.tokenizer.ends import _BY_NAME

FIRST = 261


def files_of(*added: str, **more: Any) -> dict[str, bytes]:
    """A byte-level tokenizer with ``<|endoftext|>`` (260) as EOS, followed by these special tokens."""
    tokenizer = byte_level()
    like = tokenizer["added_tokens"][0]
    assert like["id"] == FIRST - 1
    tokenizer["added_tokens"] += [
        like | {"id": index, "content": text} for index, text in enumerate(added, FIRST)
    ]
    config = {"eos_token": "<|endoftext|>"}
    return as_files(tokenizer, tokenizer_config=config, **more)


def stops(metadata: Metadata, path: Path) -> list[int]:
    """Ids at which llama.cpp stops."""
    with llama_cpp(metadata, path) as model:
        return [i for i in range(model.n_vocab) if model._lib.llama_vocab_is_eog(model._vocab, i)]


def back(metadata: Metadata) -> Any:
    return json.loads(from_gguf(metadata)["generation_config.json"])["eos_token_id"]


@pytest.mark.parametrize(
    ("added", "ends", "places"),
    [
        (("[/TURN]",), [260, 261], {"eot": 261}),
        (("[/TURN]", "[/CALL]"), [262, 261, 260], {"eot": 262, "eom": 261}),
        (("<|im_end|>",), [261, 260], {}),
        (("<|im_end|>", "[/TURN]"), [260, 261, 262], {"eom": 262}),
        (("<|eot_id|>", "<|eom_id|>", "[/TURN]"), [260, 261, 262, 263], {"eom": 263}),
        (("[/TURN]",), [261], {"eot": 261}),
        (("<|user|>", "<|observation|>"), [260, 261, 262], {"eot": 261, "eom": 262}),
        (("<|return|>", "<|call|>", "<|end|>"), [261, 262], {}),
        ((), [260], {}),
    ],
)
@pytest.mark.parametrize("where", ["generation", "config", "text config"])
def test_llama_cpp_stops_at_each(added, ends, places, where, tmp_path):
    value = ends if len(ends) > 1 else ends[0]
    files = files_of(
        *added, **({"generation_config": {"eos_token_id": value}} if where == "generation" else {})
    )
    config = {"generation": {"eos_token_id": 260}, "config": {"eos_token_id": value}}.get(where)
    config = config or {"text_config": {"eos_token_id": value}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata = to_gguf(files, {"vocab_size": FIRST + len(added), **config})
    found = {
        role: metadata[key].data
        for role in ("eot", "eom")
        if (key := f"tokenizer.ggml.{role}_token_id") in metadata
    }
    assert found == places
    assert set(ends) <= set(stops(metadata, tmp_path))
    assert metadata["tokenizer.ggml.eos_token_id"].data == 260
    assert back(metadata) == value
    again = to_gguf(from_gguf(metadata), {"vocab_size": FIRST + len(added)})
    assert {key: value for key, value in again.items() if "token_id" in key} == {
        key: value for key, value in metadata.items() if "token_id" in key
    }


@pytest.mark.parametrize(
    ("added", "ends", "lost"),
    [
        (("[A]", "[B]", "[C]", "[D]"), [260, 261, 262, 263, 264], [263, 264]),
        # llama.cpp takes the end of a message out again where calls end a text.
        (("<|return|>", "<|call|>", "<|end|>"), [261, 262, 263], [263]),
    ],
)
def test_what_llama_cpp_cannot_hold_is_said_and_comes_back(added, ends, lost, tmp_path):
    files = files_of(*added, generation_config={"eos_token_id": ends})
    with pytest.warns(UserWarning, match="will not stop") as caught:
        metadata = to_gguf(files, {"vocab_size": FIRST + len(added)}, source="folder")
    (said,) = [str(each.message) for each in caught]
    assert said.startswith("folder: llama.cpp will not stop at ")
    assert [i for i in ends if f"({i})" in said] == lost
    assert set(ends) - set(stops(metadata, tmp_path)) == set(lost)
    assert metadata["tokenizer.ggml.eos_token_ids"] == array(ValueType.I32, ends)
    assert back(metadata) == ends


def test_names_that_llama_cpp_knows(tmp_path):
    for text in _BY_NAME:
        if text != "<|endoftext|>":
            assert FIRST in stops(to_gguf(files_of(text), {}), tmp_path), text


def test_a_file_of_another_program_may_list_its_ends():
    metadata = to_gguf(files_of("[A]", "[B]"), {"eos_token_id": 260})
    listed = metadata | {"tokenizer.ggml.eos_token_ids": array(ValueType.U32, [260, 262, 9999])}
    assert back(listed) == [260, 262]
    for odd in (array(ValueType.STRING, ["260"]), array(ValueType.I32, []), array(ValueType.I32, [-1])):
        assert back(metadata | {"tokenizer.ggml.eos_token_ids": odd}) == 260


def test_the_whole_way_through_files(tmp_path):
    """Folder, GGUF, folder: the list is that of the source, and generation stops at each of its tokens."""
    folder = tmp_path / "model"
    shutil.copytree(qformats.open("demo").path, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 300, 301, 302]}))
    with pytest.warns(UserWarning, match=r"will not stop at .*\(302\)"):
        qformats.export(folder, tmp_path / "model.gguf", format="gguf:q8_0")
    qformats.export(tmp_path / "model.gguf", tmp_path / "back", format="dense:f32")
    ends = json.loads((tmp_path / "back" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [0, 300, 301, 302]
    loaded = qformats.load_model(tmp_path / "model.gguf", device="cpu")
    assert loaded.generation_config.eos_token_id == ends


OWN_END = 2
"""``eos_token`` of the folder's tokenizer_config.json, whatever the other files say."""


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        # The tokenizer's own end is not among those at which Transformers stops.
        ({"eos_token_id": 5}, {"eos_token_id": 5}),
        ({"eos_token_id": [7, 5]}, {"eos_token_id": 0}),
        ({"eos_token_id": [0, 0, 5]}, {}),
        # Transformers looks into config.json only where the other file is missing.
        ({"eos_token_id": None}, {"eos_token_id": 7}),
        ({}, {"eos_token_id": [3, 4]}),
        ({"eos_token_id": 0}, {"eos_token_id": [0, 9]}),
        (None, {"eos_token_id": [3, 4]}),
        (None, {"eos_token_id": 7}),
        # The default of the class, 2 too, does not count.
        (None, {}),
        (None, {"eos_token_id": None}),
        (None, {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}),
    ],
)
def test_a_round_trip_stops_where_transformers_stops(generation, config, tmp_path):
    folder, file, again = (tmp_path / name for name in ("model", "model.gguf", "back"))
    tiny.build("llama", folder)
    settings = json.loads((folder / "config.json").read_text())
    settings = {key: value for key, value in settings.items() if not key.endswith("token_id")} | config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert own_end(folder) == OWN_END
    expected = stops_of(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qformats.export(folder, file, format="gguf:f32")
        qformats.export(file, again, format="dense:f32")
        loaded = [qformats.load_model(each, device="cpu", dtype="float32") for each in (folder, file)]
    assert stops_of(again) == expected
    for model in loaded:
        assert as_list(model.generation_config.eos_token_id) == expected
    metadata = qformats.open(file).metadata
    if not expected:
        assert metadata["qformats.generation.no_end_token"] is True
        assert "tokenizer.ggml.eos_token_ids" not in metadata


def own_end(folder: Path) -> int:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder).eos_token_id


def stops_of(folder: Path) -> list[int]:
    from transformers import AutoModelForCausalLM

    return as_list(AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id)


def as_list(ends: Any) -> list[int]:
    return [] if ends is None else list(dict.fromkeys(ends)) if isinstance(ends, list) else [ends]


@pytest.mark.parametrize(
    ("listed", "named", "kept"),
    [([260, 99999], "99999", 260), ([-1, 260, 4096.0], "-1, 4096.0", 260), (-1, "-1", None)],
)
def test_ends_that_are_no_tokens_are_named(listed, named, kept):
    files = files_of(generation_config={"eos_token_id": listed})
    with pytest.warns(UserWarning, match="left out") as caught:
        metadata = to_gguf(files, {"vocab_size": FIRST}, source="folder")
    (said,) = [str(each.message) for each in caught]
    assert said == f"folder: eos_token_id lists {named}, left out: this vocabulary has the ids 0 to 260"
    assert back(metadata) == kept
