"""Codes in words of 16 bits, and the orders of their bits that decode with the fewest instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.kernels.form import STRIP

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["codes_of_plane", "mix_floats", "pair_nibbles", "plane_of"]

_PLACES_OF_BITS = {
    8: [(n, n) for n in range(7)] + [(7, 14)] + [(8 + n, 7 + n) for n in range(7)] + [(15, 15)],
    4: [
        (4 * strip + n, 8 * (strip % 2) + [(1, 2, 3, 7), (4, 5, 6, 0)][strip // 2][n])
        for strip in range(4)
        for n in range(4)
    ],
}
"""Natural place of each bit of a word, and its place for the decode; see :func:`mix_floats`."""


def plane_of(codes: Tensor, width: int) -> Tensor:
    """Pack codes below ``2 ** width``, int32 ``(N, padded K)``."""
    import torch

    rows = len(codes)
    count = 16 // width
    strips = codes.reshape(rows, -1, STRIP)
    packed = torch.zeros((rows, strips.shape[1] // count, STRIP), dtype=torch.int32, device=codes.device)
    for place in range(count):
        packed |= strips[:, place::count] << (width * place)
    return _to_int16(packed).transpose(0, 1).contiguous()


def codes_of_plane(plane: Tensor, width: int) -> Tensor:
    """Codes of a plane, the reverse of :func:`plane_of`: int32 ``(N, padded K)``."""
    import torch

    words = plane.transpose(0, 1).to(torch.int32) & 0xFFFF  # (N, packed strips, 32)
    count = 16 // width
    shifts = torch.arange(0, 16, width, device=plane.device, dtype=torch.int32)
    codes = (words[:, :, None, :] >> shifts[:, None]) & ((1 << width) - 1)
    return codes.reshape(len(words), words.shape[1] * count * STRIP)


def pair_nibbles(words: Tensor, *, back: bool = False) -> Tensor:
    """Exchange nibbles between two neighbouring words, or exchange them back.

    Natural: strip ``i`` of column parity ``p`` is nibble ``i`` of word ``p``. For byte permutes: nibble ``2 i + p`` of
    both words together, so that two results of one permute are two neighbouring columns.

    Parameters
    ----------
    words : Tensor
        int16, ``(packed strips, N, 32)``.
    back : bool
        From the order for byte permutes to the natural one.
    """
    import torch

    pairs = words.reshape(-1, 2).to(torch.int32) & 0xFFFF
    shifts = torch.arange(0, 16, 4, device=words.device, dtype=torch.int32)
    nibbles = (pairs[:, :, None] >> shifts) & 15  # (pairs, word, nibble)
    if back:
        nibbles = nibbles.reshape(-1, 4, 2).transpose(1, 2)
    else:
        nibbles = nibbles.transpose(1, 2).reshape(-1, 2, 4)
    return _to_int16((nibbles << shifts).sum(2, dtype=torch.int32)).reshape(words.shape)


def mix_floats(words: Tensor, bits: int, *, back: bool = False) -> Tensor:
    """Move the bits of floats within their words to where the decode needs the fewest shifts, or move them back.

    Natural: the strips' floats one after the other, the first in the lowest bits. For the decode, the highest bit
    first: signs ``s`` and what is behind them, of strip 0, ``a``, to strip 3, ``d``.

    - 8 bits: ``sb sa bbbbbbb aaaaaaa``. One shift away float16 has both.
    - 4 bits, in each byte: ``sa ccc aaa sc`` in the lower one, ``sb ddd bbb sd`` in the upper one. A byte is then the
      upper half of a float16 once all other bits are cleared: for ``a`` and ``b`` at once, for ``c`` and ``d`` a shift
      away.

    Parameters
    ----------
    words : Tensor
        int16, any shape.
    bits : int
        Of a float: 8 or 4.
    back : bool
        From the order for the decode to the natural one.
    """
    import torch

    given = words.to(torch.int32) & 0xFFFF
    mixed = torch.zeros_like(given)
    for natural, own in _PLACES_OF_BITS[bits]:
        source, target = (own, natural) if back else (natural, own)
        mixed |= (given >> source & 1) << target
    return _to_int16(mixed)


def _to_int16(words: Tensor) -> Tensor:
    import torch

    return torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16)
