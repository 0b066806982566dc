"""The layers that ChatGLM-6B and GLM-130B share.

Both take the residual from the *normalised* input of each half of a layer, times ``alpha = sqrt(2 * layers)``. Both
keep queries, keys and values of one head next to each other, so that a range of rows is a range of heads; and a gated
feed-forward network keeps two halves, of which a range of rows each is a narrower network. So every module also works
with a share of its heads or of its inner features, whose results are summed over the devices that have the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qformats_glm.models.parallel import summed

if TYPE_CHECKING:
    from transformers import Cache

__all__ = ["Attention", "FeedForward", "GLMLayer", "Rotation", "apply_rotary_pos_emb", "rotation"]

_BLOCKED = -10000.0
"""Score of what a token does not see, before it is scaled: finite, so that a token that sees nothing (padding) averages
over everything instead of giving NaN."""
_BASE = 10000.0

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angles, ``(batch, tokens, head features)``, in the dtype of the states."""


def rotation(positions: Tensor, head_dim: int, config: Any, dtype: torch.dtype) -> Rotation:
    """Angles by which queries and keys are turned.

    Parameters
    ----------
    positions : Tensor
        int64, ``(batch, tokens)``, or ``(batch, 2, tokens)`` to turn each half of a head by a row of its own.
    head_dim : int
        Features of a head.
    config : PreTrainedConfig
        Tells what frequencies are rounded to.
    dtype : torch.dtype
        Of the result.

    Notes
    -----
    Angles are float32, whatever the dtype: in float16 those of a long text are off by up to half a radian.
    """
    width = head_dim // 2 if positions.ndim == 3 else head_dim
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    frequencies = (1.0 / _BASE**steps).to(getattr(torch, config.inv_freq_dtype)).float()
    angles = positions[..., None].float() * frequencies
    # Each angle turns a feature of the first half, and the one as far into the second half.
    angles = torch.cat([angles, angles], -1)
    if positions.ndim == 3:
        angles = torch.cat(angles.unbind(1), -1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rotary_pos_emb(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys ``(batch, heads, tokens, features)``, turned: the two halves of a head are the coordinates.

    Its name and arguments are those of Transformers' models: a captured step puts one launch in its place.
    """

    def turned(states: Tensor) -> Tensor:
        low, high = states.chunk(2, -1)
        return states * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]

    return turned(query), turned(key)


def _attention(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """What the models were trained with, in the terms of Transformers' functions of attention."""
    # Queries are small while they are float16, the scores regain their size in float32.
    small = module.layer_idx + 1
    scores = (query / (module.head_dim**0.5 * small)) @ key.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, _BLOCKED)
    chances = torch.softmax(scores.float() * small, -1).to(query.dtype)
    return (chances @ value).transpose(1, 2), None


class Attention(nn.Module):
    """Attention with a bias on all projections.

    Parameters
    ----------
    config : PreTrainedConfig
        Sizes.
    number : int
        Of the layer, from 0.
    """

    def __init__(self, config: Any, number: int) -> None:
        super().__init__()
        hidden, self.ranks = config.hidden_size, config.tensor_parallel_size
        self.config, self.layer_idx, self.head_dim = config, number, hidden // config.num_attention_heads
        self.parts = 2 if config.position_encoding_2d else 1
        own = hidden // self.ranks
        self.query_key_value = nn.Linear(hidden, 3 * own)
        self.dense = nn.Linear(own, hidden, bias=config.tensor_parallel_rank == 0)

    def forward(self, states: Tensor, seen: Tensor | None, turn: Rotation, cache: Cache | None) -> Tensor:
        """``(batch, tokens, hidden)`` to the same; `seen` is as in :class:`GLMLayer`."""
        fused = self.query_key_value(states).unflatten(-1, (-1, 3 * self.head_dim)).transpose(1, 2)
        query, key, value = fused.chunk(3, -1)
        # Each part of a head is turned by itself.
        parts = zip(*(each.chunk(self.parts, -1) for each in (query, key, *turn)), strict=True)
        turned = [apply_rotary_pos_emb(*part) for part in parts]
        query, key = (
            turned[0] if self.parts == 1 else (torch.cat(each, -1) for each in zip(*turned, strict=True))
        )
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        named = self.config._attn_implementation
        attend = _attention if named == "eager" else ALL_ATTENTION_FUNCTIONS[named]
        found, _ = attend(self, query, key, value, seen, scaling=self.head_dim**-0.5)
        mixed: Tensor = self.dense(found.flatten(2))
        return summed(mixed, self.ranks)


class FeedForward(nn.Module):
    """Feed-forward network with a bias on both projections.

    Parameters
    ----------
    config : PreTrainedConfig
        Sizes.
    gated : bool
        Whether a second half of the first projection gates the first half (GEGLU, with the exact GELU); otherwise the
        GELU is its approximation by tanh.
    """

    def __init__(self, config: Any, *, gated: bool) -> None:
        super().__init__()
        self.gated, self.ranks = gated, config.tensor_parallel_size
        own = config.inner_hidden_size // self.ranks
        self.dense_h_to_4h = nn.Linear(config.hidden_size, own * (2 if gated else 1))
        self.dense_4h_to_h = nn.Linear(own, config.hidden_size, bias=config.tensor_parallel_rank == 0)

    def forward(self, states: Tensor) -> Tensor:
        """``(batch, tokens, hidden)`` to the same."""
        inner = self.dense_h_to_4h(states)
        if self.gated:
            first, second = inner.chunk(2, -1)
            inner = first * functional.gelu(second)
        else:
            inner = functional.gelu(inner, approximate="tanh")
        result: Tensor = self.dense_4h_to_h(inner)
        return summed(result, self.ranks)


class GLMLayer(GradientCheckpointingLayer):
    """One layer.

    Parameters
    ----------
    config : PreTrainedConfig
        Sizes.
    number : int
        Of the layer, from 0.
    gated : bool
        As in :class:`FeedForward`.
    """

    def __init__(self, config: Any, number: int, *, gated: bool) -> None:
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)

        self.alpha = (2 * config.num_layers) ** 0.5
        self.input_layernorm = norm()
        self.attention = Attention(config, number)
        self.post_attention_layernorm = norm()
        self.mlp = FeedForward(config, gated=gated)

    def forward(
        self,
        hidden_states: Tensor,
        seen: Tensor | None = None,
        turn: Rotation | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Hidden states before the layer to those after it.

        Parameters
        ----------
        hidden_states : Tensor
            ``(batch, tokens, hidden)``.
        seen : Tensor, optional
            bool, ``(batch, 1, tokens, keys)``: which keys each token sees; all by default.
        turn : Rotation
            From :func:`rotation`.
        past_key_values : Cache, optional
            Keys and values of earlier tokens, to which those of these are added.
        """
        assert turn is not None
        states = self.input_layernorm(hidden_states)
        states = states * self.alpha + self.attention(states, seen, turn, past_key_values)
        states = self.post_attention_layernorm(states)
        result: Tensor = states * self.alpha + self.mlp(states)
        return result
