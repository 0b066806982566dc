"""Malformed tokenizer files and metadata end in an error that names the file."""

from __future__ import annotations

import copy
import json
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models.vocabularies import as_files, byte_level

from qformats.errors import CheckpointError, QFormatsError, UnsupportedModelError
from qformats_gguf.metadata import Value, ValueType, array, f32, string, u32
from qformats_gguf.tokenizer import from_gguf, special_ids, to_gguf


def changed(*path: Any, value: Any) -> dict[str, bytes]:
    tokenizer = byte_level()
    node = tokenizer
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return as_files(tokenizer)


ADDED = {"content": "<x>", "special": True}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer.json": b"{"},
        {"tokenizer.json": b"\xff\xfe"},
        {"tokenizer.json": b"[" * 200_000},
        {"tokenizer.json": b"[]"},
        {"tokenizer.json": b"{}"},
        changed("model", value=None),
        changed("model", "vocab", value=[]),
        changed("model", "vocab", value={"a": "b"}),
        changed("model", "vocab", value={"a": True}),
        changed("model", "vocab", value={"a": -1}),
        changed("model", "vocab", "new", value=0),
        changed("model", "vocab", "new", value=10**9),
        changed("model", "vocab", "new", value=10**7),
        changed("model", "vocab", "\ud800", value=300),
        changed("model", "merges", value=None),
        changed("model", "merges", 0, value="Ġ"),
        changed("model", "merges", 0, value=["Ġ", 5]),
        changed("model", "merges", 0, value=["Ġ", "absent"]),
        changed("model", "merges", 0, value=["z", "z"]),
        changed("added_tokens", value={"a": 1}),
        changed("added_tokens", value=[5]),
        changed("added_tokens", value=[ADDED]),
        changed("added_tokens", value=[ADDED | {"id": 10**9}]),
        changed("added_tokens", value=[ADDED | {"id": 7}]),
        changed("added_tokens", value=[ADDED | {"id": 300}, ADDED | {"id": 301}]),
        changed("added_tokens", value=[ADDED | {"id": 300}, {"content": "<y>", "id": 300}]),
        changed("added_tokens", value=[{"content": 5, "id": 300}]),
    ],
)
def test_malformed_tokenizer_json(files):
    with pytest.raises(CheckpointError, match=r"folder/tokenizer\.json"):
        to_gguf(files, {}, source="folder")


@pytest.mark.parametrize(
    "settings_file",
    [
        {"added_tokens_decoder": [5]},
        {"added_tokens_decoder": {"x": {"content": "<x>"}}},
        {"added_tokens_decoder": {"9" * 30: {"content": "<x>"}}},
        {"added_tokens_decoder": {"999999999": {"content": "<x>"}}},
        {"added_tokens_decoder": {"300": {}}},
        {"chat_template": 5},
        {"chat_template": [5]},
        {"chat_template": [{"name": "a"}]},
    ],
)
def test_malformed_tokenizer_config(settings_file):
    with pytest.raises(CheckpointError, match=r"folder/tokenizer_config\.json"):
        to_gguf(as_files(byte_level(), tokenizer_config=settings_file), {}, source="folder")


def test_other_models_are_refused_by_name():
    for model in ({"type": "WordLevel", "vocab": {}}, {"type": "BPE", "vocab": {}, "byte_fallback": True}):
        tokenizer = byte_level() | {"model": model}
        with pytest.raises(UnsupportedModelError, match="byte-level BPE"):
            to_gguf(as_files(tokenizer), {}, source="folder")
    with pytest.raises(UnsupportedModelError, match="end_of_word_suffix"):
        to_gguf(as_files(byte_level(end_of_word_suffix="</w>")), {}, source="folder")
    with pytest.raises(CheckpointError, match=r"folder: no tokenizer"):
        to_gguf({}, {}, source="folder")


junk = st.sampled_from(
    [None, True, -1, 0, 3, 10**12, 1.5, "", "the", "ByteLevel", [], [[]], {}, {"type": "Sequence"}]
)


def paths(node: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    # Of a long list, the first entries stand for all.
    return [p for key, value in list(items)[:6] for p in [(*prefix, key), *paths(value, (*prefix, key))]]


FULL = {
    "tokenizer": byte_level()
    | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": r"\p{N}"}, "behavior": "Isolated", "invert": False},
                {"type": "Punctuation", "behavior": "Isolated"},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "post_processor": {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel"},
                {"type": "RobertaProcessing", "cls": ["<|endoftext|>", 260], "sep": ["<|endoftext|>", 260]},
                {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "<|endoftext|>"}}, {"Sequence": {"id": "A"}}],
                },
            ],
        },
    },
    "tokenizer_config": {
        "bos_token": {"content": "<|endoftext|>"},
        "eos_token": "<|endoftext|>",
        "added_tokens_decoder": {"260": {"content": "<|endoftext|>", "special": True}},
        "extra_special_tokens": ["<|endoftext|>"],
        "chat_template": [{"name": "default", "template": "x"}],
        "add_bos_token": True,
        "add_prefix_space": False,
    },
    "generation_config": {"eos_token_id": [1, 2], "pad_token_id": 3},
    "special_tokens_map": {"unk_token": "<|endoftext|>"},
    "added_tokens": {"<y>": 261},
}
PATHS = paths(FULL)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PATHS), junk, st.booleans())
def test_any_value_anywhere_gives_a_vocabulary_or_our_error(path, value, with_name):
    files = copy.deepcopy(FULL)
    node: Any = files
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    contents = {f"{name}.json": json.dumps(content).encode() for name, content in files.items()}
    try:
        with warnings.catch_warnings():
            # Of impossible end tokens.
            warnings.filterwarnings("ignore", "folder: eos_token_id lists", UserWarning)
            metadata = to_gguf(
                contents, {"vocab_size": 300}, pre="gpt-2" if with_name else None, source="folder"
            )
    except QFormatsError as error:
        assert "folder" in str(error)  # noqa: PT017 - both outcomes are allowed
    else:
        assert len(set(metadata["tokenizer.ggml.tokens"].data)) == len(metadata["tokenizer.ggml.tokens"].data)
        from_gguf(metadata, source="file.gguf")


GOOD = to_gguf(as_files(byte_level()), {"vocab_size": 270})
TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{key}" for key in ("tokens", "token_type", "merges"))


@pytest.mark.parametrize(
    "update",
    [
        {"tokenizer.ggml.model": u32(1)},
        {TOKENS: string("a")},
        {TOKENS: array(ValueType.I32, [1])},
        {TOKENS: array(ValueType.STRING, [])},
        {TOKENS: array(ValueType.STRING, ["a", "a"])},
        {TYPES: array(ValueType.I32, [1])},
        {TYPES: array(ValueType.STRING, ["1"] * 270)},
        {MERGES: array(ValueType.STRING, ["ab"])},
        {MERGES: array(ValueType.STRING, ["a "])},
        {MERGES: array(ValueType.STRING, ["a absent"])},
        {"tokenizer.ggml.pre": u32(1)},
        {"tokenizer.ggml.add_bos_token": u32(1)},
        {"tokenizer.chat_template": u32(1)},
        {"tokenizer.chat_template": string("\udcff")},
        {TOKENS: array(ValueType.STRING, [*GOOD[TOKENS].data[:-1], "\udcff"])},
    ],
)
def test_malformed_metadata(update):
    with pytest.raises(CheckpointError, match=r"file\.gguf"):
        from_gguf({**GOOD, **update}, source="file.gguf")


def test_missing_metadata():
    for key in ("tokenizer.ggml.model", TOKENS, MERGES):
        with pytest.raises(CheckpointError, match=key):
            from_gguf({name: value for name, value in GOOD.items() if name != key}, source="file.gguf")
    with pytest.raises(UnsupportedModelError, match="'rwkv'"):
        from_gguf({**GOOD, "tokenizer.ggml.model": string("rwkv")})
    odd = {
        **GOOD,
        "tokenizer.ggml.bos_token_id": f32(float("nan")),
        "tokenizer.ggml.eos_token_id": Value(ValueType.I64, -1),
    }
    assert special_ids(odd) == {}
    assert from_gguf(odd)["tokenizer.json"]


def test_empty_tokens_get_the_name_that_llama_cpp_gives_them():
    tokens = [*GOOD[TOKENS].data[:-2], "", ""]
    files = from_gguf({**GOOD, TOKENS: array(ValueType.STRING, tokens)})
    assert {"[EMPTY_268]", "[EMPTY_269]"} <= set(json.loads(files["tokenizer.json"])["model"]["vocab"])
