"""Tokens that end a text: a folder lists any number of them, llama.cpp has three places and knows some by name.

Source: ggml-org/llama.cpp:src/llama-vocab.cpp (``special_eog_ids``); ollama/ollama for ``eos_token_ids``.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from ..metadata import Metadata, ValueType, array
from .files import TokenizerFiles
from .vocabulary import TokenType

__all__ = ["END_IDS", "default_ends", "end_ids", "place_ends"]

END_IDS = "tokenizer.ggml.eos_token_ids"
"""All end tokens. Ollama writes and reads this key; llama.cpp ignores it."""

_TURNS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eom_id|>", "<|end|>")
"""Control tokens that end a turn wherever they exist."""
_BY_NAME = (*_TURNS, "<|endoftext|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<|return|>", "<|call|>")
"""Tokens that llama.cpp has long known as ends by their text, whatever the metadata says."""
_PLACES = ("eot", "eom")


def end_ids(config: Mapping[str, Any], files: TokenizerFiles) -> list[int]:
    """List the tokens at which Transformers stops, in its order.

    Parameters
    ----------
    config : mapping
        The model's config.json, which counts where generation_config.json names none.
    files : TokenizerFiles
        The folder.
    """
    for section in (files.json("generation_config.json"), config, config.get("text_config")):
        value = section.get("eos_token_id") if isinstance(section, Mapping) else None
        ids = value if isinstance(value, list) else [value]
        found = [index for index in ids if isinstance(index, int) and not isinstance(index, bool)]
        if found:
            return list(dict.fromkeys(found))
    return []


def place_ends(
    wanted: Iterable[int],
    roles: Mapping[str, int],
    tokens: Sequence[str],
    types: Sequence[int],
    *,
    source: str,
) -> tuple[dict[str, int], Metadata]:
    """Find a place for end tokens besides EOS; warn of those at which llama.cpp will not stop.

    Parameters
    ----------
    wanted : iterable of int
        Every end token.
    roles : mapping of str to int
        Ids of the roles that the metadata has already.
    tokens, types : sequence
        One entry per id.
    source : str
        The folder's name, for the warning.

    Returns
    -------
    dict of str to int
        Ids of further roles, ``eot`` and ``eom``.
    Metadata
        The whole list under `END_IDS`, if `default_ends` would give another one.
    """
    wanted = [index for index in wanted if 0 <= index < len(tokens)]
    texts = set(tokens)
    named = _by_name(texts)
    free = [place for place in _PLACES if place not in roles]
    if texts & set(named) & set(_TURNS) - {"<|eom_id|>"}:
        # llama.cpp finds the end of a turn itself as long as nothing else takes its place.
        free.reverse()
    held = {roles[role] for role in ("eos", *_PLACES) if role in roles}
    placed: dict[str, int] = {}
    lost = []
    for index in wanted:
        if index in held or tokens[index] in named:
            continue
        if free and _can_end(tokens[index], texts):
            placed[free.pop(0)] = index
        else:
            lost.append(index)
    values: Metadata = {}
    if len(wanted) > 1 and wanted != default_ends({**roles, **placed}, tokens, types):
        values[END_IDS] = array(ValueType.I32, wanted)
    if lost:
        listed = ", ".join(f"{tokens[index]!r} ({index})" for index in lost)
        warnings.warn(
            f"{source}: llama.cpp will not stop at {listed}: a GGUF file has room for no more end tokens; "
            f"{END_IDS} keeps them for other programs",
            UserWarning,
            stacklevel=2,
        )
    return placed, values


def default_ends(roles: Mapping[str, int], tokens: Sequence[str], types: Sequence[int]) -> list[int]:
    """List the end tokens of a file that does not list them itself: where llama.cpp stops, also at turns."""
    ends = [roles[role] for role in ("eos", *_PLACES) if role in roles]
    if ends:
        by_text = {tokens[i]: i for i, kind in enumerate(types) if kind == TokenType.CONTROL}
        # Where a call ends a text, the end of a message does not.
        harmony = "<|return|>" in by_text or "<|flush|>" in by_text
        ends += [by_text[text] for text in _TURNS if text in by_text and not (harmony and text == "<|end|>")]
    return list(dict.fromkeys(ends))


def _by_name(texts: Collection[str]) -> tuple[str, ...]:
    return tuple(text for text in _BY_NAME if _can_end(text, texts))


def _can_end(text: str, texts: Collection[str]) -> bool:
    """Whether llama.cpp lets this token end a text: of some vocabularies it takes the end of a message out again."""
    calls, others = ("<|call|>", "<|calls|>"), ("<|return|>", "<|flush|>")
    harmony = any(call in texts for call in calls) and any(other in texts for other in others)
    if text == "<|end|>":
        return not harmony
    return not (text == "</s>" and "<|tool_response>" in texts)
