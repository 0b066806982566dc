"""Qwen 1: ranks of tiktoken, which tiktoken itself and llama.cpp read as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiktoken
from models import tokenizers
from models.text import PROMPTS
from models.vocabularies import folder as files_of
from models.vocabularies import llama_cpp
from tokenizers import Tokenizer

from qformats.errors import CheckpointError
from qformats_gguf.tokenizer import from_gguf, to_gguf

# Of Qwen's tokenization_qwen.py.
PATTERN = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""
    r"""|\s+(?!\S)|\s+"""
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{at}|>" for at in range(205)))
TURN = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<|extra_7|> <|endoftext|>"


@pytest.fixture
def ranks(tmp_path: Path) -> dict[bytes, int]:
    tokenizers.build("qwen2", tmp_path / "qwen")
    return tokenizers.as_qwen(tmp_path / "qwen")


def test_llama_cpp_and_the_way_back_split_as_tiktoken(ranks: dict[bytes, int], tmp_path: Path) -> None:
    special = {text: len(ranks) + at for at, text in enumerate(SPECIAL)}
    theirs = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    size = len(ranks) + len(SPECIAL) + 3
    metadata = to_gguf(files_of(tmp_path / "qwen"), {"model_type": "qwen", "vocab_size": size})
    assert metadata["tokenizer.ggml.pre"].data == "qwen2"
    tokens = metadata["tokenizer.ggml.tokens"].data
    assert (len(tokens), tokens[-1]) == (size, f"[PAD{size - 1}]")
    end = special["<|endoftext|>"]
    assert [metadata[f"tokenizer.ggml.{role}_token_id"].data for role in ("bos", "eos", "unknown")] == [
        end
    ] * 3
    back = Tokenizer.from_str(from_gguf(metadata)["tokenizer.json"].decode())
    with llama_cpp(metadata, tmp_path) as gguf:
        for text in (*PROMPTS, TURN):
            expected = theirs.encode(text, allowed_special="all")
            assert gguf.tokenize(text) == expected, text
            assert back.encode(text).ids == expected, text


def test_the_ends_of_the_chat_models_come_back(ranks: dict[bytes, int], tmp_path: Path) -> None:
    files = files_of(tmp_path / "qwen")
    end, turn = len(ranks), len(ranks) + 2
    files["generation_config.json"] = json.dumps(
        {"eos_token_id": [end, turn], "chat_format": "chatml"}
    ).encode()
    back = from_gguf(to_gguf(files, {"model_type": "qwen", "vocab_size": len(ranks) + len(SPECIAL)}))
    assert json.loads(back["generation_config.json"])["eos_token_id"] == [end, turn]


@pytest.mark.parametrize("line", [b"not base64", b"AAAA x", b"IQ== 0"])
def test_damaged_ranks_are_refused(line: bytes, ranks: dict[bytes, int], tmp_path: Path) -> None:
    files = files_of(tmp_path / "qwen")
    files["qwen.tiktoken"] += line + b"\n"
    with pytest.raises(CheckpointError, match=r"qwen\.tiktoken"):
        to_gguf(files, {"vocab_size": 768})


def test_a_tokenizer_json_comes_first(ranks: dict[bytes, int], tmp_path: Path) -> None:
    """As Transformers has saved it."""
    tokenizers.build("qwen2", tmp_path / "other")
    files = files_of(tmp_path / "other")
    assert to_gguf({**files, "qwen.tiktoken": b"damaged"}, {}) == to_gguf(files, {})
