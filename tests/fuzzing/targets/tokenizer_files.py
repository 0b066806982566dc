"""Tokenizers: tokenizer.json of every kind, SentencePiece's models, ranks of tiktoken; to GGUF and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qformats.folder import read_json
from qformats.vocabularies import parse, parse_ranks
from qformats_gguf.tokenizer import from_gguf, to_gguf
from qformats_glm.tokenizers import completed

from .target import Target, each

__all__ = ["TARGETS"]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.name != "config.json" and not file.name.endswith(".py")
    }


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json", folder) if (folder / "config.json").exists() else {}


def _tokenizer(folder: Path) -> None:
    files = _files(folder)
    from_gguf(to_gguf(files, _config(folder), source=str(folder)), source="model.gguf")


def _sentencepiece(folder: Path) -> None:
    files = _files(folder)
    each(
        *(
            (lambda name=name: parse(files[name], name))
            for name in ("tokenizer.model", "sentencepiece.bpe.model", "ice_text.model")
            if name in files
        ),
        lambda: _tokenizer(folder),
    )


def _ranks(folder: Path) -> None:
    files = _files(folder)
    each(
        *(
            (lambda name=name: parse_ranks(files[name], name))
            for name in files
            if name.endswith(("tiktoken", "model"))
        ),
        lambda: _tokenizer(folder),
    )


def _glm(folder: Path) -> None:
    code = {file.name: file.read_bytes() for file in folder.glob("*.py")}
    files = completed(_files(folder), _config(folder), folder, code)
    to_gguf(files, _config(folder), source=str(folder))


TARGETS = (
    Target("tokenizer", _tokenizer, weights={"tokenizer.json": 5, "config.json": 1}, heavy=True),
    Target("sentencepiece", _sentencepiece, weights={".model": 6, ".json": 1}, heavy=True),
    Target("tiktoken", _ranks, weights={".tiktoken": 6, ".model": 6, ".json": 1}, heavy=True),
    Target("tokenizer-glm", _glm, weights={".model": 4, ".json": 2, ".py": 2}, heavy=True),
)
