"""Which definitions of cutting text are recognised, and that llama.cpp means the same by their names."""

from __future__ import annotations

from typing import Any

import pytest
from models.vocabularies import DEMO, as_files, byte_level, folder, llama_cpp, texts

from qformats.errors import ConfigError, UnsupportedModelError
from qformats_gguf.metadata import string
from qformats_gguf.tokenizer import from_gguf, to_gguf
from qformats_gguf.tokenizer.pretokenizers import ACCEPTED, PRE_TOKENIZERS, SPLITTERS

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = WORDS + r"\p{N}{1,3}" + TAIL
QWEN2 = WORDS + r"\p{N}" + TAIL
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# llama.cpp has no letter classes beyond ASCII for these, or cuts Falcon's bytes and DeepSeek's wide spaces
# differently: the definitions are the models' own.
APPROXIMATED = {"gpt-4o", "tekken", "tiny_aya", "youtu", "falcon", "deepseek-llm", "deepseek-coder"}


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def byte_step(use_regex: bool = False, prefix: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": use_regex}


def pre_of(definition: dict[str, Any], *, config: dict[str, Any] | None = None, **model: Any) -> str:
    return to_gguf(as_files(byte_level(definition, **model)), config or {})["tokenizer.ggml.pre"].data


DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("definition", "name"),
    [
        # Files older than use_regex.
        ({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}, "gpt-2"),
        (byte_step(use_regex=True), "gpt-2"),
        (sequence(split(GPT2), byte_step()), "gpt-2"),
        (sequence(DIGITS, byte_step(use_regex=True)), "smollm"),
        (sequence(sequence(split(r"\p{N}")), sequence(split(GPT2), byte_step())), "smollm"),
        (sequence(split(QWEN2), byte_step()), "qwen2"),
        (sequence(split(QWEN2, "Removed", True), byte_step()), "qwen2"),
        (sequence(split(QWEN2.replace(r"\r", "\r").replace(r"\n", "\n")), byte_step()), "qwen2"),
        (
            sequence(
                split(
                    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
                    r"\s*[\r\n]|\s+(?!\S)|\s+"
                ),
                byte_step(),
            ),
            "qwen2",
        ),
        (sequence(split(LLAMA3), byte_step()), "smaug-bpe"),
        (
            sequence(
                {"type": "Punctuation", "behavior": "Contiguous"},
                byte_step(True),
                {"type": "Digits", "individual_digits": False},
                split("[0-9][0-9][0-9]"),
            ),
            "falcon",
        ),
    ],
)
def test_spellings(definition, name):
    assert pre_of(definition) == name


@pytest.mark.parametrize("key", SPLITTERS)
def test_every_definition_is_recognised_again(key):
    row = next(row for row in PRE_TOKENIZERS if row.splitter == key)
    metadata = to_gguf(folder(DEMO), {}, pre=row.name)
    assert to_gguf(from_gguf(metadata), {})["tokenizer.ggml.pre"].data == row.name


@pytest.mark.parametrize("key", [key for key in SPLITTERS if key not in APPROXIMATED])
def test_llama_cpp_cuts_alike(key, tmp_path):
    from tokenizers import Tokenizer

    row = next(row for row in PRE_TOKENIZERS if row.splitter == key)
    metadata = to_gguf(folder(DEMO), {}, pre=row.name)
    rebuilt = Tokenizer.from_buffer(from_gguf(metadata)["tokenizer.json"])
    with llama_cpp(metadata, tmp_path) as model:
        for text in texts():
            assert rebuilt.encode(text).ids == model.tokenize(text), text


@pytest.mark.parametrize("name", sorted(APPROXIMATED))
def test_llama_cpp_cuts_ascii_alike(name, tmp_path):
    from tokenizers import Tokenizer

    metadata = to_gguf(folder(DEMO), {}, pre=name)
    rebuilt = Tokenizer.from_buffer(from_gguf(metadata)["tokenizer.json"])
    ascii_texts = ["Hello world, it's o'clock12345.", "def f(x):\n    return x+1\n", "the THE  \n\n end(7)"]
    with llama_cpp(metadata, tmp_path) as model:
        assert [rebuilt.encode(t).ids for t in ascii_texts] == [model.tokenize(t) for t in ascii_texts]


def test_llama_cpp_accepts_every_name_and_no_other(tmp_path):
    from oracles.llama_cpp import LlamaCppError

    metadata = to_gguf(folder(DEMO), {}, pre="gpt-2")
    for name in ACCEPTED:
        row = next(row for row in PRE_TOKENIZERS if row.name == name)
        # Without the flag, what the loader assumes by name shows.
        bare = {k: v for k, v in metadata.items() if k != "tokenizer.ggml.add_bos_token"}
        with llama_cpp(bare | {"tokenizer.ggml.pre": string(name)}, tmp_path) as model:
            # Gemma's rule acts on models of that kind, whatever the file says.
            gemma = name in ("gemma4", "granite-embed-multi-311m")
            assert bool(model.special_ids()["add_bos"]) == (row.add_bos or gemma), name
    with (
        pytest.raises(LlamaCppError, match="unknown pre-tokenizer"),
        llama_cpp(metadata | {"tokenizer.ggml.pre": string("gpt-3")}, tmp_path),
    ):
        pass


def test_names_of_one_splitter_differ_by_ignore_merges():
    definition = sequence(split(LLAMA3), byte_step())
    assert pre_of(definition, ignore_merges=True) == "llama-bpe"
    assert pre_of(definition, ignore_merges=False) == "smaug-bpe"
    assert pre_of(definition, ignore_merges=True, config={"model_type": "glm4"}) == "glm4"
    assert pre_of(definition, ignore_merges=False, config={"model_type": "chatglm"}) == "chatglm-bpe"


def test_ignore_merges_may_differ_only_where_it_changes_nothing():
    definition = sequence(split(QWEN2), byte_step())
    assert pre_of(definition, ignore_merges=True) == "qwen2"
    tokenizer = byte_level(definition, ignore_merges=True)
    tokenizer["model"]["vocab"]["ships"] = 300  # no merge makes it
    with pytest.raises(UnsupportedModelError, match=r"ignore_merges=true.*--pre"):
        to_gguf(as_files(tokenizer), {}, source="model")
    assert to_gguf(as_files(tokenizer), {}, pre="qwen2")["tokenizer.ggml.pre"].data == "qwen2"


def test_normalization_is_no_part_of_a_name_unless_it_changes_more_than_the_form():
    tokenizer = byte_level(sequence(split(QWEN2), byte_step())) | {"normalizer": {"type": "NFC"}}
    assert to_gguf(as_files(tokenizer), {})["tokenizer.ggml.pre"].data == "qwen2"
    tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}
    with pytest.raises(UnsupportedModelError):
        to_gguf(as_files(tokenizer), {})


@pytest.mark.parametrize(
    "definition",
    [
        byte_step(use_regex=True, prefix=True),
        sequence(split(r"\p{L}+"), byte_step()),
        sequence(split(QWEN2, "MergedWithNext"), byte_step()),
        sequence(split(r"\p{N}", "Removed"), byte_step(use_regex=True)),
        sequence(byte_step(use_regex=True), {"type": "Whitespace"}),
    ],
)
def test_unknown_definitions_are_refused_and_a_name_overrides(definition):
    with pytest.raises(UnsupportedModelError, match=r"smollm.*--pre") as caught:
        to_gguf(as_files(byte_level(definition)), {}, source="folder/model")
    assert "folder/model" in str(caught.value)
    assert to_gguf(as_files(byte_level(definition)), {}, pre="tekken")["tokenizer.ggml.pre"].data == "tekken"


@pytest.mark.parametrize(
    ("definition", "name"),
    [
        (sequence(split(QWEN2, "MergedWithNext"), byte_step()), "qwen2"),
        (sequence(split(QWEN2 + r"|\p{M}+"), byte_step()), "qwen2"),
        (sequence(split(WORDS + r"\p{N}{1,4}" + TAIL), byte_step()), "cl100k"),
        (sequence(split(GPT2.replace("'ll|", "")), byte_step()), "gpt-2"),
    ],
)
def test_what_an_unknown_definition_looks_like_is_told(definition, name):
    named = next(row.name for row in PRE_TOKENIZERS if row.splitter == name)
    with pytest.raises(
        UnsupportedModelError, match=f"written most like that of {named}, but is not the same"
    ):
        to_gguf(as_files(byte_level(definition)), {})


def test_what_looks_like_nothing_known_names_nothing():
    with pytest.raises(UnsupportedModelError) as caught:
        to_gguf(as_files(byte_level(sequence(split("x"), {"type": "UnicodeScripts"}, byte_step()))), {})
    assert "most like" not in str(caught.value)


def test_only_names_of_the_loader_are_written():
    with pytest.raises(ConfigError, match=r"found 'gpt2'; expected one of .*llama-bpe"):
        to_gguf(folder(DEMO), {}, pre="gpt2")


def test_reading_an_unknown_name():
    metadata = to_gguf(folder(DEMO), {}) | {"tokenizer.ggml.pre": string("new-one")}
    with pytest.raises(UnsupportedModelError, match=r"found 'new-one'.*qwen2.*--pre"):
        from_gguf(metadata, source="file.gguf")
    assert from_gguf(metadata, pre="gpt-2")["tokenizer.json"]
    for known in ("kimi-k2", "gemma4"):
        with pytest.raises(UnsupportedModelError, match=known):
            from_gguf(metadata | {"tokenizer.ggml.pre": string(known)})


def test_a_file_without_a_name_is_read_as_llama_cpp_reads_it(tmp_path):
    from tokenizers import Tokenizer

    metadata = to_gguf(folder(DEMO), {})
    del metadata["tokenizer.ggml.pre"]
    rebuilt = Tokenizer.from_buffer(from_gguf(metadata)["tokenizer.json"])
    with llama_cpp(metadata, tmp_path) as model:
        assert [rebuilt.encode(text).ids for text in texts()] == [model.tokenize(text) for text in texts()]
