"""Ranges of rows of packed tensors, on the stored bytes: cut, reordered, joined, fitted into another tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats.errors import ConfigError
from qformats.interfaces.packer import PackedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["cut", "join", "pick", "refit", "stack"]


def cut(packed: PackedTensor, start: int, stop: int) -> PackedTensor:
    """Rows ``[start, stop)`` of a packed tensor; both as :meth:`~qformats.Packer.row_step` allows.

    Fields that :meth:`~qformats.Packer.fixed` gives stay whole. Nothing is copied.

    Raises
    ------
    ConfigError
        If the tensor cannot be cut there.

    Examples
    --------
    >>> import torch, qformats
    >>> from qformats.interfaces import cut
    >>> packed = qformats.packer("gguf:q8_0").encode_reference(torch.randn(8, 64))
    >>> part = cut(packed, 2, 5)
    >>> part.shape, bool((part.dequantize() == packed.dequantize()[2:5]).all())
    ((3, 64), True)
    """
    packer, rows = packed.packer, packed.shape[0]
    if (start, stop) == (0, rows):
        return packed
    step = packer.row_step(packed.shape)
    if not step or start % step or (stop % step and stop != rows):
        allowed = f"multiples of {step}" if step else f"all {rows} rows"
        raise ConfigError(f"rows of {packer.name}", (start, stop), allowed)
    shape = (stop - start, *packed.shape[1:])
    stored, whole = packer.stored(shape), packer.fixed(packed.shape, "f32")
    fields = {}
    for name, value in packed.fields.items():
        if name not in whole:
            first, last = packer.span(name, packed.shape, start, stop)
            size = value.element_size()
            value = value.reshape(-1)[first // size : last // size].view(stored[name][0])
        fields[name] = value
    return PackedTensor(packer, shape, fields)


def pick(packed: PackedTensor, order: Tensor) -> PackedTensor:
    """Rows of a packed tensor in another order, if each row is a range of its own (``row_step`` is 1).

    Parameters
    ----------
    packed : PackedTensor
        Not modified.
    order : Tensor
        int64, ``(M,)``: new row ``i`` is old row ``order[i]``.
    """
    packer = packed.packer
    whole, shape = packer.fixed(packed.shape, "f32"), (len(order), *packed.shape[1:])
    stored = packer.stored(shape)
    fields = {
        name: value if name in whole else value.reshape(packed.shape[0], -1)[order].view(stored[name][0])
        for name, value in packed.fields.items()
    }
    return PackedTensor(packer, shape, fields)


def join(parts: Sequence[PackedTensor]) -> PackedTensor:
    """Packed tensors of one format, stacked, if each row is a range of its own.

    Examples
    --------
    >>> import torch, qformats
    >>> from qformats.interfaces import join
    >>> packer = qformats.packer("gguf:q8_0")
    >>> join([packer.encode_reference(torch.ones(rows, 64)) for rows in (2, 3)]).shape
    (5, 64)
    """
    import torch

    first = parts[0]
    whole = first.packer.fixed(first.shape, "f32")
    fields = {
        name: value if name in whole else torch.cat([part.fields[name] for part in parts])
        for name, value in first.fields.items()
    }
    return PackedTensor(first.packer, (sum(p.shape[0] for p in parts), *first.shape[1:]), fields)


def stack(shape: tuple[int, ...], parts: Sequence[PackedTensor]) -> PackedTensor:
    """Packed ranges of rows of one format below each other, each as ``row_step`` allows, as a tensor of `shape`."""
    import torch

    from qformats.numbers.dtypes import torch_dtype

    packer = parts[0].packer
    whole = packer.fixed(shape, "f32")
    fields: dict[str, Tensor] = {}
    for name, (dims, dtype) in packer.stored(shape).items():
        if name in whole:
            fields[name] = parts[0].fields[name]
            continue
        values = torch.empty(dims, dtype=torch_dtype(dtype))
        into = values.reshape(-1).view(torch.uint8)
        start = 0
        for part in parts:
            first, last = packer.span(name, shape, start, start + part.shape[0])
            into[first:last] = part.fields[name].contiguous().reshape(-1).view(torch.uint8)
            start += part.shape[0]
        fields[name] = values
    return PackedTensor(packer, shape, fields)


def refit(part: PackedTensor, shape: Sequence[int]) -> PackedTensor:
    """Rows for a tensor of a shape other than they were packed for, with that tensor's fixed fields."""
    packer = part.packer
    fixed = packer.fixed(shape, packer.made_from(part)) if packer.quantizes else {}
    return replace(part, fields={**part.fields, **fixed}) if fixed else part
