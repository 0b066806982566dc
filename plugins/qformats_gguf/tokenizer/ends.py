"""Tokens that end a text: a folder lists any number of them, llama.cpp has three places and knows some by name.

Source: ggml-org/llama.cpp:src/llama-vocab.cpp (``special_eog_ids``); ollama/ollama for ``eos_token_ids``.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..metadata import Metadata, ValueType, array, boolean
from .chatglm import is_chatglm
from .files import TokenizerFiles
from .vocabulary import TokenType

__all__ = ["END_IDS", "INTEGERS", "NO_END", "Ends", "default_ends", "end_ids", "place_ends", "stored_ends"]

END_IDS = "tokenizer.ggml.eos_token_ids"
"""All end tokens. Ollama writes and reads this key; llama.cpp ignores it."""
NO_END = "qformats.generation.no_end_token"
"""True where Transformers stops at no token, whatever EOS is: gguf-py does not copy a list without elements."""
INTEGERS = frozenset(getattr(ValueType, f"{sign}{bits}") for sign in ("U", "I") for bits in (8, 16, 32, 64))

_TURNS = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|eom_id|>", "<|end|>")
"""Control tokens that end a turn wherever they exist."""
_BY_NAME = (*_TURNS, "<|endoftext|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<|return|>", "<|call|>")
"""Tokens that llama.cpp has long known as ends by their text, whatever the metadata says."""
_PLACES = ("eot", "eom")


@dataclass(frozen=True)
class Ends:
    """End tokens of a folder.

    Attributes
    ----------
    stops : tuple of int, optional
        Those at which Transformers stops, in its order; None if that is not known.
    named : tuple of int
        The same, or those of config.json where generation_config.json names none: Transformers then never stops, but
        a reader of GGUF files has no other place to learn them from.
    odd : tuple
        What is listed and cannot be an id.
    """

    stops: tuple[int, ...] | None
    named: tuple[int, ...]
    odd: tuple[Any, ...] = ()


def end_ids(config: Mapping[str, Any], files: TokenizerFiles) -> Ends:
    """Find the end tokens.

    Parameters
    ----------
    config : mapping
        The model's config.json. Transformers looks there only if generation_config.json does not exist.
    files : TokenizerFiles
        The folder.
    """
    generation = files.json("generation_config.json")
    told = _listed(generation) if generation is not None else []
    for section in (config, *_decoders(config)):
        configured = _listed(section)
        if configured:
            break
    named = told or configured
    ids = [index for index in named if isinstance(index, int) and not isinstance(index, bool)]
    ids = list(dict.fromkeys(ids))
    stops: list[int] | None = ids if told or generation is None else []
    if generation is None and (not config or is_chatglm(files, config)):
        # A vocabulary without a model; and ChatGLM's own code, which also stops where the user's turn begins.
        stops = None
    odd = [value for value in named if not isinstance(value, int) or isinstance(value, bool)]
    return Ends(None if stops is None else tuple(stops), tuple(ids), tuple(odd))


def _listed(section: Mapping[str, Any]) -> list[Any]:
    value = section.get("eos_token_id")
    return value if isinstance(value, list) else [] if value is None else [value]


def _decoders(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The section of the text model, as Transformers looks for it."""
    for name in ("decoder", "generator", "text_config"):
        section = config.get(name)
        if isinstance(section, Mapping) and section:
            yield section
            return


def place_ends(
    ends: Ends,
    roles: Mapping[str, int],
    tokens: Sequence[str],
    types: Sequence[int],
    *,
    source: str,
) -> tuple[dict[str, int], Metadata]:
    """Find a place for end tokens besides EOS; warn of those at which llama.cpp will not stop, and of impossible ones.

    Parameters
    ----------
    ends : Ends
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
        What `stored_ends` reads, if `default_ends` would give another list than the folder has.
    """
    _tell_impossible(ends, len(tokens), source)
    wanted = [index for index in ends.named if 0 <= index < len(tokens)]
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
    default = default_ends({**roles, **placed}, tokens, types)
    stops = default if ends.stops is None else [index for index in ends.stops if 0 <= index < len(tokens)]
    if stops != default:
        values = {END_IDS: array(ValueType.I32, stops)} if stops else {NO_END: boolean(True)}
    if lost:
        listed = ", ".join(f"{tokens[index]!r} ({index})" for index in lost)
        warnings.warn(
            f"{source}: llama.cpp will not stop at {listed}: a GGUF file has room for no more end tokens; "
            f"{END_IDS} keeps them for other programs",
            UserWarning,
            stacklevel=2,
        )
    return placed, values


def _tell_impossible(ends: Ends, size: int, source: str) -> None:
    out = [index for index in ends.named if not 0 <= index < size]
    if out or ends.odd:
        listed = ", ".join(repr(value) for value in (*out, *ends.odd))
        warnings.warn(
            f"{source}: eos_token_id lists {listed}, left out: this vocabulary has the ids 0 to {size - 1}",
            UserWarning,
            stacklevel=3,
        )


def stored_ends(metadata: Metadata, size: int) -> list[int] | None:
    """End tokens that a file lists, without those that are no tokens; None if it does not list any.

    Parameters
    ----------
    metadata : Metadata
        Key-value section of a GGUF file.
    size : int
        Number of its tokens.
    """
    value = metadata.get(END_IDS)
    if value is not None and value.type == ValueType.ARRAY and value.item in INTEGERS:
        found = list(dict.fromkeys(int(index) for index in value.data if 0 <= int(index) < size))
        if found:
            return found
    return [] if metadata.get(NO_END) == boolean(True) else None


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
