"""What the devices of tensor parallelism exchange, over torch's default process group.

Every device has some of the heads, of the inner features and of the vocabulary, and all of the hidden features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qformats.errors import ConfigError, Described
from qformats.work.outside import outside

__all__ = ["SharedEmbedding", "gathered", "summed"]


def summed(partial: Tensor, ranks: int) -> Tensor:
    """Sum of what each device has computed from its share of the inputs.

    Raises
    ------
    ConfigError
        If a gradient would have to flow through it.
    """
    if ranks == 1:
        return partial
    _refuse_gradients(partial)
    outside(lambda: torch.distributed.all_reduce(partial))
    return partial


def gathered(part: Tensor, ranks: int) -> Tensor:
    """Last axis of every device's result, one after the other.

    Raises
    ------
    ConfigError
        If a gradient would have to flow through it.
    """
    if ranks == 1:
        return part
    _refuse_gradients(part)
    own = part.contiguous()
    parts = [torch.empty_like(own) for _ in range(ranks)]
    outside(lambda: torch.distributed.all_gather(parts, own))
    return torch.cat(parts, -1)


def _refuse_gradients(states: Tensor) -> None:
    if states.requires_grad and torch.is_grad_enabled():
        found = Described("a model on several devices")
        raise ConfigError("training", found, "one device: tensor parallelism is for inference")


class SharedEmbedding(nn.Module):
    """A range of an embedding's rows on each device.

    Parameters
    ----------
    config : PreTrainedConfig
        Sizes, and which device this is.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ranks = config.tensor_parallel_size
        self.rows = config.vocab_size // self.ranks
        self.first = self.rows * config.tensor_parallel_rank

    def forward(self, embedding: Any, ids: Tensor) -> Tensor:
        """Rows of the whole embedding: those of other devices count as zeros, and all are summed."""
        if self.ranks == 1:
            states: Tensor = embedding(ids)
            return states
        own = ids - self.first
        here = (own >= 0) & (own < self.rows)
        found = embedding(own.clamp(0, self.rows - 1)) * here[..., None]
        return summed(found, self.ranks)
