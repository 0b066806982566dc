"""Where AutoAWQ's layouts keep the code of a weight.

All of them hold codes of 4 bits and differ in the order:

- ``gemm``: a word of ``qweight`` ``(K, N / 8)`` holds 8 outputs of one column, in the order 0, 2, 4, 6, 1, 3, 5, 7 from
  its lowest bits; zero points likewise.
- ``gemv``: a word of ``qweight`` ``(N, K / 8)`` holds 8 columns of one output, in order; zero points ``(N, Z)``
  likewise, and scales ``(N, 8 Z)``, where only the first ``K / group`` columns count.
- ``gemv_fast`` and ``llm-awq``: numbers of 16 bits, ``(N / 4, K)``. 64 of them hold 64 columns of 4 outputs, one output
  after the other, each column at the place that two shuffles of 32 and of 8 leave it at. Scales and offsets are floats,
  ``(8 Z, N)``.

Source: AutoAWQ:awq/modules/linear/gemm.py, gemv.py, gemv_fast.py; llm-awq:awq/quantize/qmodule.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.errors import ConfigError
from qformats.numbers import empty, pack_bits, unpack_bits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["from_fast", "interleave", "padded_groups", "plain", "separate", "to_fast"]

BITS = 4
IN_A_WORD = 8
_TOP = 15
_PAIRS = ((0, 2), (4, 6), (1, 3), (5, 7))
"""Outputs in the low and the high half of each byte of a word of gemm."""


def interleave(values: Tensor) -> Tensor:
    """Words of gemm.

    Parameters
    ----------
    values : Tensor
        Codes or zero points, any integer dtype, ``(N, C)``, `N` a multiple of 8; contiguous ones are packed faster.

    Returns
    -------
    Tensor
        int32, ``(C, N / 8)``.

    Raises
    ------
    ConfigError
        If a number does not fit 4 bits.
    """
    import torch

    signed = values.dtype != torch.uint8
    if values.numel() and ((signed and int(values.min()) < 0) or int(values.max()) > _TOP):
        raise ConfigError("codes", f"[{int(values.min())}, {int(values.max())}]", f"[0, {_TOP}]")
    outputs, columns = values.shape
    if values.device.type == "cpu":
        from qformats_awq import kernels

        words = empty((columns, outputs // IN_A_WORD), torch.int32)
        kernels.join(values.to(torch.uint8).contiguous().numpy(), words.numpy())
        return words
    parts = values.to(torch.uint8).reshape(outputs // IN_A_WORD, IN_A_WORD, columns)
    words = torch.zeros((outputs // IN_A_WORD, columns), dtype=torch.int32, device=values.device)
    # Joined along the outputs first: an eighth of the numbers is left to be transposed.
    for byte, (low, high) in enumerate(_PAIRS):
        words |= (parts[:, low] | parts[:, high] << BITS).to(torch.int32) << (8 * byte)
    return words.t().contiguous()


def separate(packed: Tensor) -> Tensor:
    """Codes or zero points of words of gemm, the inverse of :func:`interleave`: uint8, ``(N, C)`` of ``(C, N / 8)``."""
    import torch

    if packed.device.type == "cpu":
        from qformats_awq import kernels

        codes = empty((IN_A_WORD * packed.shape[1], packed.shape[0]), torch.uint8)
        kernels.split(packed.contiguous().numpy(), codes.numpy())
        return codes
    words = packed.t().clone(memory_format=torch.contiguous_format)
    columns = words.shape[1]
    stored = words.view(torch.uint8).view(words.shape[0], columns, 4)
    parts = torch.empty((words.shape[0], IN_A_WORD, columns), dtype=torch.uint8, device=packed.device)
    for byte, (low, high) in enumerate(_PAIRS):
        parts[:, low], parts[:, high] = stored[..., byte] & _TOP, stored[..., byte] >> BITS
    return parts.view(-1, columns)


def plain(packed: Tensor) -> Tensor:
    """Codes or zero points of words in their order: uint8, ``(R, 8 C)`` of int32 ``(R, C)``."""
    return unpack_bits(_bytes(packed), BITS, IN_A_WORD * int(packed.shape[1]))


def from_fast(numbers: Tensor) -> Tensor:
    """Codes of gemv_fast.

    Parameters
    ----------
    numbers : Tensor
        int16, ``(N / 4, K)``, `K` a multiple of 64.

    Returns
    -------
    Tensor
        uint8, ``(N, K)``.
    """
    quads, columns = numbers.shape
    nibbles = unpack_bits(_bytes(numbers), BITS, 4 * columns)
    rows = (
        nibbles.view(quads, columns // 64, 4, 64).transpose(1, 2).reshape(4 * quads, columns // 32, 4, 2, 4)
    )
    # Column 8 a + 2 b + c of 32 lies at place 8 b + 4 c + a.
    return rows.permute(0, 1, 4, 2, 3).reshape(4 * quads, columns)


def to_fast(codes: Tensor) -> Tensor:
    """Numbers of gemv_fast, the inverse of :func:`from_fast`: int16, ``(N / 4, K)``."""
    import torch

    rows, columns = codes.shape
    shuffled = codes.reshape(rows, columns // 32, 4, 4, 2).permute(0, 1, 3, 4, 2).reshape(rows, columns)
    interleaved = (
        shuffled.view(rows // 4, 4, columns // 64, 64).transpose(1, 2).reshape(rows // 4, 4 * columns)
    )
    return pack_bits(interleaved, BITS).contiguous().view(torch.int16)


def padded_groups(columns: int, group: int) -> int:
    """Groups for which gemv and gemv_fast have room: multiples of 8, 16 (groups of 64) or 32 (groups of 32)."""
    unit = 8 * {64: 2, 32: 4}.get(group, 1)
    return -(-(columns // group) // unit) * unit


def _bytes(packed: Tensor) -> Tensor:
    """Bytes of each row: uint8, ``(R, bytes of a row)``."""
    import torch

    # A single column with a gap behind it counts as contiguous, and still has no view of its bytes.
    whole = packed.is_contiguous() and packed.stride(-1) == 1
    return (packed if whole else packed.clone(memory_format=torch.contiguous_format)).view(torch.uint8)
