"""Packing n-bit codes into bytes: one little-endian bit stream along the last dimension.

Code ``j`` occupies bits ``j * bits`` to ``(j + 1) * bits - 1`` of its row, lowest bit first; a row ends on a
byte boundary, its last byte padded with zeros. Viewed as int32 words this is also the order of GPTQ's
``qweight``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.errors import ConfigError, ShapeError
from qformats.numbers.memory import empty

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WIDTHS", "pack_bits", "packed_bytes", "unpack_bits"]

WIDTHS = (2, 3, 4, 5, 6, 8)
"""Code widths that can be packed."""
_PIECE = 1 << 18
"""Pairs of codes at a time: half a megabyte, which a second-level cache holds."""


def _check_width(bits: int) -> None:
    if bits not in WIDTHS:
        raise ConfigError("bits", bits, "one of " + ", ".join(map(str, WIDTHS)))


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take.

    Examples
    --------
    >>> from qformats.numbers import packed_bytes
    >>> packed_bytes(5, 3)
    2
    """
    return (count * bits + 7) // 8


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dimension.

    Parameters
    ----------
    codes : Tensor
        Any integer dtype, shape ``(..., K)``, values in ``[0, 2**bits)``. Not modified.
    bits : int
        One of :data:`WIDTHS`.

    Returns
    -------
    Tensor
        uint8, shape ``(..., ceil(K * bits / 8))``, on the same device.

    Raises
    ------
    ConfigError
        If `bits` is not a known width, `codes` are not integers, or a code does not fit its width.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import pack_bits
    >>> pack_bits(torch.tensor([[1, 2, 3, 4]]), 4).tolist()
    [[33, 67]]
    """
    import torch

    _check_width(bits)
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ConfigError("dtype of codes", str(codes.dtype).removeprefix("torch."), "an integer dtype")
    low = 0 if codes.dtype == torch.uint8 or not codes.numel() else int(codes.min())
    if codes.numel() and (low < 0 or int(codes.max()) >= 1 << bits):
        raise ConfigError("codes", f"[{int(codes.min())}, {int(codes.max())}]", f"[0, {(1 << bits) - 1}]")
    count = codes.shape[-1]
    if bits == 8:
        return codes.to(torch.uint8)
    if bits == 4 and count % 2 == 0 and codes.dtype == torch.uint8:
        # Two codes are a number of 16 bits, whose halves are pushed together: by vectors, in pieces that fit a cache.
        pairs = codes.contiguous().view(torch.int16)
        on_cpu = codes.device.type == "cpu"
        joined = empty(pairs.shape, torch.uint8) if on_cpu else torch.empty_like(pairs, dtype=torch.uint8)
        before, after = pairs.view(-1), joined.view(-1)
        # A GPU waits longer for a launch than for memory.
        step = _PIECE if on_cpu else max(1, before.numel())
        for start in range(0, before.numel(), step):
            piece = before[start : start + step]
            after[start : start + step] = piece | piece >> bits
        return joined
    if 8 % bits == 0:
        each = 8 // bits
        parts = torch.nn.functional.pad(codes.to(torch.uint8), (0, -count % each))
        parts = parts.reshape(*codes.shape[:-1], -(-count // each), each)
        joined = parts[..., 0]
        for place in range(1, each):
            joined = joined | parts[..., place] << (place * bits)
        return joined.contiguous()
    # Eight codes fill exactly `bits` bytes, so every width is the same shift-and-mask over one 64-bit word.
    groups = torch.nn.functional.pad(codes.to(torch.int64), (0, -count % 8))
    groups = groups.reshape(*codes.shape[:-1], -(-count // 8), 8)
    words = (groups << (torch.arange(8, device=codes.device) * bits)).sum(-1, keepdim=True)
    streams = (words >> (torch.arange(bits, device=codes.device) * 8)) & 255
    packed: Tensor = streams.flatten(-2).to(torch.uint8)[..., : packed_bytes(count, bits)]
    return packed


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of :func:`pack_bits`.

    Parameters
    ----------
    packed : Tensor
        uint8, shape ``(..., ceil(count * bits / 8))``. Not modified.
    bits : int
        One of :data:`WIDTHS`.
    count : int
        Codes per row, ``K``.

    Returns
    -------
    Tensor
        uint8, shape ``(..., count)``.

    Raises
    ------
    ShapeError
        If a row does not have the length that `count` codes need.
    ConfigError
        If `bits` is not a known width or `packed` is not uint8.

    Examples
    --------
    >>> import torch
    >>> from qformats.numbers import unpack_bits
    >>> unpack_bits(torch.tensor([[0x21, 0x43]], dtype=torch.uint8), 4, 4).tolist()
    [[1, 2, 3, 4]]
    """
    import torch

    _check_width(bits)
    if packed.dtype != torch.uint8:
        raise ConfigError("dtype of packed codes", str(packed.dtype).removeprefix("torch."), "uint8")
    if packed.shape[-1] != packed_bytes(count, bits):
        raise ShapeError("packed", tuple(packed.shape), f"(..., {packed_bytes(count, bits)}) bytes")
    if bits == 8:
        return packed.clone()
    if bits == 4 and count % 2 == 0:
        pairs = packed.to(torch.int16)
        return (pairs | pairs << bits).bitwise_and_(0x0F0F).view(torch.uint8)
    if 8 % bits == 0:
        mask = (1 << bits) - 1
        parts = torch.stack([packed >> (place * bits) & mask for place in range(8 // bits)], -1)
        return parts.flatten(-2)[..., :count].contiguous()
    streams = torch.nn.functional.pad(packed.to(torch.int64), (0, -packed.shape[-1] % bits))
    streams = streams.reshape(*packed.shape[:-1], streams.shape[-1] // bits, bits)
    words = (streams << (torch.arange(bits, device=packed.device) * 8)).sum(-1, keepdim=True)
    groups = (words >> (torch.arange(8, device=packed.device) * bits)) & ((1 << bits) - 1)
    codes: Tensor = groups.flatten(-2).to(torch.uint8)[..., :count]
    return codes
