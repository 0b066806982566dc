"""Tokenizer files that are damaged where libraries or memory would suffer: our own error, with the file's name."""

from __future__ import annotations

import json

import pytest
from models.vocabularies import as_files, byte_level

from qformats.errors import CheckpointError
from qformats.vocabularies import library_failed, using_library
from qformats_gguf.tokenizer import to_gguf


def test_few_tokens_of_millions_of_rows_are_refused():
    """They would fill memory with padding: 2 GB for a file of 10 kB."""
    tokens = len(byte_level()["model"]["vocab"])
    with pytest.raises(
        CheckpointError, match=r"folder/tokenizer\.json: \d+ tokens, of a model of 16777216 rows"
    ):
        to_gguf(as_files(byte_level()), {"vocab_size": 1 << 24}, source="folder")
    made = to_gguf(as_files(byte_level()), {"vocab_size": tokens + 65536}, source="folder")
    assert len(made["tokenizer.ggml.tokens"].data) == tokens + 65536


@pytest.mark.parametrize("section", ["normalizer", "pre_tokenizer", "post_processor", "decoder"])
@pytest.mark.parametrize("value", ["x", [], 0, False])
def test_sections_are_objects_or_nothing(section, value):
    files = as_files(byte_level() | {section: value})
    with pytest.raises(
        CheckpointError, match=rf"tokenizer\.json: {section} is a JSON \w+; expected an object or null"
    ):
        to_gguf(files, {}, source="folder")


def test_special_tokens_of_vocab_txt_may_be_objects():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    names = {"unk_token": {"content": "[UNK]", "lstrip": False}, "cls_token": "[CLS]"}
    files = {"vocab.txt": "\n".join(words).encode(), "tokenizer_config.json": json.dumps(names).encode()}
    made = to_gguf(files, {"vocab_size": 6}, source="folder")
    assert made["tokenizer.ggml.model"].data == "bert"
    assert made["tokenizer.ggml.unknown_token_id"].data == 1


def test_a_panic_of_the_library_is_an_error():
    """Of Rust's own kind, which `except Exception` lets pass."""
    from tokenizers import Tokenizer

    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    text = json.dumps(byte_level() | {"post_processor": template})
    with pytest.raises(BaseException, match="no entry found") as caught:
        Tokenizer.from_str(text).encode("a")
    assert not isinstance(caught.value, Exception)
    assert library_failed(caught.value)
    with (
        pytest.raises(
            CheckpointError, match=r"tokenizer\.json: the tokenizers library cannot use it \(no entry"
        ),
        using_library("tokenizer.json", "the tokenizers library cannot use it"),
    ):
        Tokenizer.from_str(text).encode("a")


def test_interruptions_pass():
    with pytest.raises(KeyboardInterrupt), using_library("tokenizer.json", "cannot be used"):
        raise KeyboardInterrupt
