"""Helpers of the tokenizer tests: folders as mappings, vocabularies as GGUF files for llama.cpp."""

from __future__ import annotations

import io
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sentencepiece
from oracles.llama_cpp import LlamaCpp

import qformats
from models.text import CORPUS, PROMPTS
from qformats_gguf.header import serialize
from qformats_gguf.metadata import Metadata, string

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NAMES = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
"""Settings of a SentencePiece tokenizer."""
DEMO = Path(qformats.__file__).parent / "demo"

_PARTS = [
    *"abcXYZ 0123\n\t.,!'\"éßжя中日🙂½²<>|_ -",
    "  ",
    "\r\n",
    "'s",
    "'LL",
    "\u3000",
    "١٢",
    " 12",
    "don't",
]


def texts() -> list[str]:
    """Texts of every kind: the fixed prompts, the corpus' lines, and 200 random ones."""
    rng = random.Random(7)
    noise = ["".join(rng.choices(_PARTS, k=rng.randint(1, 40))) for _ in range(200)]
    fixed = [
        "",
        " ",
        "\n",
        "x" * 300,
        "a\u00a0b\u200bc\u2028d",
        "नमस्ते กขค 👩‍👩‍👧",
        "<|im_start|>user\nhi<|im_end|>",
    ]
    return [*PROMPTS, *fixed, *CORPUS.splitlines()[:12], *noise]


def folder(path: Path) -> dict[str, bytes]:
    """Files of a folder by their path in it."""
    return {
        str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()
    }


def write(files: Mapping[str, bytes], path: Path) -> Path:
    """Write files by their path inside a folder."""
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


_numbers = itertools.count()


@contextmanager
def llama_cpp(metadata: Metadata, path: Path) -> Iterator[LlamaCpp]:
    """llama.cpp with nothing but this vocabulary."""
    file = path / f"vocabulary{next(_numbers)}.gguf"
    file.write_bytes(serialize({"general.architecture": string("llama"), **metadata}, []).data)
    with LlamaCpp(file, vocab_only=True) as model:
        yield model


def byte_level(pre_tokenizer: Any = None, **model: Any) -> dict[str, Any]:
    """A small tokenizer.json as an object: 256 bytes, a few merges, one special token."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges = [["Ġ", "t"], ["h", "e"], ["Ġt", "he"], ["1", "2"]]
    tokens = [*alphabet, *("".join(pair) for pair in merges)]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": len(tokens),
                "content": "<|endoftext|>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer or BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
            **model,
        },
    }


def as_files(tokenizer: Any, **others: Any) -> dict[str, bytes]:
    """tokenizer.json of an object, and other JSON files by stem."""
    named = {"tokenizer": tokenizer, **others}
    return {f"{name}.json": json.dumps(value).encode() for name, value in named.items()}


def train(**options: Any) -> bytes:
    """A SentencePiece BPE model of 640 pieces."""
    written = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 640,
        "byte_fallback": True,
        "character_coverage": 0.99,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    lines = iter(line for line in CORPUS.splitlines() if line)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=written, **{**settings, **options}
    )
    return written.getvalue()


def spm_files(model: bytes, **more: Any) -> dict[str, bytes]:
    """A folder with a tokenizer.model and JSON files by stem."""
    found = {"tokenizer.model": model, "tokenizer_config.json": json.dumps(NAMES).encode()}
    for name, value in more.items():
        if name == "tokenizer_config":
            value = NAMES | value
        found[f"{name}.json"] = json.dumps(value).encode()
    return found


def types_of(metadata: Metadata) -> dict[str, int]:
    """Types of the tokens, by text in the order of ids."""
    tokens, types = (metadata[f"tokenizer.ggml.{key}"].data for key in ("tokens", "token_type"))
    return dict(zip(tokens, types, strict=True))


def entry(text: str, special: bool) -> dict[str, Any]:
    """An added token as tokenizer_config.json lists it."""
    return {"content": text, "special": special, "normalized": False, "lstrip": False, "rstrip": False}
