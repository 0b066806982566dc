"""What stands in front of a text that continues no prompt."""

from __future__ import annotations

from qformats.interfaces.checkpoint import Checkpoint
from qformats.registry import registry

__all__ = ["text_prefix"]


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
