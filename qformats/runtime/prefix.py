"""What stands in front of a text that continues no prompt."""

from __future__ import annotations

from collections.abc import Callable

from qformats.interfaces.checkpoint import Checkpoint
from qformats.registry import registry

__all__ = ["beginning_of", "text_prefix"]


def text_prefix(source: Checkpoint) -> tuple[int, ...]:
    """Ids that a model needs in front of every text; none where its tokenizer knows them.

    Examples
    --------
    >>> import qformats
    >>> from qformats.runtime.prefix import text_prefix
    >>> text_prefix(qformats.open("demo"))
    ()
    """
    found = registry().model_for(source.config)
    return () if found is None else found.text_prefix(source.config)


def beginning_of(source: Checkpoint, ids: Callable[[str, bool], list[int]]) -> list[int]:
    """Ids that precede every text: those that the model needs, or those that its tokenizer puts in front, if any.

    Parameters
    ----------
    source : Checkpoint
        The model.
    ids : callable
        Ids of a text, with or without those that the tokenizer adds.
    """
    prefix = text_prefix(source)
    if prefix:
        return list(prefix)
    plain, special = ids("a", False), ids("a", True)
    starts = range(len(special) - len(plain) + 1)
    return special[: next((at for at in starts if special[at : at + len(plain)] == plain), 0)]
