"""The tokenizers of ChatGLM2, ChatGLM3 and GLM-4 in llama.cpp and back, judged by sentencepiece and tokenizers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from models import glm
from models.vocabularies import folder, llama_cpp, texts
from tokenizers import Tokenizer

from qformats.errors import CheckpointError
from qformats_gguf.metadata import Metadata, ValueType, array, boolean, string, u32
from qformats_gguf.tokenizer import from_gguf, to_gguf

CONFIG = {"model_type": "glm", "vocab_size": glm.SIZE, "eos_token_id": 2, "pad_token_id": 0}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
# Letters of the special tokens "sop" and "eop" inside words.
WORDS = ("The philosophy of a soprano", "people opposed it", " isop eop the sops", "sop")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    built = {}
    for kind in ("chatglm2", "chatglm3", "glm4"):
        path = tmp_path_factory.mktemp(kind)
        glm.tokenizer(kind, path)
        built[kind] = folder(path)
    return built


def pieces_of(files: dict[str, bytes], text: str, special: tuple[str, ...]) -> list[int]:
    """Ids by the sentencepiece library, with the special tokens found first, as ChatGLM's own code does."""
    library = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    ids = {name: glm.PIECES + at for at, name in enumerate(special)} | {"<unk>": 0, "<s>": 1, "</s>": 2}
    pattern = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
    found = []
    for part in re.split(f"({pattern})", text):
        found += [ids[part]] if part in ids else library.encode(part)
    return found


def data(metadata: Metadata, name: str) -> list[Any]:
    return list(metadata[f"tokenizer.ggml.{name}"].data)


# ChatGLM2 and ChatGLM3


@pytest.mark.parametrize(
    ("kind", "special"), [("chatglm2", glm.COMMANDS), ("chatglm3", glm.COMMANDS + glm.ROLES)]
)
def test_llama_cpp_reads_the_ids_of_sentencepiece(files, kind, special, tmp_path):
    prompts = ["[gMASK]sop<|user|>\n Hello<|assistant|>", "a[MASK] b <|system|><|observation|>", *WORDS]
    with llama_cpp(to_gguf(files[kind], CONFIG), tmp_path) as model:
        assert (model.vocab_type, model.n_vocab) == ("spm", glm.SIZE)
        for text in [*texts(), *prompts]:
            assert model.tokenize(text) == pieces_of(files[kind], text, special), text
        assert model.special_ids() == {
            "bos": 1,
            "eos": 2,
            "pad": 0,
            "eot": glm.PIECES + 6 if kind == "chatglm3" else -1,
            "add_bos": False,
            "add_eos": False,
        }


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3"])
def test_vocabulary(files, kind):
    metadata = to_gguf(files[kind], CONFIG)
    special = glm.COMMANDS + (glm.ROLES if kind == "chatglm3" else ())
    library = sentencepiece.SentencePieceProcessor(model_proto=files[kind]["tokenizer.model"])
    end = glm.PIECES + len(special)
    tokens, types, scores = (data(metadata, name) for name in ("tokens", "token_type", "scores"))
    assert tokens[: glm.PIECES] == [library.id_to_piece(i) for i in range(glm.PIECES)]
    assert np.array_equal(
        np.float32(scores[: glm.PIECES]), np.float32([library.get_score(i) for i in range(glm.PIECES)])
    )
    assert tokens[glm.PIECES : end] == list(special)
    assert tokens[end:] == [f"[PAD{i}]" for i in range(end, glm.SIZE)]
    assert types[:4] == [UNKNOWN, CONTROL, CONTROL, 6]
    assert types[glm.PIECES :] == [CONTROL] * len(special) + [UNUSED] * (glm.SIZE - end)
    expected = {
        "model": string("llama"),
        "pre": string("chatglm-spm"),
        "bos_token_id": u32(1),
        "eos_token_id": u32(2),
        "unknown_token_id": u32(0),
        "padding_token_id": u32(0),
        "add_bos_token": boolean(False),
        "add_eos_token": boolean(False),
        "add_space_prefix": boolean(True),
    }
    assert {key: metadata[f"tokenizer.ggml.{key}"] for key in expected} == expected


def test_letters_become_a_control_token_only_where_nothing_else_joins_them(files, tmp_path):
    """llama.cpp merges letters into any token, "sop" too; upstream's score for it, 0, comes before every piece."""
    metadata = to_gguf(files["chatglm2"], CONFIG)
    upstream = data(metadata, "scores")
    upstream[glm.PIECES :] = [0.0] * (glm.SIZE - glm.PIECES)
    library = sentencepiece.SentencePieceProcessor(model_proto=files["chatglm2"]["tokenizer.model"])
    plain = {"add_special": False, "parse_special": False}
    scores = array(ValueType.F32, upstream)
    sop = glm.PIECES + 3
    with (
        llama_cpp(metadata, tmp_path) as ours,
        llama_cpp(metadata | {"tokenizer.ggml.scores": scores}, tmp_path) as theirs,
    ):
        text = "The philosophy of a soprano"
        assert ours.tokenize(text, **plain) == library.encode(text)
        assert sop in theirs.tokenize(text, **plain)
        for text in texts():
            assert ours.tokenize(text, **plain) == library.encode(text), text
        # Where they stay apart, nothing can be done.
        assert sop in ours.tokenize("xsopx", **plain)


ROLE_IDS = list(range(glm.PIECES + 5, glm.PIECES + 9))


@pytest.mark.parametrize(
    ("change", "config"),
    [
        ({"tokenizer_config.json": {"name_or_path": "THUDM/chatglm3-6b-base"}}, {}),
        ({"tokenizer_config.json": {"chat_template": "<|{{ role }}|> <|assistant|>"}}, {}),
        ({"special_tokens_map.json": {"additional_special_tokens": ["<|user|>"]}}, {}),
        ({}, {"_name_or_path": "/models/ChatGLM3-6B"}),
    ],
)
def test_what_says_that_roles_are_tokens(files, change, config):
    given = files["chatglm2"] | {name: json.dumps(value).encode() for name, value in change.items()}
    metadata = to_gguf(given, CONFIG | config)
    assert [data(metadata, "tokens")[i] for i in ROLE_IDS] == list(glm.ROLES)
    assert metadata["tokenizer.ggml.eot_token_id"] == u32(ROLE_IDS[1])


def test_the_models_code_is_read_as_text_only(files):
    code = b"raise SystemExit\nspecial = ['<|system|>', '<|user|>']\n"
    metadata = to_gguf(files["chatglm2"] | {"tokenization_chatglm.py": code}, CONFIG)
    assert [data(metadata, "tokens")[i] for i in ROLE_IDS] == list(glm.ROLES)


def test_the_tokenizers_class_is_enough(files):
    """Without a configuration of the model, and with more of it than its own tokens need."""
    metadata = to_gguf(files["chatglm2"], {})
    assert metadata["tokenizer.ggml.pre"] == string("chatglm-spm")
    assert data(metadata, "tokens")[glm.PIECES :] == list(glm.COMMANDS)


def test_another_model_with_the_same_file_has_none_of_it(files):
    spm = {"tokenizer.model": files["chatglm2"]["tokenizer.model"]}
    metadata = to_gguf(spm, {"model_type": "llama", "vocab_size": glm.SIZE})
    assert metadata["tokenizer.ggml.pre"] == string("default")
    assert "[gMASK]" not in data(metadata, "tokens")


def test_no_rows_no_special_tokens(files):
    metadata = to_gguf(files["chatglm2"], CONFIG | {"vocab_size": glm.PIECES + 4})
    assert data(metadata, "tokens")[glm.PIECES :] == [f"[PAD{glm.PIECES + i}]" for i in range(4)]
    metadata = to_gguf(files["chatglm2"], CONFIG | {"vocab_size": glm.PIECES + 5})
    assert data(metadata, "tokens")[glm.PIECES :] == list(glm.COMMANDS)


def test_a_folders_lists_rule(files):
    added = {"<note>": glm.PIECES + 5, "[tMASK]": glm.PIECES + 6, "sop": glm.PIECES + 7}
    metadata = to_gguf(files["chatglm2"] | {"added_tokens.json": json.dumps(added).encode()}, CONFIG)
    tokens, types = data(metadata, "tokens"), data(metadata, "token_type")
    pad = f"[PAD{glm.PIECES + 3}]"
    assert tokens[glm.PIECES :][:8] == ["[MASK]", "[gMASK]", "[sMASK]", pad, "eop", *added]
    assert types[glm.PIECES :][:8] == [*[CONTROL] * 3, UNUSED, CONTROL, USER_DEFINED, USER_DEFINED, CONTROL]


def test_a_list_with_an_impossible_id_is_refused(files):
    given = files["chatglm2"] | {"added_tokens.json": json.dumps({"x": -1}).encode()}
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: token 'x' has id -1"):
        to_gguf(given, CONFIG)


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
def test_rebuilt_files_say_the_same(files, kind):
    config = CONFIG if kind != "glm4" else CONFIG | {"eos_token_id": None, "pad_token_id": None}
    metadata = to_gguf(files[kind], config)
    rebuilt = from_gguf(metadata)
    assert to_gguf(rebuilt, config) == metadata


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3"])
def test_a_rebuilt_tokenizer_json_alone_says_enough(files, kind, tmp_path):
    metadata = to_gguf(files[kind], CONFIG)
    rebuilt = from_gguf(metadata)
    del rebuilt["tokenizer.model"]
    alone = to_gguf(rebuilt, CONFIG)
    # It keeps the order of the scores, and has no type for the unknown token.
    kept = metadata.keys() - {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}
    assert {key: alone[key] for key in kept} == {key: metadata[key] for key in kept}
    assert data(alone, "token_type")[1:] == data(metadata, "token_type")[1:]
    with llama_cpp(metadata, tmp_path) as model, llama_cpp(alone, tmp_path) as other:
        for text in [*texts(), *WORDS]:
            assert other.tokenize(text) == model.tokenize(text)


@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
def test_the_rebuilt_tokenizer_reads_the_ids_of_llama_cpp(files, kind, tmp_path):
    metadata = to_gguf(files[kind], CONFIG)
    rebuilt = Tokenizer.from_buffer(from_gguf(metadata)["tokenizer.json"])
    with llama_cpp(metadata, tmp_path) as model:
        for text in texts():
            assert rebuilt.encode(text).ids == model.tokenize(text), text
    if kind != "glm4":
        # Transformers would find a special token "sop" in these, as llama.cpp does where it looks for special tokens.
        library = sentencepiece.SentencePieceProcessor(model_proto=files[kind]["tokenizer.model"])
        for text in WORDS:
            assert rebuilt.encode(text).ids == library.encode(text), text


def test_files_of_upstreams_converter_are_understood(files, tmp_path):
    """It calls the model's control tokens otherwise and gives every other token the score 0."""
    metadata = to_gguf(files["chatglm3"], CONFIG)
    tokens, scores = data(metadata, "tokens"), data(metadata, "scores")
    tokens[:3] = ["<unk>", "<bos>", "<eos>"]
    scores[glm.PIECES :] = [0.0] * (glm.SIZE - glm.PIECES)
    upstream = metadata | {
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.scores": array(ValueType.F32, scores),
    }
    back = from_gguf(upstream)
    library = sentencepiece.SentencePieceProcessor(model_proto=back["tokenizer.model"])
    original = sentencepiece.SentencePieceProcessor(model_proto=files["chatglm3"]["tokenizer.model"])
    for text in [*texts(), *WORDS]:
        assert library.encode(text) == original.encode(text)
    config = json.loads(back["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"]) == ("<bos>", "<eos>")
    assert json.loads(back["generation_config.json"])["eos_token_id"] == [2, glm.PIECES + 6]


def test_pre_is_the_users(files):
    assert to_gguf(files["chatglm2"], CONFIG, pre="default")["tokenizer.ggml.pre"] == string("default")


# GLM-4


def test_glm4_is_recognised(files, tmp_path):
    metadata = to_gguf(files["glm4"], CONFIG | {"eos_token_id": None, "pad_token_id": None})
    assert metadata["tokenizer.ggml.pre"] == string("glm4")
    tokens = data(metadata, "tokens")
    ids = {name: tokens.index(name) for name in ("<|endoftext|>", "[gMASK]", "<|user|>")}
    assert {role: metadata[f"tokenizer.ggml.{role}_token_id"].data for role in ("eos", "eot", "unknown")} == {
        "eos": ids["<|endoftext|>"],
        "eot": ids["<|user|>"],
        "unknown": ids["<|endoftext|>"],
    }
    assert metadata["tokenizer.ggml.add_bos_token"] == boolean(False)
    own = Tokenizer.from_buffer(files["glm4"]["tokenizer.json"])
    with llama_cpp(metadata, tmp_path) as model:
        for text in [*texts(), "[gMASK]<sop><|user|>\nHi<|assistant|>", "seen qformats"]:
            # The prefix that the file adds is the prompt's matter in llama.cpp.
            assert model.tokenize(text) == own.encode(text, add_special_tokens=False).ids, text


def test_glm4_without_ignored_merges_has_the_older_name(files):
    tokenizer = json.loads(files["glm4"]["tokenizer.json"])
    tokenizer["model"]["ignore_merges"] = False
    metadata = to_gguf(files["glm4"] | {"tokenizer.json": json.dumps(tokenizer).encode()}, CONFIG)
    assert metadata["tokenizer.ggml.pre"] == string("chatglm-bpe")


def test_the_rebuilt_folder_loads_in_transformers(files, tmp_path: Path):
    from transformers import AutoTokenizer

    for kind in ("chatglm3", "glm4"):
        metadata = to_gguf(files[kind], CONFIG)
        path = tmp_path / kind
        path.mkdir()
        for name, content in from_gguf(metadata).items():
            (path / name).write_bytes(content)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        with llama_cpp(metadata, tmp_path) as model:
            text = "[gMASK]<|user|>\n The keeper counts 1987 ships.<|assistant|>"
            assert tokenizer(text)["input_ids"] == model.tokenize(text)
