"""Unigram tokenizers of XLM-RoBERTa: the ways a folder says them, what is refused, and the way back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from models import tokenizers
from models.text import PROMPTS
from models.vocabularies import llama_cpp
from tokenizers import Tokenizer

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats_gguf.metadata import ValueType, array, boolean, string
from qformats_gguf.tokenizer import from_gguf, to_gguf

MORE = (
    *PROMPTS,
    "  leading, trailing and   many spaces  ",
    "full\u3000width \uff21\uff22\uff23 \ufb01ne, no\u00a0break, tab\tand\x0bvertical",
    "e\u0301 composed, \u00bd and \u2460 and \u338f",
    "a <mask> b<mask>c </s>d",
    "\u2603\u2603 \u2603 unknown \U0001f984\U0001f984",
)
CONFIG = {"model_type": "xlm-roberta"}
SPACE = "\u2581"
_ALWAYS = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
_SEVERAL = {"type": "Replace", "pattern": {"Regex": " {2,}"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("unigram")
    tokenizers.build("unigram", path)
    return {each.name: each.read_bytes() for each in path.iterdir()}


def library(files: Mapping[str, bytes]) -> Tokenizer:
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def changed(folder: Mapping[str, bytes], **parts: Any) -> dict[str, bytes]:
    content = json.loads(folder["tokenizer.json"])
    for part, value in parts.items():
        content[part] = {**content[part], **value} if part == "model" else value
    return {**folder, "tokenizer.json": json.dumps(content).encode()}


def table(folder: Mapping[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder["tokenizer.json"])["normalizer"]
    return found


def test_llama_cpp_and_the_way_back_split_as_transformers(folder: dict[str, bytes], tmp_path: Path) -> None:
    metadata = to_gguf(folder, CONFIG)
    back = from_gguf(metadata)
    assert to_gguf(back, {}) == metadata
    one, other = library(folder), library(back)
    with llama_cpp(metadata, tmp_path) as gguf:
        for text in MORE:
            assert other.encode(text).ids == one.encode(text).ids == gguf.tokenize(text), text
    assert other.encode("a", "b").ids == one.encode("a", "b").ids
    assert json.loads(back["tokenizer_config.json"])["model_input_names"] == ["input_ids", "attention_mask"]


def test_the_model_of_sentencepiece_says_the_same(folder: dict[str, bytes], tmp_path: Path) -> None:
    """Without tokenizer.json: the ids that Transformers' own class gives to its pieces."""
    from transformers import AutoTokenizer

    first = {name: data for name, data in folder.items() if name != "tokenizer.json"}
    settings = json.loads(first["tokenizer_config.json"])
    del settings["added_tokens_decoder"]
    first["tokenizer_config.json"] = json.dumps(settings).encode()
    flags = "qformats.tokenizer."
    with_json = {key: value for key, value in to_gguf(folder, CONFIG).items() if not key.startswith(flags)}
    assert to_gguf(first, CONFIG) == with_json
    for name, data in first.items():
        (tmp_path / name).write_bytes(data)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    with llama_cpp(to_gguf(first, CONFIG), tmp_path) as gguf:
        for text in MORE:
            assert theirs(text)["input_ids"] == gguf.tokenize(text), text


def test_another_models_sentencepiece_is_refused(folder: dict[str, bytes]) -> None:
    settings = {"tokenizer_class": "CamembertTokenizer"}
    files = {"sentencepiece.bpe.model": folder["sentencepiece.bpe.model"]}
    files["tokenizer_config.json"] = json.dumps(settings).encode()
    with pytest.raises(UnsupportedModelError, match="CamembertTokenizer"):
        to_gguf(files, {"model_type": "camembert"})


@pytest.mark.parametrize("merged", [SPACE, " "])
def test_other_spellings_of_the_same_steps(merged: str, folder: dict[str, bytes], tmp_path: Path) -> None:
    """As converters of different releases wrote them; one keeps the space at the end."""
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    steps = [table(folder), *([strip] if merged == SPACE else []), {**_SEVERAL, "content": merged}]
    files = changed(folder, normalizer={"type": "Sequence", "normalizers": steps}, pre_tokenizer=_ALWAYS)
    if merged == SPACE:
        metadata = to_gguf(files, CONFIG)
    else:
        with pytest.warns(
            UserWarning, match="llama.cpp drops spaces before a special token or the end of a text, for which"
        ):
            metadata = to_gguf(files, CONFIG)
    assert metadata == to_gguf(folder, CONFIG)
    with llama_cpp(metadata, tmp_path) as gguf:
        for text in MORE:
            if merged == " " and (text.rstrip() != text or " <" in text):
                continue
            assert gguf.tokenize(text) == library(files).encode(text).ids, text


def test_kept_spaces_are_told(folder: dict[str, bytes]) -> None:
    with pytest.warns(UserWarning, match="and those that follow another one"):
        to_gguf(changed(folder, pre_tokenizer=_ALWAYS), CONFIG)


def test_a_space_before_the_text_only_comes_back(folder: dict[str, bytes]) -> None:
    steps = [{"type": "WhitespaceSplit"}, {**_ALWAYS, "prepend_scheme": "first"}]
    files = changed(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    back = library(from_gguf(to_gguf(files, CONFIG)))
    for text in MORE:
        assert back.encode(text).ids == library(files).encode(text).ids


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": {"byte_fallback": True}}, "byte_fallback"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"normalizer": None}, r"U\+000A"),
        ({"pre_tokenizer": {**_ALWAYS, "prepend_scheme": "never"}}, "pre_tokenizer"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": None}, "pre_tokenizer"),
    ],
)
def test_other_ways_to_split_text_are_refused(
    change: dict[str, Any], told: str, folder: dict[str, bytes]
) -> None:
    with pytest.raises(UnsupportedModelError, match=told):
        to_gguf(changed(folder, **change), CONFIG)


@pytest.mark.parametrize(
    "model",
    [
        {"vocab": {"<unk>": 0}},
        {"vocab": [["<unk>", 0.0], ["a"]]},
        {"vocab": [["<unk>", 0.0], ["a", "b"]]},
        {"vocab": [["<unk>", 0.0], ["a", -1.0], ["a", -2.0]], "unk_id": 0},
        {"unk_id": None},
        {"unk_id": 100000},
    ],
)
def test_malformed_vocabularies_are_refused(model: dict[str, Any], folder: dict[str, bytes]) -> None:
    with pytest.raises(CheckpointError):
        to_gguf(changed(folder, model=model), CONFIG)


@pytest.mark.parametrize("charsmap", ["no base64!", "AAAA", 5])
def test_a_damaged_table_is_refused(charsmap: object, folder: dict[str, bytes]) -> None:
    files = changed(folder, normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap})
    with pytest.raises((CheckpointError, UnsupportedModelError)):
        to_gguf(files, CONFIG)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("remove_extra_whitespaces", boolean(False)),
        ("add_space_prefix", boolean(False)),
        ("precompiled_charsmap", string("x")),
        ("precompiled_charsmap", array(ValueType.F32, [1.0])),
        ("precompiled_charsmap", array(ValueType.U8, [1, 2, 3])),
    ],
)
def test_files_that_no_tokenizer_json_can_say_are_refused(
    key: str, value: Any, folder: dict[str, bytes]
) -> None:
    metadata = to_gguf(folder, CONFIG)
    with pytest.raises((CheckpointError, UnsupportedModelError), match=key):
        from_gguf({**metadata, f"tokenizer.ggml.{key}": value})


def test_padding_stays_padding(folder: dict[str, bytes]) -> None:
    """Rows without a token do not change the score of letters that no piece knows."""
    size = len(to_gguf(folder, CONFIG)["tokenizer.ggml.tokens"].data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metadata = to_gguf(folder, {**CONFIG, "vocab_size": size + 7})
    back = from_gguf(metadata)
    assert len(metadata["tokenizer.ggml.tokens"].data) == size + 7
    assert to_gguf(back, {**CONFIG, "vocab_size": size + 7}) == metadata
    for text in MORE:
        assert library(back).encode(text).ids == library(folder).encode(text).ids
