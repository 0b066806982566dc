"""Zero points: what ``qzeros`` stores, and what readers make of it.

``gptq`` (v1) stores the zero point minus 1, ``gptq_v2`` the zero point itself. A zero point of 0 has no code in v1.
Files hold one nevertheless, as the largest code, and programs read it in three ways (:data:`CONVENTIONS`).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from qformats.errors import ConfigError, Described
from qformats.numbers import pack_bits, unpack_bits

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["CONVENTIONS", "VERSIONS", "constant_words", "pack_zeros", "unpack_zeros"]

VERSIONS = {"gptq": 1, "gptq_v2": 0}
"""What each ``checkpoint_format`` takes off a zero point before it is stored."""

CONVENTIONS = ("mask", "word", "nomask")
"""How the largest code of v1 is read.

``mask``: as 0, each code by itself (exllama, AutoGPTQ's older layer). ``word``: 1 is added to all codes of a word at
once, so that a carry undoes the borrow of the writer (GPTQModel, Optimum). ``nomask``: as ``2**bits``, which only
kernels of Triton and llama.cpp do; such a zero point cannot be kept.
"""


def constant_words(bits: int, outputs: int, field: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """A row of ``qzeros`` that stores the same field for every output.

    Returns
    -------
    ndarray
        int32, ``(outputs * bits / 32,)``.
    """
    import numpy as np

    # 32 fields are `bits` words.
    stream = sum(field << (bits * place) for place in range(32))
    return np.tile(np.frombuffer(stream.to_bytes(4 * bits, "little"), np.int32), outputs // 32)


def pack_zeros(zero: Tensor, bits: int, version: str) -> Tensor:
    """Words of zero points.

    Parameters
    ----------
    zero : Tensor
        Any integer dtype, ``(G, N)``.
    bits : int
        Width of a code.
    version : str
        ``"gptq"`` or ``"gptq_v2"``.

    Returns
    -------
    Tensor
        int32, ``(G, N * bits / 32)``.

    Raises
    ------
    ConfigError
        If a zero point has no code.
    """
    import torch

    fields = zero.to(torch.int16) - VERSIONS[version]
    # Rows are whole words, so that all of them are one stream.
    return pack_bits(fields.reshape(-1), bits).view(torch.int32).view(len(zero), -1)


def unpack_zeros(words: Tensor, bits: int, version: str, convention: str = "mask") -> Tensor:
    """Zero points of ``qzeros``.

    Parameters
    ----------
    words : Tensor
        int32, ``(G, N * bits / 32)``.
    bits : int
        Width of a code.
    version : str
        ``"gptq"`` or ``"gptq_v2"``.
    convention : str
        One of :data:`CONVENTIONS`, for v1.

    Returns
    -------
    Tensor
        int32, ``(G, N)``, in ``[0, 2**bits)``.

    Raises
    ------
    ConfigError
        If the convention gives a zero point beyond the last code.
    """
    import torch

    outputs, top = words.shape[1] * 32 // bits, (1 << bits) - 1

    def codes(stored: Tensor) -> Tensor:
        stream = unpack_bits(stored.contiguous().reshape(-1).view(torch.uint8), bits, len(stored) * outputs)
        return stream.view(len(stored), outputs).to(torch.int32)

    fields = codes(words)
    offset = VERSIONS[version]
    largest = int((fields == top).sum()) if offset else 0
    if not largest:
        return fields + offset
    if convention == "nomask":
        found = Described(f"{largest} stored as {top}, which stands for {top + 1} unless masked")
        raise ConfigError("qzeros", found, f"zero points from 0 to {top}", 'Read them as "mask" or "word"')
    warnings.warn(
        f"GPTQ zero points are stored as {top} in checkpoint_format 'gptq', which has no code for zero points of 0: "
        f"they are read as 0 (convention {convention!r}); other programs may read different weights",
        UserWarning,
        stacklevel=2,
    )
    if convention == "word":
        return codes(words + torch.from_numpy(constant_words(bits, outputs, 1)).to(words.device))
    return (fields + offset) & top
