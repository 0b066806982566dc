"""Tables of up to 16 levels in the device layout: in an order and a form suited to look-up by byte permutes.

The fused kernels look codes up in 16 bits. Level ``j`` and level ``j + 8`` are paired so that both have the same sign,
and all levels are stretched by a factor at which the low bytes of each pair agree in their top bit too: then the
cheaper of two look-ups works (see ``paired_assembly``). The product is divided by the factor once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["ENTRIES", "Codebook", "canonical_codes", "canonical_levels", "lookup_of", "make_codebook"]

ENTRIES = 16
"""Levels of a table; shorter tables are padded with zeros."""
_TRIED = 4096
"""Factors between 1 and 2 that are tried."""
_CODES, _LOOKUP = 48, 64


class Codebook(NamedTuple):
    """A table in the device layout.

    Attributes
    ----------
    words : Tensor
        int32, ``(100,)``: the bits of 16 float32 levels by device code; the same stretched, and rounded to float16; to
        bfloat16; the canonical code of each device code; 65536; eight words of byte tables for float16, eight for
        bfloat16, 16 for float32; the bits of two float32 numbers that undo the stretching; 0.
    device_code : Tensor
        int32, ``(16,)``, by canonical code.
    paired : tuple of bool
        Whether the cheaper look-up works, for float16 and for bfloat16.
    """

    words: Tensor
    device_code: Tensor
    paired: tuple[bool, bool]


def canonical_levels(words: Tensor) -> Tensor:
    """Levels by canonical code, float32 ``(16,)``."""
    import torch

    levels = torch.empty(ENTRIES, dtype=torch.float32, device=words.device)
    levels[canonical_codes(words).long()] = words[:ENTRIES].view(torch.float32)
    return levels


def canonical_codes(words: Tensor) -> Tensor:
    """Canonical code of each device code, int32 ``(16,)``."""
    return words[_CODES : _CODES + ENTRIES]


def lookup_of(words: Tensor) -> Tensor:
    """65536 and the byte tables, int32."""
    return words[_LOOKUP:]


def _negatives(levels: Tensor) -> Tensor | None:
    """Which levels count as negative, an even number of them; None if no sign of a zero makes it even."""
    negative = levels < 0
    zeros = (levels == 0).nonzero().flatten()
    if int(negative.sum()) % 2:
        if not len(zeros):
            return None
        negative[zeros[0]] = True
    return negative


def _agreeing(tops: list[Tensor], negative: Tensor) -> list[int] | None:
    """Factors, one per dtype, at which levels of one sign can be paired so that top bits agree in every dtype.

    Parameters
    ----------
    tops : list of Tensor
        bool, ``(factors, 16)``: the top bit of the low byte of each stretched level.
    negative : Tensor
        bool, ``(16,)``.
    """
    import torch

    same = torch.zeros((1, ENTRIES), dtype=torch.int64) + negative
    choices: list[list[int]] = [[]]
    for top in tops:
        # Few patterns are different, since a factor moves the top bits slowly.
        patterns, place = torch.unique(top, dim=0, return_inverse=True)
        first = [int((place == number).nonzero()[0, 0]) for number in range(len(patterns))]
        same = (2 * same[:, None] + patterns[None]).reshape(-1, ENTRIES)
        choices = [[*chosen, factor] for chosen in choices for factor in first]
    kinds = torch.nn.functional.one_hot(same, 2 << len(tops)).sum(1)
    fitting = (kinds % 2 == 0).all(1).nonzero().flatten()
    return choices[int(fitting[0])] if len(fitting) else None


def _bytes(levels: Tensor, negative: Tensor, dtype: torch.dtype) -> Tensor:
    """Bytes of stretched levels, uint8 ``(..., 16, bytes of dtype)``; zeros have the sign of their pair."""
    import torch

    signed = torch.where(negative, -levels.abs(), levels)
    return signed.to(dtype).contiguous().view(torch.uint8).reshape(*levels.shape, -1)


def _packed(by_plane: Tensor) -> Tensor:
    """Bytes ``(planes, 16)`` as words."""
    import torch

    return by_plane.contiguous().view(torch.int32).reshape(-1)


def make_codebook(levels: Tensor) -> Codebook:
    """Arrange a table; the search for a table runs once.

    Parameters
    ----------
    levels : Tensor
        float32, ``(16,)``, weight units per step.

    Returns
    -------
    Codebook
        On the device of `levels`.
    """
    found = _search(tuple(levels.tolist()))
    place = levels.device
    return found._replace(words=found.words.to(place), device_code=found.device_code.to(place))


@functools.lru_cache(maxsize=64)
def _search(levels: tuple[float, ...]) -> Codebook:
    import torch

    values = torch.tensor(levels, dtype=torch.float32)
    negative = _negatives(values)
    factors = 1 + torch.arange(_TRIED, dtype=torch.float32) / _TRIED
    dtypes = (torch.float16, torch.bfloat16)
    order, paired, chosen = torch.arange(ENTRIES), [False, False], [0, 0]
    if negative is None:
        negative = values < 0
    else:
        tops = [_bytes(factors[:, None] * values, negative, dtype)[:, :, 0] >= 128 for dtype in dtypes]
        for wanted in ([0, 1], [0], [1]):
            found = _agreeing([tops[place] for place in wanted], negative)
            if found is not None:
                kind = negative.to(torch.int64)
                for place, number in zip(wanted, found, strict=True):
                    paired[place], chosen[place] = True, number
                    kind = 2 * kind + tops[place][number]
                lined = torch.argsort(kind, stable=True)
                order = torch.cat([lined[0::2], lined[1::2]])
                break
    negative, sorted_levels = negative[order], values[order]
    stretched, tables, units = [sorted_levels], [], []
    for place, dtype in enumerate(dtypes):
        factor = factors[chosen[place]]
        halves = _bytes(factor * sorted_levels, negative, dtype).t()  # (low and high, 16)
        if paired[place]:
            low, high = halves[:, :8], halves[:, 8:]
            halves = torch.cat([low, torch.where(low >= 128, high ^ 255, high)], 1)
        tables.append(_packed(halves))
        stretched.append((factor * sorted_levels).to(dtype).float())
        units.append(1 / float(factor))
    tables.append(_packed(sorted_levels.view(torch.uint8).reshape(ENTRIES, 4).t()))
    codes = order.to(torch.int32)
    one = torch.tensor([1 << 16], dtype=torch.int32)
    parts = [*stretched, codes, one, *tables, torch.tensor([*units, 0.0], dtype=torch.float32)]
    words = torch.cat([part.contiguous().view(torch.int32) for part in parts])
    device_code = torch.empty_like(codes)
    device_code[codes.long()] = torch.arange(ENTRIES, dtype=torch.int32)
    return Codebook(words, device_code, (paired[0], paired[1]))
