"""Tokenizers go from Hugging Face to GGUF and back; llama.cpp judges the ids."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from gguf.vocab import SpecialVocab
from models import smollm2
from models.tokenizers import KINDS, build
from models.vocabularies import DEMO, as_files, byte_level, folder, llama_cpp, texts, write

from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError
from qformats_gguf.metadata import Metadata, ValueType, array, string, u32
from qformats_gguf.reader import read
from qformats_gguf.tokenizer import from_gguf, special_ids, to_gguf

NAMES = {"llama-spm": "default"}
TEXTS = texts()


@pytest.fixture(scope="module", params=[*KINDS, "demo"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict]:
    if request.param == "demo":
        return "demo", DEMO, json.loads((DEMO / "config.json").read_text())
    path = tmp_path_factory.mktemp(request.param)
    special = build(request.param, path)
    config = {f"{role}_token_id": special[role] for role in ("bos", "eos", "pad") if role in special}
    return request.param, path, {"vocab_size": special["size"] + 5, **config}


def differences(first: Metadata, second: Metadata) -> dict[str, Any]:
    keys = sorted(set(first) | set(second))
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def auto_tokenizer(files: dict[str, bytes], path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(write(files, path))


def test_llama_cpp_reads_the_ids_of_the_hugging_face_tokenizer(trained, tmp_path):
    from tokenizers import Tokenizer

    kind, path, config = trained
    # The file itself, not AutoTokenizer: Transformers 5.23 replaces the splitter of a GPT2Tokenizer.
    original = Tokenizer.from_file(str(path / "tokenizer.json"))
    metadata = to_gguf(folder(path), config, source=kind)
    assert metadata["tokenizer.ggml.pre"].data == NAMES.get(kind, "gpt-2" if kind == "demo" else kind)
    assert len(metadata["tokenizer.ggml.tokens"].data) == config["vocab_size"]
    with llama_cpp(metadata, tmp_path) as model:
        assert [model.tokenize(text) for text in TEXTS] == [original.encode(text).ids for text in TEXTS]


def test_a_rebuilt_tokenizer_reads_the_ids_of_llama_cpp(trained, tmp_path):
    kind, path, config = trained
    metadata = to_gguf(folder(path), config, source=kind)
    rebuilt = auto_tokenizer(from_gguf(metadata, max_length=512), tmp_path / "rebuilt")
    assert rebuilt.model_max_length == 512
    with llama_cpp(metadata, tmp_path) as model:
        assert [rebuilt.encode(text) for text in TEXTS] == [model.tokenize(text) for text in TEXTS]
        plain = [model.tokenize(text, add_special=False) for text in TEXTS]
    assert [rebuilt.encode(text, add_special_tokens=False) for text in TEXTS] == plain
    # SentencePiece puts a space after each special token, and no decoder takes it away again.
    lossless = [i for i, text in enumerate(TEXTS) if kind != "llama-spm" or "<" not in text]
    assert [rebuilt.decode(plain[i]) for i in lossless] == [TEXTS[i] for i in lossless]


def test_the_round_trip_changes_nothing(trained):
    kind, path, config = trained
    metadata = to_gguf(folder(path), config, source=kind)
    again = to_gguf(from_gguf(metadata), {"vocab_size": config["vocab_size"]}, source=kind)
    assert differences(metadata, again) == {}


def test_special_tokens_are_those_of_llama_cpps_converter(trained):
    kind, path, config = trained
    metadata = to_gguf(folder(path), config, source=kind)
    theirs = SpecialVocab(path, load_merges=kind != "llama-spm", n_vocab=config["vocab_size"])
    spelling = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
    expected = {
        f"tokenizer.ggml.{spelling.get(role, role)}_token_id": index
        for role, index in theirs.special_token_ids.items()
    }
    # The converter reads config.json from the folder, which only the demo has.
    expected |= {
        f"tokenizer.ggml.{spelling.get(role, role)}_token_id": config[f"{role}_token_id"]
        for role in ("bos", "eos", "pad")
        if isinstance(config.get(f"{role}_token_id"), int) and role not in theirs.special_token_ids
    }
    assert {key: value.data for key, value in metadata.items() if key.endswith("_token_id")} == expected
    for role, wanted in theirs.add_special_token.items():
        flag = metadata.get(f"tokenizer.ggml.add_{role}_token")
        assert (flag.data if flag else False) == wanted, role
    assert theirs.merges == (metadata["tokenizer.ggml.merges"].data if theirs.merges else [])
    template = metadata.get("tokenizer.chat_template")
    assert (template.data if template else None) == theirs.chat_template


def test_types_and_padding(trained):
    kind, path, config = trained
    metadata = to_gguf(folder(path), config, source=kind)
    tokens, types = (metadata[f"tokenizer.ggml.{key}"].data for key in ("tokens", "token_type"))
    by_text = dict(zip(tokens, types, strict=True))
    if kind == "smollm":
        assert (by_text["<|im_end|>"], by_text["<note>"]) == (3, 4)
    if kind == "llama-spm":
        assert (by_text["<0x0A>"], by_text["<s>"], by_text["<note>"]) == (6, 3, 4)
    if kind != "demo":
        assert tokens[-1] == f"[PAD{len(tokens) - 1}]"
        assert types[-5:] == [5] * 5
        assert 5 not in types[:-5]


@pytest.mark.model
def test_smollm2(tmp_path):
    metadata = {key: value for key, value in read(smollm2.path()).metadata.items() if "tokenizer" in key}
    metadata["tokenizer.ggml.token_type"] = array(
        ValueType.I32, metadata["tokenizer.ggml.token_type"].data.tolist()
    )
    files = from_gguf(metadata, source="SmolLM2")
    again = to_gguf(files, {"vocab_size": 49152})
    assert set(differences(metadata, again)) == {"tokenizer.ggml.add_eos_token"}
    # The published hash: the rebuilt tokenizer encodes llama.cpp's fixed text as the original does.
    assert again["tokenizer.ggml.pre"].data == "smollm"
    rebuilt = auto_tokenizer(files, tmp_path / "rebuilt")
    with llama_cpp(metadata, tmp_path) as model:
        assert [rebuilt.encode(text) for text in TEXTS] == [model.tokenize(text) for text in TEXTS]


def test_slow_files_alone_give_the_same(tmp_path):
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text())["model"]
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in tokenizer["merges"])
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    slow = {
        "vocab.json": json.dumps(tokenizer["vocab"]).encode(),
        "merges.txt": merges.encode(),
        "tokenizer_config.json": json.dumps({"tokenizer_class": "GPT2Tokenizer", **names}).encode(),
    }
    assert differences(to_gguf(slow, {}), to_gguf(folder(DEMO), {})) == {}
    slow["tokenizer_config.json"] = json.dumps({"tokenizer_class": "Qwen2Tokenizer"}).encode()
    assert to_gguf(slow, {})["tokenizer.ggml.pre"].data == "qwen2"
    del slow["tokenizer_config.json"]
    with pytest.raises(UnsupportedModelError, match="--pre"):
        to_gguf(slow, {})
    assert to_gguf(slow, {}, pre="starcoder")["tokenizer.ggml.pre"].data == "starcoder"
    del slow["merges.txt"]
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        to_gguf(slow, {})


def test_ids_outside_the_vocabulary_are_absent(tmp_path):
    metadata = to_gguf(folder(DEMO), {"vocab_size": 2048, "pad_token_id": 5000, "eos_token_id": [7, 9]})
    assert "tokenizer.ggml.padding_token_id" not in metadata
    # What stories260K.gguf has.
    metadata |= {
        "tokenizer.ggml.padding_token_id": u32(2**32 - 1),
        "tokenizer.ggml.seperator_token_id": u32(2**32 - 1),
    }
    assert special_ids(metadata) == {"bos_token_id": 0, "eos_token_id": 0}
    rebuilt = auto_tokenizer(from_gguf(metadata), tmp_path)
    assert (rebuilt.pad_token, rebuilt.sep_token, rebuilt.eos_token) == (None, None, "<|endoftext|>")


def test_a_smaller_configured_size_keeps_every_token():
    assert len(to_gguf(folder(DEMO), {"vocab_size": 100})["tokenizer.ggml.tokens"].data) == 2048
    nested = to_gguf(folder(DEMO), {"text_config": {"vocab_size": 2050}})
    assert nested["tokenizer.ggml.tokens"].data[-2:] == ["[PAD2048]", "[PAD2049]"]
    for size in (-1, "big", True, 2**40):
        with pytest.raises(ConfigError, match="vocab_size"):
            to_gguf(folder(DEMO), {"vocab_size": size})


def test_a_template_that_ends_with_another_token_keeps_the_end_of_turn():
    single = [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "the", "type_id": 0}},
    ]
    tokenizer = byte_level()
    ids = {"<|endoftext|>": tokenizer["added_tokens"][0]["id"], "the": 300}
    named = {text: {"id": text, "ids": [index], "tokens": [text]} for text, index in ids.items()}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": named}
    tokenizer["post_processor"] = template
    tokenizer["model"]["vocab"]["the"] = 300
    names = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}}
    metadata = to_gguf(as_files(tokenizer, tokenizer_config=names), {})
    ids = {key.split(".")[-1]: value.data for key, value in metadata.items() if "token_id" in key}
    end = tokenizer["added_tokens"][0]["id"]
    assert ids == {"bos_token_id": end, "eos_token_id": 300, "eot_token_id": end}
    assert metadata["tokenizer.ggml.add_bos_token"].data
    assert metadata["tokenizer.ggml.add_eos_token"].data
    files = from_gguf(metadata)
    assert json.loads(files["generation_config.json"])["eos_token_id"] == [300, end]
    assert differences(metadata, to_gguf(files, {})).keys() <= {"tokenizer.ggml.token_type"}


TEMPLATE = "{{ messages }}\r\n{% if x %}é{% endif %}"


@pytest.mark.parametrize(
    "files",
    [
        as_files(byte_level(), tokenizer_config={"chat_template": TEMPLATE}),
        as_files(
            byte_level(), tokenizer_config={"chat_template": [{"name": "default", "template": TEMPLATE}]}
        ),
        as_files(byte_level()) | {"chat_template.jinja": TEMPLATE.encode()},
        as_files(byte_level(), tokenizer_config={"chat_template": "old"})
        | {"chat_template.jinja": TEMPLATE.encode()},
        # Transformers' tokenizers leave chat_template.json to processors.
        as_files(
            byte_level(),
            tokenizer_config={"chat_template": TEMPLATE},
            chat_template={"chat_template": "other"},
        ),
    ],
    ids=["config", "list", "jinja", "jinja before config", "config beside json"],
)
def test_chat_templates_wherever_they_stand(files):
    metadata = to_gguf(files, {})
    assert metadata["tokenizer.chat_template"].data == TEMPLATE
    assert from_gguf(metadata)["chat_template.jinja"] == TEMPLATE.encode()


def test_named_chat_templates(tmp_path):
    files = as_files(byte_level()) | {
        "chat_template.jinja": TEMPLATE.encode(),
        "additional_chat_templates/tool_use.jinja": b"tools",
        "additional_chat_templates/rag.jinja": b"documents",
    }
    metadata = to_gguf(files, {})
    assert metadata["tokenizer.chat_templates"].data == ["rag", "tool_use"]
    assert metadata["tokenizer.chat_template.tool_use"].data == "tools"
    back = from_gguf(metadata)
    assert {name: back[name] for name in files if "template" in name} == {
        name: data for name, data in files.items() if "template" in name
    }
    loaded = auto_tokenizer(back, tmp_path)
    assert loaded.chat_template["rag"] == "documents"
    # A name from a file never leaves the folder.
    hostile = from_gguf(metadata | {"tokenizer.chat_template.../../etc/x": string("bad")})
    assert "additional_chat_templates/______etc_x.jinja" in hostile


def test_large_vocabularies_take_seconds():
    base = byte_level()
    vocab, merges = base["model"]["vocab"], base["model"]["merges"]
    letters = [token for token in vocab if len(token) == 1][30:90]
    words = [a + b for a in letters for b in letters]
    merges += [[a, b] for a in letters for b in letters if a + b not in vocab]
    for word in words:
        vocab.setdefault(word, len(vocab))
    for left in words:
        for right in words[:40]:
            if left + right not in vocab:
                vocab[left + right] = len(vocab)
                merges.append([left, right])
    base["added_tokens"][0]["id"] = len(vocab)
    assert len(vocab) > 140_000
    start = time.perf_counter()
    metadata = to_gguf(as_files(base), {}, pre="gpt-2")
    files = from_gguf(metadata)
    # Two seconds alone; the limit leaves room for a busy machine and still catches anything quadratic.
    assert time.perf_counter() - start < 30
    assert len(json.loads(files["tokenizer.json"])["model"]["merges"]) == len(merges)
