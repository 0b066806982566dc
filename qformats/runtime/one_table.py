"""An output layer that repeats the embedding, held once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.folder.tied import settle_ties
from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors
from qformats.interfaces.stored import StoredTensor
from qformats.registry import registry

__all__ = ["with_one_table"]

_KEY = "tie_word_embeddings"


class _OneTable(ReplacedTensors):
    """A model without the copy, whose configuration ties the two."""

    def __init__(
        self, source: Checkpoint, tensors: Mapping[str, StoredTensor], config: dict[str, Any]
    ) -> None:
        super().__init__(source, {})
        self.tensors = dict(tensors)
        self.__dict__["config"] = config


def with_one_table(source: Checkpoint) -> Checkpoint:
    """A model that is run by a plugin's class, without its output layer if that equals the embedding.

    Models that Transformers runs say in their configuration whether the two are tied, and are read so. Files of others
    may hold the same table twice: in ChatGLM-6B it is a gigabyte.

    Examples
    --------
    >>> import qformats
    >>> from qformats.runtime.one_table import with_one_table
    >>> model = qformats.open("demo")
    >>> with_one_table(model) is model
    True
    """
    if registry().model_for(source.config) is None or source.config.get(_KEY):
        return source
    settled = settle_ties(source.tensors, source.config | {_KEY: True})
    if not settled.config[_KEY] or len(settled.tensors) == len(source.tensors):
        return source
    return _OneTable(source, settled.tensors, settled.config)
