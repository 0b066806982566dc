"""Markers inside a SentencePiece vocabulary stay whole, wherever a folder says that they are markers.

Judges: llama.cpp for GGUF, the sentencepiece library and Transformers for what was read and what is rebuilt.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from models.vocabularies import (
    NAMES,
    as_files,
    byte_level,
    entry,
    folder,
    llama_cpp,
    spm_files,
    texts,
    train,
    types_of,
    write,
)

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats_gguf.metadata import Metadata
from qformats_gguf.tokenizer import from_gguf, to_gguf

MARKERS = ("<|im_start|>", "<start_of_turn>", "[INST]", "[/INST]")
CHAT = [
    *(f"a {marker} b{marker}c{marker}{marker}\n" for marker in MARKERS),
    "<|im_start|>user\nhi [INST]  go[/INST]x",
    "[INST]",
]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def library(model: bytes) -> Any:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@pytest.fixture(scope="module")
def model() -> bytes:
    return train(user_defined_symbols=[*MARKERS, "<unused0>"], control_symbols=["<ctl>"])


@pytest.fixture(scope="module")
def ids(model: bytes) -> dict[str, int]:
    pieces = library(model)
    return {piece: pieces.piece_to_id(piece) for piece in (*MARKERS, "<unused0>", "<ctl>", "<unk>", "<s>")}


def scores_of(metadata: Metadata) -> dict[str, float]:
    tokens, scores = (metadata[f"tokenizer.ggml.{key}"].data for key in ("tokens", "scores"))
    return dict(zip(tokens, scores, strict=True))


WHERE = ["nowhere", "additional", "map", "extra", "decoder", "added", "own role", "saved", "json alone"]


@pytest.fixture(params=WHERE)
def listed(
    request: pytest.FixtureRequest, model: bytes, ids: dict[str, int], tmp_path: Path
) -> tuple[str, dict[str, bytes]]:
    """A folder that names its markers in one of the places for it."""
    from transformers import AutoTokenizer

    where = request.param
    if where == "additional":
        return where, spm_files(model, tokenizer_config={"additional_special_tokens": list(MARKERS)})
    if where == "map":
        return where, spm_files(
            model, special_tokens_map=NAMES | {"additional_special_tokens": [entry(m, True) for m in MARKERS]}
        )
    if where == "extra":
        return where, spm_files(model, tokenizer_config={"extra_special_tokens": list(MARKERS)})
    if where == "own role":
        return where, spm_files(
            model, tokenizer_config={f"m{i}_token": marker for i, marker in enumerate(MARKERS)}
        )
    if where == "decoder":
        decoder = {str(ids[marker]): entry(marker, marker != "[INST]") for marker in MARKERS}
        return where, spm_files(model, tokenizer_config={"added_tokens_decoder": decoder})
    if where == "added":
        return where, spm_files(model, added_tokens={marker: ids[marker] for marker in MARKERS})
    if where in ("saved", "json alone"):
        path = write(spm_files(model), tmp_path / "source")
        AutoTokenizer.from_pretrained(path).save_pretrained(path)
        if where == "json alone":
            (path / "tokenizer.model").unlink()
        assert (path / "tokenizer.json").is_file()
        return where, folder(path)
    return where, spm_files(model)


def test_a_marker_is_one_token_wherever_it_is_listed(listed, ids, tmp_path):
    where, files = listed
    metadata = to_gguf(files, {"vocab_size": 650})
    types = types_of(metadata)
    # Transformers 5 makes user-defined pieces special when it reads a tokenizer.model.
    special = where not in ("nowhere", "decoder", "added")
    assert types["<|im_start|>"] == CONTROL
    assert types["[INST]"] == (CONTROL if special else USER_DEFINED)
    assert types["<start_of_turn>"] == (CONTROL if special or where == "decoder" else USER_DEFINED)
    assert (types["<ctl>"], types["<0x41>"], types["[PAD649]"]) == (CONTROL, BYTE, UNUSED)
    with llama_cpp(metadata, tmp_path) as reader:
        for marker in MARKERS:
            assert reader.tokenize(marker, add_special=False) == [ids[marker]], marker
            assert ids[marker] in reader.tokenize(f"x{marker}y", add_special=False)


def test_a_rebuilt_tokenizer_reads_the_ids_of_the_source(listed, tmp_path):
    from transformers import AutoTokenizer

    where, files = listed
    source = AutoTokenizer.from_pretrained(write(files, tmp_path / "from"))
    metadata = to_gguf(files, {"vocab_size": 650})
    back = from_gguf(metadata)
    rebuilt = AutoTokenizer.from_pretrained(write(back, tmp_path / "back"))
    # Transformers 5 adds no BOS to what it reads from a tokenizer.model alone; llama.cpp and Transformers 4 do.
    special = where in ("saved", "json alone")
    for text in [*CHAT, *texts()]:
        assert rebuilt.encode(text, add_special_tokens=special) == source.encode(
            text, add_special_tokens=special
        ), text
    again = to_gguf(back, {"vocab_size": 650})
    assert types_of(again) == types_of(metadata)
    assert scores_of(again) == scores_of(metadata)
    assert again == metadata


def test_plain_text_has_the_ids_of_the_library(model, tmp_path):
    judge = library(model)
    plain = [text for text in texts() if "<" not in text]
    with llama_cpp(to_gguf(spm_files(model), {}), tmp_path) as reader:
        assert [reader.tokenize(text, add_special=False) for text in plain] == [
            judge.encode(text) for text in plain
        ]


@pytest.mark.parametrize("prefix", [True, False])
def test_runs_of_spaces_have_the_ids_of_the_library(prefix, tmp_path):
    model = train(user_defined_symbols=["▁▁", "▁▁▁", "▁▁▁▁", "[INST]"], add_dummy_prefix=prefix)
    judge = library(model)
    spaced = [text for text in texts() if "▁" not in text]
    spaced += ["x  a", "  a", "a    b", "def f():\n    return  1\n        x", "     "]
    metadata = to_gguf(spm_files(model), {})
    assert types_of(metadata)["[INST]"] == USER_DEFINED
    with llama_cpp(metadata, tmp_path) as reader:
        got = {text: reader.tokenize(text, add_special=False, parse_special=False) for text in spaced}
    assert [text for text in spaced if got[text] != judge.encode(text)] == []


def test_legacy_tokenizers_put_a_space_after_markers(model, tmp_path):
    from transformers import AutoTokenizer

    for legacy in (False, True):
        files = spm_files(model, tokenizer_config={"legacy": legacy})
        source = AutoTokenizer.from_pretrained(write(files, tmp_path / f"from{legacy}"))
        metadata = to_gguf(files, {})
        assert metadata["qformats.tokenizer.prepend_scheme"].data == ("always" if legacy else "first")
        rebuilt = AutoTokenizer.from_pretrained(write(from_gguf(metadata), tmp_path / f"back{legacy}"))
        for text in CHAT:
            assert rebuilt.encode(text, add_special_tokens=False) == source.encode(
                text, add_special_tokens=False
            )
    assert len(source.encode("[INST]c", add_special_tokens=False)) == 3


def test_a_piece_may_be_renamed(model, ids, tmp_path):
    index = ids["<unused0>"]
    decoder = {str(index): entry("<|turn|>", True)}
    metadata = to_gguf(spm_files(model, tokenizer_config={"added_tokens_decoder": decoder}), {})
    assert types_of(metadata)["<|turn|>"] == CONTROL
    assert "<unused0>" not in types_of(metadata)
    with llama_cpp(metadata, tmp_path) as reader:
        assert reader.tokenize("<|turn|>", add_special=False) == [index]


def test_own_control_tokens_keep_their_types(model, ids):
    listed = {"<s>": ids["<s>"], "<unk>": ids["<unk>"]}
    metadata = to_gguf(spm_files(model, added_tokens=listed), {})
    assert [types_of(metadata)[text] for text in ("<unk>", "<s>", "</s>")] == [UNKNOWN, CONTROL, CONTROL]


def test_tokens_with_two_ids_are_refused(model, ids):
    two = "one id per token.*different models"
    moved = {"added_tokens_decoder": {"700": entry("[INST]", True)}}
    with pytest.raises(CheckpointError, match=rf"tokenizer_config\.json: token '\[INST\]' has id 700.*{two}"):
        to_gguf(spm_files(model, tokenizer_config=moved), {}, source="folder")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: token '\[INST\]' has id 700"):
        to_gguf(spm_files(model, added_tokens={"[INST]": 700}), {}, source="folder")
    tokenizer = {"model": {"type": "BPE", "byte_fallback": True, "vocab": {"<s>": 2}, "merges": []}}
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: token '<s>' has id 2, and id 1 in token"):
        to_gguf(spm_files(model, tokenizer=tokenizer), {}, source="folder")
    tokenizer["model"]["vocab"] = {"<s>": 1, "new": 640}
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: lacks the token 'new' of tokenizer\.json"):
        to_gguf(spm_files(model, tokenizer=tokenizer), {}, source="folder")
    tokenizer["added_tokens"] = [{"id": 640, "content": "<a>"}]
    tokenizer["model"]["vocab"] = {}
    other = {"added_tokens_decoder": {"640": entry("<b>", True)}}
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: id 640 is '<b>', and '<a>' in anoth"):
        to_gguf(spm_files(model, tokenizer=tokenizer, tokenizer_config=other), {}, source="folder")
    # A stale added_tokens.json is not read by Transformers beside newer files.
    metadata = to_gguf(spm_files(model, tokenizer=tokenizer, added_tokens={"[INST]": 700, "<c>": 641}), {})
    assert metadata["tokenizer.ggml.tokens"].data[640:] == ["<a>", "<c>"]
    assert metadata["tokenizer.ggml.tokens"].data[ids["[INST]"]] == "[INST]"


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_added_tokens_without_a_row_are_left_out_with_a_warning(kind, model):
    decoder = {"640": entry("<here>", False), "641": entry("<beyond>", True), "650": entry("<far>", True)}
    config = {"added_tokens_decoder": decoder, "pad_token": "<beyond>"}
    size = 641
    if kind == "sentencepiece":
        files = spm_files(model, tokenizer_config=config)
    else:
        files = as_files(byte_level(), tokenizer_config=config)
    with pytest.warns(UserWarning, match="left out 2 .* of 641 rows .*: '<beyond>' .641., '<far>' .650."):
        metadata = to_gguf(files, {"vocab_size": size}, source="folder")
    assert metadata["tokenizer.ggml.tokens"].data[-1] == "<here>"
    assert len(metadata["tokenizer.ggml.tokens"].data) == size
    assert "tokenizer.ggml.padding_token_id" not in metadata
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(to_gguf(files, {}, source="folder")["tokenizer.ggml.tokens"].data) == 651


def test_the_map_of_special_tokens_decides_as_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = byte_level()
    for index, text in enumerate(("<a>", "<b>"), tokenizer["added_tokens"][0]["id"] + 1):
        tokenizer["added_tokens"].append(tokenizer["added_tokens"][0] | {"id": index, "content": text})
    old = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<a>"}
    for more in ({}, {"added_tokens_decoder": {}}):
        files = as_files(tokenizer, tokenizer_config=old | more, special_tokens_map={"eos_token": "<b>"})
        path = write(files, tmp_path / str(len(more)))
        metadata = to_gguf(files, {})
        assert (
            metadata["tokenizer.ggml.eos_token_id"].data == AutoTokenizer.from_pretrained(path).eos_token_id
        )


def test_other_kinds_of_vocabulary_are_refused_with_their_name(tmp_path):
    from tokenizers import Tokenizer, models

    words = {"model": json.loads(Tokenizer(models.WordLevel({"[UNK]": 0}, "[UNK]")).to_str())["model"]}
    with pytest.raises(UnsupportedModelError, match="WordLevel"):
        to_gguf(as_files(words), {}, source="folder")
    with pytest.raises(UnsupportedModelError, match="unigram"):
        to_gguf({"tokenizer.model": train(model_type="unigram", vocab_size=500)}, {}, source="folder")
