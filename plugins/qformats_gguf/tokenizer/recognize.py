r"""llama.cpp's name for the way a tokenizer.json splits text.

Definitions are compared by structure after equivalent spellings are made equal: nested sequences, ``Digits``
and ``Split``, ByteLevel's built-in expression and the same one written out, the many ways to write the
English contractions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import SequenceMatcher
from functools import cache
from typing import Any

from qformats.errors import ConfigError, Described, UnsupportedModelError

from .pretokenizers import ACCEPTED, BY_NAME, PRE_TOKENIZERS, SPLITTERS

__all__ = ["checked_name", "choose", "nearest", "splitter_of"]

_Step = tuple[Any, ...]
_ALIKE = 0.6
"""Share of equal characters from which a definition is worth naming."""
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLINGS = (
    ("\r", r"\r"),
    ("\n", r"\n"),
    ("\t", r"\t"),
    # Possessive quantifiers: no expression of the table can backtrack into them.
    ("?+", "?"),
    ("++", "+"),
    ("*+", "*"),
    (r"\p{N}{1}", r"\p{N}"),
    (r"\p{N}{1,1}", r"\p{N}"),
    (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ENGLISH),
    (r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|", _ENGLISH + "|"),
    (r"'(?i:[sdmt]|ll|ve|re)|", _ENGLISH + "|"),
    (r"'(?:[sdmt]|ll|ve|re)|", "'s|'t|'re|'ve|'m|'ll|'d|"),
    # Greedy whitespace already swallows all line ends but the last.
    (r"\s*[\r\n]|", r"\s*[\r\n]+|"),
    (r" ?[^(\s|.,!?…。，、।۔،)]+", r" ?[^(\s|[.,!?…。，、।۔،])]+"),  # noqa: RUF001
)


def _pattern(text: str) -> str:
    for spelling, common in _SPELLINGS:
        text = text.replace(spelling, common)
    return text


def _steps(definition: Any) -> Iterable[_Step]:
    """Yield the steps of a ``pre_tokenizer`` value in a common spelling."""
    if not isinstance(definition, Mapping):
        yield ("unreadable",)
        return
    kind = definition.get("type")
    if kind == "Sequence":
        parts = definition.get("pretokenizers")
        for part in parts if isinstance(parts, list) else [None]:
            yield from _steps(part)
    elif kind == "ByteLevel":
        if definition.get("add_prefix_space", True):
            yield ("prefix space",)
        if definition.get("use_regex", True):
            yield ("split", _GPT2, "Isolated")
        yield ("bytes",)
    elif kind == "Digits":
        yield ("split", r"\p{N}" if definition.get("individual_digits") else r"\p{N}+", "Isolated")
    elif kind == "Punctuation":
        yield ("punctuation", str(definition.get("behavior", "Isolated")))
    elif kind == "Split":
        yield _split_step(definition)
    else:
        yield ("other", str(kind))


def _split_step(definition: Mapping[str, Any]) -> _Step:
    pattern, behavior = definition.get("pattern"), str(definition.get("behavior")).capitalize()
    if not isinstance(pattern, Mapping) or not isinstance(pattern.get("Regex"), str):
        return ("split literal", str(pattern), behavior, bool(definition.get("invert")))
    expression = _pattern(pattern["Regex"])
    # An expression that matches all text leaves nothing between its matches to remove.
    everything = expression.endswith(r"|\s+(?!\S)|\s+")
    if behavior == "Isolated" or (behavior == "Removed" and definition.get("invert") is True and everything):
        return ("split", expression, "Isolated")
    return ("split", expression, behavior, bool(definition.get("invert")))


@cache
def _known() -> dict[tuple[_Step, ...], str]:
    known: dict[tuple[_Step, ...], str] = {}
    for key, splitter in SPLITTERS.items():
        for steps in (splitter.steps, *splitter.also):
            known[tuple(_steps({"type": "Sequence", "pretokenizers": list(steps)}))] = key
    return known


def _normalizers(definition: Any) -> list[str]:
    if definition is None:
        return []
    if not isinstance(definition, Mapping):
        return ["unreadable"]
    if definition.get("type") == "Sequence":
        parts = definition.get("normalizers")
        return [name for part in (parts if isinstance(parts, list) else [0]) for name in _normalizers(part)]
    return [str(definition.get("type"))]


def splitter_of(tokenizer: Mapping[str, Any]) -> str | None:
    """Recognise the definition in a tokenizer.json.

    Parameters
    ----------
    tokenizer : mapping
        The parsed file.

    Returns
    -------
    str or None
        Key of `SPLITTERS`; None if no row has this definition. NFC normalization is ignored, as in llama.cpp.
    """
    if not set(_normalizers(tokenizer.get("normalizer"))) <= {"NFC"}:
        return None
    return _known().get(tuple(_steps(tokenizer.get("pre_tokenizer"))))


def nearest(tokenizer: Mapping[str, Any]) -> str | None:
    """Find the name whose definition is written most like the one in a tokenizer.json.

    Parameters
    ----------
    tokenizer : mapping
        The parsed file.

    Returns
    -------
    str or None
        The plain name of that definition, a hint for people only: what looks alike may split text otherwise. None if
        nothing is alike.
    """

    def written(steps: Iterable[_Step]) -> str:
        return " ".join(str(part) for step in steps for part in step)

    given = written(_steps(tokenizer.get("pre_tokenizer")))
    alike = {
        key: SequenceMatcher(None, given, written(steps), autojunk=False).ratio()
        for steps, key in _known().items()
    }
    best = max(alike, key=alike.__getitem__)
    return next(row.name for row in PRE_TOKENIZERS if row.splitter == best) if alike[best] > _ALIKE else None


def checked_name(pre: str) -> str:
    """Return `pre` if llama.cpp's loader accepts it.

    Raises
    ------
    ConfigError
        If it does not: such a file would not load.
    """
    if pre not in BY_NAME:
        raise ConfigError("--pre", pre, "one of " + ", ".join(ACCEPTED))
    return pre


def choose(
    splitter: str | None,
    *,
    ignore_merges: bool,
    prefer: Iterable[str],
    hashed: Callable[[], str | None],
    merges_reach_all: Callable[[], bool],
    alike: Callable[[], str | None],
    source: str,
) -> str:
    """Choose the name for a definition, by what else the loader concludes from the name.

    Parameters
    ----------
    splitter : str or None
        Result of `splitter_of`.
    ignore_merges : bool
        What tokenizer.json says.
    prefer : iterable of str
        Names that the rest of the model suggests (its ``model_type``), best first.
    hashed : callable
        llama.cpp's own name of the vocabulary, None if it has none. Called only when it decides.
    merges_reach_all : callable
        Whether merging alone produces every token, so that `ignore_merges` changes nothing. Called only when
        no name of the splitter agrees with `ignore_merges`.
    alike : callable
        Name to tell where the definition is unknown. Called only then.
    source : str
        The model, for messages.

    Raises
    ------
    UnsupportedModelError
        If no name stands for this definition.
    """
    if splitter is None:
        name = hashed()
        if name is not None:
            return name
        known = [row.name for row in PRE_TOKENIZERS if row.splitter]
        hint = "if llama.cpp has a name for it, pass that with --pre NAME"
        if (like := alike()) is not None:
            hint = f"it is written most like that of {like}, but is not the same; {hint}"
        found = Described("an unknown definition in tokenizer.json")
        raise UnsupportedModelError(f"{source}: pre-tokenizer", found, known, hint)
    group = [row for row in PRE_TOKENIZERS if row.splitter == splitter]
    agreeing = [row for row in group if row.ignore_merges == ignore_merges]
    if not agreeing:
        if not merges_reach_all():
            raise UnsupportedModelError(
                f"{source}: pre-tokenizer",
                Described(f"the splitter of {group[0].name} with ignore_merges={str(ignore_merges).lower()}"),
                (f"{row.name} (ignore_merges={str(row.ignore_merges).lower()})" for row in group),
                "merges cannot produce some tokens, so none of these is the same; "
                "choose one with --pre NAME if you accept that",
            )
        agreeing = group
    names = [row.name for row in agreeing]
    for name in prefer:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    name = hashed()
    return name if name in names else names[0]
