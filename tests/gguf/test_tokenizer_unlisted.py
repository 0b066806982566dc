"""Tokens that a folder names without an id, and flags of added tokens that GGUF has no place for.

Judges: Transformers for the ids, llama.cpp for what is found in text.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from models.vocabularies import as_files, byte_level, entry, llama_cpp, spm_files, train, types_of, write

from qformats_gguf.tokenizer import from_gguf, to_gguf

CONTROL = 3
FIRST = {"sentencepiece": 640, "json": 640, "byte-level": 261}


@pytest.fixture(scope="module")
def model() -> bytes:
    return train()


@pytest.fixture(params=FIRST)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def folder_of(kind: str, model: bytes, settings: Any, path: Path, **more: Any) -> dict[str, bytes]:
    """A tokenizer with these settings: tokenizer.model, the tokenizer.json made from one, or byte-level BPE."""
    if kind == "byte-level":
        return as_files(byte_level(), tokenizer_config=settings, **more)
    files = spm_files(model, tokenizer_config=settings, **more)
    if kind == "json":
        from transformers import AutoTokenizer

        plain = AutoTokenizer.from_pretrained(write(spm_files(model), path / "plain"))
        files["tokenizer.json"] = plain.backend_tokenizer.to_str().encode()
        del files["tokenizer.model"]
    return files


SETTINGS = [
    ({"additional_special_tokens": ["<|new|>", "[N2]"]}, ["<|new|>", "[N2]"]),
    ({"pad_token": "[PAD]", "eos_token": "<|end|>"}, ["<|end|>", "[PAD]"]),
    ({"mask_token": "[M]", "pad_token": "[PAD]", "cls_token": "[PAD]"}, ["[PAD]", "[M]"]),
    # A model's own roles come behind the usual ones, and tokens without a role behind all.
    (
        {"extra_special_tokens": ["[X]"], "image_token": "[IMG]", "pad_token": "[PAD]"},
        ["[PAD]", "[IMG]", "[X]"],
    ),
    (
        {"extra_special_tokens": {"a_token": "[A]", "b_token": "[B]"}, "sep_token": "[S]"},
        ["[S]", "[A]", "[B]"],
    ),
    ({"pad_token": entry("[PAD]", True) | {"__type": "AddedToken"}}, ["[PAD]"]),
]


@pytest.mark.parametrize(("settings", "expected"), SETTINGS)
def test_they_get_the_ids_that_transformers_gives_them(kind, model, settings, expected, tmp_path):
    from transformers import AutoTokenizer

    first = FIRST[kind]
    files = folder_of(kind, model, settings, tmp_path)
    ids = AutoTokenizer.from_pretrained(write(files, tmp_path / "from")).convert_tokens_to_ids(expected)
    assert ids == list(range(first, first + len(expected)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata = to_gguf(files, {"vocab_size": first + len(expected)}, pre=pre(kind))
    types = types_of(metadata)
    assert [*types][first:] == expected
    assert {types[text] for text in expected} == {CONTROL}
    for role, key in (("eos", "eos_token_id"), ("pad", "padding_token_id")):
        if isinstance(settings.get(f"{role}_token"), str):
            assert metadata[f"tokenizer.ggml.{key}"].data == ids[expected.index(settings[f"{role}_token"])]
    again = AutoTokenizer.from_pretrained(write(from_gguf(metadata), tmp_path / "back"))
    with llama_cpp(metadata, tmp_path) as reader:
        for text, index in zip(expected, ids, strict=True):
            assert reader.tokenize(text, add_special=False) == [index]
            assert again(text, add_special_tokens=False)["input_ids"] == [index]


def test_they_come_behind_those_with_ids(kind, model, tmp_path):
    from transformers import AutoTokenizer

    first = FIRST[kind]
    settings = {"added_tokens_decoder": {str(first): entry("<here>", True)}, "pad_token": "[PAD]"}
    files = folder_of(kind, model, settings, tmp_path)
    assert AutoTokenizer.from_pretrained(write(files, tmp_path / "from")).pad_token_id == first + 1
    metadata = to_gguf(files, {"vocab_size": first + 2}, pre=pre(kind))
    assert [*types_of(metadata)][first:] == ["<here>", "[PAD]"]


def test_those_without_a_row_are_named(kind, model, tmp_path):
    first = FIRST[kind]
    files = folder_of(kind, model, {"pad_token": "[PAD]", "sep_token": "[SEP]"}, tmp_path)
    said = f"left out 1 added token for which the model of {first + 1} rows has none: '[PAD]' ({first + 1})"
    with pytest.warns(UserWarning, match=re.escape(said)):
        metadata = to_gguf(files, {"vocab_size": first + 1}, pre=pre(kind), source="folder")
    assert [*types_of(metadata)][first:] == ["[SEP]"]
    assert "tokenizer.ggml.padding_token_id" not in metadata


FLAGGED = {"lstrip": "before", "rstrip": "after"}


@pytest.mark.parametrize("flag", FLAGGED)
@pytest.mark.parametrize("where", ["decoder", "role"])
def test_spaces_that_transformers_removes_are_said_and_come_back(kind, model, flag, where, tmp_path):
    from transformers import AutoTokenizer

    first = FIRST[kind]
    token = entry("<new>", True) | {flag: True}
    settings = {
        "decoder": {"added_tokens_decoder": {str(first): token}, "pad_token": "<new>"},
        "role": {"pad_token": token | {"__type": "AddedToken"}},
    }[where]
    files = folder_of(kind, model, settings, tmp_path)
    source = AutoTokenizer.from_pretrained(write(files, tmp_path / "from"))
    with pytest.warns(UserWarning, match="llama.cpp has no") as caught:
        metadata = to_gguf(files, {"vocab_size": first + 1}, pre=pre(kind), source="folder")
    (said,) = [str(each.message) for each in caught]
    assert f"removes the spaces {FLAGGED[flag]} '<new>' ({first})" in said
    back = AutoTokenizer.from_pretrained(write(from_gguf(metadata), tmp_path / "back"))
    for text in ("a <new> b", "a<new>  b", "the  <new>the", "<new> <new>"):
        want = source(text, add_special_tokens=False)["input_ids"]
        assert back(text, add_special_tokens=False)["input_ids"] == want, text
    with llama_cpp(metadata, tmp_path) as reader:
        # What the warning is about.
        assert (
            reader.tokenize("a <new> b", add_special=False)
            != source("a <new> b", add_special_tokens=False)["input_ids"]
        )


def test_whole_words(model):
    decoder = {"640": entry("<new>", False) | {"single_word": True}}
    files = spm_files(model, tokenizer_config={"added_tokens_decoder": decoder})
    with pytest.warns(UserWarning, match=r"also finds '<new>' \(640\) inside words"):
        metadata = to_gguf(files, {"vocab_size": 641})
    body = json.loads(from_gguf(metadata)["tokenizer.json"])
    assert next(each for each in body["added_tokens"] if each["id"] == 640)["single_word"] is True


def test_a_token_without_flags_is_not_mentioned(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata = to_gguf(spm_files(model, added_tokens={"<new>": 640}), {"vocab_size": 641})
    assert not [key for key in metadata if key.startswith("qformats.tokenizer.") and "strip" in key]


def pre(kind: str) -> str | None:
    return "gpt-2" if kind == "byte-level" else None
