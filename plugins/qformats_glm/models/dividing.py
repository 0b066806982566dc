"""The share of one device of tensor parallelism: the model's tensors cut by the rules of rank folders."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from qformats import Checkpoint, StoredTensor
from qformats.errors import ConfigError, ShapeError
from qformats.interfaces import ReplacedTensors, concat_rows
from qformats_glm.ranks.columns import cut_columns
from qformats_glm.ranks.rules import Kind, Sharding

__all__ = ["Share"]

_ADDED_ONCE = re.compile(r"(?:attention\.dense|dense_4h_to_h)\.bias$")
"""Biases of layers whose results are summed over the devices: the first device adds them."""


class Share(ReplacedTensors):
    """What one device holds of a GLM.

    Parameters
    ----------
    source : Checkpoint
        The whole model.
    rank, ranks : int
        Which device, from 0, of how many.
    gated : bool
        Whether the feed-forward networks are gated.

    Raises
    ------
    ConfigError
        If the heads or the vocabulary cannot be divided so.
    """

    def __init__(self, source: Checkpoint, rank: int, ranks: int, *, gated: bool) -> None:
        heads = source.config.get("num_attention_heads")
        rules = Sharding(glu=gated, heads=heads if isinstance(heads, int) and heads > 0 else None)
        rules.check_ranks(ranks)
        try:
            parts = {name: _part(tensor, rules, rank, ranks) for name, tensor in source.tensors.items()}
        except ShapeError as error:
            raise ConfigError("tensor parallelism", f"{ranks} devices", str(error)) from error
        super().__init__(source, parts)
        if rank:
            once = [name for name in self.tensors if _ADDED_ONCE.search(name)]
            self.left_out = {**self.left_out, **dict.fromkeys(once, "added by the first device")}
            self.tensors = {name: part for name, part in self.tensors.items() if name not in once}
        self._place = {"tensor_parallel_size": ranks, "tensor_parallel_rank": rank}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The whole model's, and which share of it this is."""
        return self.source.config | self._place


def _part(tensor: StoredTensor, rules: Sharding, rank: int, ranks: int) -> StoredTensor:
    kind = rules.kind(tensor.name)
    if kind is Kind.REPLICATED:
        return tensor
    if kind is Kind.COLUMNS:
        return cut_columns(tensor, rank, ranks)
    parts = [
        tensor.slice_rows(start, stop) for start, stop in rules.rows_of(tensor.name, tensor.rows, ranks, rank)
    ]
    return parts[0] if len(parts) == 1 else concat_rows(tensor.name, parts)
