"""ChatGLM2 and ChatGLM3: a SentencePiece model, followed by special tokens that only the model's code names.

Source: ggml-org/llama.cpp:conversion/chatglm.py (``set_vocab_chatglm3``) and the models' tokenizer classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .added import AddedToken
from .files import TokenizerFiles

__all__ = ["PRE", "complete", "is_chatglm"]

PRE = "chatglm-spm"
"""``tokenizer.ggml.pre`` that upstream's converter writes; llama.cpp reads none beside a SentencePiece model."""

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
    there = {entry.text for entry in listed.values()}
    size = config.get("padded_vocab_size") or config.get("vocab_size")
    found = {i: AddedToken(entry.text, entry.special or entry.text in names) for i, entry in listed.items()}
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
