"""SentencePiece models: tokenizer.model read and written without the library, which judges the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from models.tokenizers import build
from models.vocabularies import folder, llama_cpp, texts

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import Piece, SentencePieceModel, parse, serialize
from qformats_gguf.metadata import ValueType, array, boolean, string, u32
from qformats_gguf.tokenizer import from_gguf, to_gguf


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("spm")
    build("llama-spm", path)
    return folder(path)


def train(path: Path, **options: Any) -> bytes:
    lines = ["the keeper counts the ships", "numbers in a book", "one two three four five six seven"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(path / "m"),
        minloglevel=2,
        num_threads=1,
        **{"vocab_size": 40, **options},
    )
    return (path / "m.model").read_bytes()


def test_pieces_are_those_of_the_library(files):
    model = parse(files["tokenizer.model"], "tokenizer.model")
    library = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    size = library.get_piece_size()
    assert [piece.text for piece in model.pieces] == [library.id_to_piece(i) for i in range(size)]
    assert [piece.score for piece in model.pieces] == [library.get_score(i) for i in range(size)]
    kinds = (library.is_unknown, library.is_control, library.is_byte, library.is_unused)
    expected = [
        next((k for k, test in zip((2, 3, 6, 5), kinds, strict=True) if test(i)), 1) for i in range(size)
    ]
    assert [piece.type for piece in model.pieces] == expected
    assert (model.byte_fallback, model.add_dummy_prefix) == (True, True)
    assert model.ids == {"unk": 0, "bos": 1, "eos": 2}


def test_the_library_reads_a_written_model(files):
    original = parse(files["tokenizer.model"], "tokenizer.model")
    assert parse(serialize(original), "again") == original
    library = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    again = sentencepiece.SentencePieceProcessor(model_proto=serialize(original))
    for text in texts():
        assert again.encode(text) == library.encode(text)
    assert (again.unk_id(), again.bos_id(), again.eos_id(), again.pad_id()) == (0, 1, 2, -1)


def test_the_rebuilt_model_file_reads_the_ids_of_llama_cpp(files, tmp_path):
    metadata = to_gguf(files, {"vocab_size": 660})
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=from_gguf(metadata)["tokenizer.model"])
    # Alone, the library knows added tokens only in part: it reads control tokens as text.
    plain = [text for text in texts() if "<" not in text]
    with llama_cpp(metadata, tmp_path) as model:
        assert [rebuilt.encode(text) for text in plain] == [
            model.tokenize(text, add_special=False) for text in plain
        ]


def test_without_the_model_file_scores_come_from_the_merges(files, tmp_path):
    fast = {
        name: data for name, data in files.items() if name not in ("tokenizer.model", "added_tokens.json")
    }
    with (
        llama_cpp(to_gguf(fast, {"vocab_size": 660}), tmp_path) as model,
        llama_cpp(to_gguf(files, {"vocab_size": 660}), tmp_path) as full,
    ):
        assert [model.tokenize(text) for text in texts()] == [full.tokenize(text) for text in texts()]
        assert [model.token(i)[2] for i in range(660)] == [full.token(i)[2] for i in range(660)]


def test_the_space_before_the_text(files, tmp_path):
    from tokenizers import Tokenizer

    settings_file = json.loads(files["tokenizer_config.json"])
    assert to_gguf(files, {})["tokenizer.ggml.add_space_prefix"].data
    without = files | {
        "tokenizer_config.json": json.dumps(settings_file | {"add_prefix_space": False}).encode()
    }
    metadata = to_gguf(without, {})
    assert not metadata["tokenizer.ggml.add_space_prefix"].data
    back = from_gguf(metadata)
    assert not parse(back["tokenizer.model"], "").add_dummy_prefix
    assert to_gguf(back, {})["tokenizer.ggml.add_space_prefix"] == boolean(False)
    with llama_cpp(metadata, tmp_path) as model:
        rebuilt = Tokenizer.from_buffer(back["tokenizer.json"])
        assert [rebuilt.encode(text).ids for text in texts()] == [model.tokenize(text) for text in texts()]
    # tokenizer.json alone tells it too.
    alone = {name: back[name] for name in ("tokenizer.json", "special_tokens_map.json")}
    assert not to_gguf(alone, {})["tokenizer.ggml.add_space_prefix"].data


def test_other_kinds_of_model_are_refused(tmp_path):
    for kind in ("unigram", "char", "word"):
        options = {"vocab_size": 18} if kind in ("char", "word") else {}
        data = train(tmp_path, model_type=kind, hard_vocab_limit=False, **options)
        with pytest.raises(UnsupportedModelError, match=kind):
            to_gguf({"tokenizer.model": data}, {}, source="folder")


def test_tiktoken_files_are_explained():
    with pytest.raises(CheckpointError, match=r"folder/tokenizer\.model.*tiktoken"):
        to_gguf({"tokenizer.model": b"IQ== 0\nIg== 1\nIw== 2\n"}, {}, source="folder")


def test_a_vocabulary_without_an_unknown_token_has_no_model_file(files):
    metadata = to_gguf(files, {})
    types = [3 if kind == 2 else kind for kind in metadata["tokenizer.ggml.token_type"].data]
    bare = metadata | {"tokenizer.ggml.token_type": array(ValueType.I32, types)}
    del bare["tokenizer.ggml.unknown_token_id"]
    back = from_gguf(bare)
    assert "tokenizer.model" not in back
    assert "tokenizer.json" in back


def test_padding_of_older_converters(files):
    metadata = to_gguf(files, {"vocab_size": 660})
    types = [2 if kind == 5 else kind for kind in metadata["tokenizer.ggml.token_type"].data]
    old = metadata | {"tokenizer.ggml.token_type": array(ValueType.I32, types)}
    assert to_gguf(from_gguf(old), {"vocab_size": 660}) == metadata


def test_sentinel_ids(files):
    metadata = to_gguf(files, {}) | {
        "tokenizer.ggml.padding_token_id": u32(2**32 - 1),
        "tokenizer.ggml.pre": string("x"),
    }
    model = parse(from_gguf(metadata)["tokenizer.model"], "")
    assert "pad" not in model.ids


pieces = st.builds(
    Piece,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.floats(width=32, allow_nan=False),
    st.integers(1, 6),
)


@given(st.lists(pieces, min_size=1, max_size=20), st.booleans(), st.booleans(), st.integers(1, 4))
def test_written_models_are_read_back(items, fallback, prefix, kind):
    model = SentencePieceModel(items, kind, fallback, prefix, ids={"unk": 0})
    assert parse(serialize(model), "") == model


@settings(max_examples=300)
@given(st.data())
def test_damaged_models_are_refused_or_read(files, data):
    good = files["tokenizer.model"]
    content = bytearray(good[:400] + good[-120:])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        to_gguf({"tokenizer.model": bytes(content[:cut])}, {}, source="folder")
    except (CheckpointError, UnsupportedModelError) as error:
        assert "folder/tokenizer.model" in str(error)  # noqa: PT017 - both outcomes are allowed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\xff" * 11,
        b"\x0b\x00",
        b"\x0a\x03\x0a\x01\xff",
        b"\x0a\x02\x18\x09",
        b"\x00\x00",
    ],
    ids=[
        "empty",
        "no length",
        "huge length",
        "endless number",
        "group",
        "no UTF-8",
        "unknown type",
        "field 0",
    ],
)
def test_malformed_models(data):
    with pytest.raises(CheckpointError, match=r"folder/tokenizer\.model"):
        to_gguf({"tokenizer.model": data}, {}, source="folder")
