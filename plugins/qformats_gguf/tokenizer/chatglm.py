"""ChatGLM2 and ChatGLM3: a SentencePiece model, followed by special tokens that only the model's code names.

Source: ggml-org/llama.cpp:conversion/chatglm.py (``set_vocab_chatglm3``) and the models' tokenizer classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .added import AddedToken
from .files import TokenizerFiles

__all__ = ["PRE", "complete", "is_chatglm", "spelled"]

PRE = "chatglm-spm"
"""``tokenizer.ggml.pre`` that upstream's converter writes; llama.cpp reads none beside a SentencePiece model."""

_SPELLED = {"<sop>": "sop", "<eop>": "eop"}
"""Two commands in Transformers' files, and in GGUF, which has the names of ChatGLM's code.

Transformers finds special tokens anywhere in a text, ``sop`` also in "philosophy"; llama.cpp only where it is asked to.
"""
_COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
# ChatGLM3 only: in ChatGLM2 their ids are padding, which was never trained.
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_CLASS = "ChatGLMTokenizer"
_MODEL_TYPES = ("chatglm", "glm")
_SPEAKING = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenization_chatglm.py",
)


def is_chatglm(files: TokenizerFiles, config: Mapping[str, Any]) -> bool:
    """Whether a SentencePiece model in these files is one of ChatGLM: GLM-4 has another kind of tokenizer."""
    return files.settings().get("tokenizer_class") == _CLASS or config.get("model_type") in _MODEL_TYPES


def complete(
    listed: Mapping[int, AddedToken],
    pieces: Sequence[str],
    files: TokenizerFiles,
    config: Mapping[str, Any],
) -> dict[int, AddedToken]:
    """Add the special tokens that follow the pieces of the model to those that a file lists.

    Parameters
    ----------
    listed : mapping of int to AddedToken
        What the folder lists, by id; this takes precedence.
    pieces : sequence of str
        The model's own tokens. Where the special ones are among them, as in rebuilt files, nothing is missing.
    files : TokenizerFiles
        The folder. The four roles are tokens if one of its files, read as text, names one of them, or if a
        name says ChatGLM3.
    config : mapping
        The model's config.json: its name, and the number of rows, which must be enough for them.

    Returns
    -------
    dict of int to AddedToken
        Like `listed`; the tokens known here are special, whatever a list says.
    """
    names = _COMMANDS + (_ROLES if _has_roles(files, config) else ())
    there = {_SPELLED.get(entry.text, entry.text) for entry in listed.values()}
    size = config.get("padded_vocab_size") or config.get("vocab_size")
    found = {
        index: AddedToken(entry.text, entry.special or _SPELLED.get(entry.text, entry.text) in names)
        for index, entry in listed.items()
    }
    no_rows = isinstance(size, int) and size < len(pieces) + len(names)
    if no_rows or "[gMASK]" in pieces:
        return found
    behind = enumerate(names, len(pieces))
    return {index: AddedToken(name, special=True) for index, name in behind if name not in there} | found


def _has_roles(files: TokenizerFiles, config: Mapping[str, Any]) -> bool:
    settings = files.settings()
    called = [config.get("_name_or_path"), settings.get("name_or_path"), settings.get("_name_or_path")]
    if any(isinstance(name, str) and "chatglm3" in name.lower() for name in called):
        return True
    return any(role in (files.text(name) or "") for name in _SPEAKING for role in _ROLES)


def spelled(text: str, *, gguf: bool) -> str:
    """Spell a token, or the start of a chat in a template, as GGUF or as Transformers' files have it."""
    for ours, theirs in _SPELLED.items():
        old, new = (ours, theirs) if gguf else (theirs, ours)
        text = new if text == old else text.replace(f"[gMASK]{old}", f"[gMASK]{new}")
    return text
