"""Where each token of a GLM stands, and what it sees: both follow from the ids.

A text holds a blank (``[MASK]``, ``[gMASK]``), and the answer that fills it begins with ``<sop>``. All of the text
before ``<sop>`` sees all of itself; the answer is read from left to right. What stands in an answer has the position
of its blank, and with a second row of positions counts on there:

=============  =====  =====  =====  ========  =======  =====  =====
ids            t      t      t      [gMASK]   <sop>    a      a
row 0          0      1      2      3         3        3      3
row 1          0      0      0      0         1        2      3
=============  =====  =====  =====  ========  =======  =====  =====
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from qformats.errors import ConfigError, Described

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Answer", "positions", "visible"]


def positions(ids: Tensor, keep: Tensor | None, config: Any, *, continued: bool = False) -> Tensor:
    """Positions of every token.

    Parameters
    ----------
    ids : Tensor
        int64, ``(batch, tokens)``: from the first token of the text on.
    keep : Tensor, optional
        ``(batch, tokens)``, 0 for padding; nothing is padding by default.
    config : PreTrainedConfig
        Of the model.
    continued : bool
        Whether positions of tokens are wanted that follow what a cache holds: the first release of ChatGLM-6B places
        them differently from those that it reads together with the text.

    Returns
    -------
    Tensor
        int64, ``(batch, 2, tokens)`` with two-dimensional positions, else ``(batch, tokens)``; 0 for padding.

    Raises
    ------
    ConfigError
        If a text has no blank, or no ``<sop>``.

    Examples
    --------
    >>> import torch
    >>> from qformats_glm.models.configuration import ChatGLM6BConfig
    >>> from qformats_glm.models.places import positions
    >>> text = torch.tensor([[11, 12, 13, 130001, 130004, 14, 15]])
    >>> positions(text, None, ChatGLM6BConfig()).tolist()
    [[[0, 1, 2, 3, 3, 3, 3], [0, 0, 0, 0, 1, 2, 3]]]
    """
    real = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep.bool()
    begin = _begin(ids, real, config)
    blank, whole = _blank(ids, real, begin, config)
    plain = real.long().cumsum(1) - 1
    answer = torch.arange(ids.shape[1], device=ids.device) >= begin
    repeated = answer
    if not config.position_encoding_2d or (config.first_release and not continued):
        # A blank that is the rest of the text has no fixed place: its tokens count on.
        repeated = answer & ~whole
    row = torch.where(repeated, plain.gather(1, blank), plain)
    row = row.masked_fill(~real, 0)
    if not config.position_encoding_2d:
        return row
    within = torch.where(answer, plain - plain.gather(1, begin) + 1, 0)
    return torch.stack([row, within.masked_fill(~real, 0)], 1)


def visible(ids: Tensor, keep: Tensor | None, config: Any) -> Tensor:
    """What each token sees.

    Parameters
    ----------
    ids, keep, config
        As in :func:`positions`.

    Returns
    -------
    Tensor
        bool, ``(batch, 1, tokens, tokens)``: whether the token of a row sees that of a column. Padding sees nothing
        and is not seen.
    """
    real = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep.bool()
    begin = _begin(ids, real, config)[:, None]
    column = torch.arange(ids.shape[1], device=ids.device)
    seen = (column <= column[:, None]) | (column < begin)
    return (seen & real[:, None, :] & real[:, :, None])[:, None]


@dataclass(frozen=True)
class Answer:
    """Positions of tokens that follow a text, which a cache remembers: its keys do not tell them.

    Attributes
    ----------
    before : int
        Tokens of the text.
    first, rise : Tensor
        int64, ``(batch, 2, 1)`` or ``(batch, 1)``: positions of the next token, and how much they grow with each.
    """

    before: int
    first: Tensor
    rise: Tensor

    @classmethod
    def after(cls, ids: Tensor, keep: Tensor | None, config: Any) -> Answer:
        """What follows a text; the parameters are those of :func:`positions`."""
        two = ids.new_zeros(len(ids), 2)
        kept = None if keep is None else torch.cat([keep, keep.new_ones(len(keep), 2)], 1)
        place = positions(torch.cat([ids, two], 1), kept, config, continued=True)
        return cls(ids.shape[1], place[..., -2:-1], place[..., -1:] - place[..., -2:-1])

    def positions(self, before: int, count: int) -> Tensor:
        """Positions of `count` tokens, with `before` tokens before them."""
        return self.first + self.rise * torch.arange(before - self.before, before - self.before + count).to(
            self.rise.device
        )


def _first(found: Tensor) -> tuple[Tensor, Tensor]:
    """Place of the first true element of each row, ``(batch, 1)``, and whether there is one."""
    return found.int().argmax(1, keepdim=True), found.any(1, keepdim=True)


def _begin(ids: Tensor, real: Tensor, config: Any) -> Tensor:
    """Place of the first ``<sop>`` of each text, ``(batch, 1)``."""
    begin, there = _first((ids == config.bos_token_id) & real)
    if not bool(there.all()):
        found = Described(f"a text without <sop> (id {config.bos_token_id})")
        raise ConfigError("input_ids", found, "a text with a blank, and <sop> where its answer begins", _HOW)
    return begin


_HOW = "The model's tokenizer adds both: put the ids of [gMASK] and <sop> behind the prompt"


def _blank(ids: Tensor, real: Tensor, begin: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Place of the blank of each text, and whether it stands for the rest of the text; both ``(batch, 1)``."""
    text = real & (torch.arange(ids.shape[1], device=ids.device) < begin)
    place = torch.zeros_like(begin)
    whole = missing = torch.ones_like(begin, dtype=torch.bool)
    for token, rest in config.blanks:
        if token is None:
            continue
        first, there = _first((ids == token) & text)
        new = missing & there
        place = torch.where(new, first, place)
        whole = torch.where(new, rest, whole)
        missing = missing & ~there
    if bool(missing.any()):
        tokens = " or ".join(str(token) for token, _ in config.blanks if token is not None)
        found = Described(f"a text without a mask token (id {tokens}) before <sop>")
        raise ConfigError("input_ids", found, "a text with a blank", _HOW)
    return place, whole
