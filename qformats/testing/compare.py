"""Whether two tensors are the same, and where they are not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from qformats.interfaces import PackedTensor
from qformats.numbers import QuantizedTensor, dtype_name
from qformats.testing.failure import Mismatch, expect

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["same_bytes", "same_canonical", "same_fields", "same_values", "unchanged"]


def same_values(found: Tensor, expected: Tensor, what: str) -> None:
    """Fail unless all values are equal; -0 equals +0, and NaN is NaN.

    Examples
    --------
    >>> import torch
    >>> from qformats.testing.compare import same_values
    >>> same_values(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]), "values")
    """
    expect(
        found.shape == expected.shape,
        f"{what} of shape {tuple(found.shape)}",
        f"shape {tuple(expected.shape)}",
    )
    wrong = (found != expected) & ~((found != found) & (expected != expected))
    if not bool(wrong.any()):
        return
    at = tuple(wrong.nonzero()[0].tolist())
    # Numbers of float32 are told apart by 9 digits.
    pair = f"{found[at].item():.9g}", f"{expected[at].item():.9g}"
    count = f"{int(wrong.sum())} of {wrong.numel()}"
    raise Mismatch(f"{what}: {count} differ, the first is {pair[0]} at {at}", f"{pair[1]} there")


def same_bytes(found: Tensor, expected: Tensor, what: str) -> None:
    """Fail unless dtypes, shapes and bytes are the same."""
    import torch

    kinds = [f"{dtype_name(part.dtype)} of shape {tuple(part.shape)}" for part in (found, expected)]
    expect(kinds[0] == kinds[1], f"{what}: {kinds[0]}", kinds[1])
    first, second = (part.contiguous().reshape(-1).view(torch.uint8) for part in (found, expected))
    wrong = (first != second).nonzero()
    if not len(wrong):
        return
    at = int(wrong[0])
    raise Mismatch(
        f"{what}: {len(wrong)} of {len(first)} bytes differ, the first is {int(first[at])} at {at}",
        f"{int(second[at])} there",
    )


def same_fields(found: PackedTensor, expected: PackedTensor, what: str, without: Iterable[str] = ()) -> None:
    """Fail unless two packed tensors have the same fields with the same bytes, but for those of `without`."""
    names = [sorted({*part.fields} - {*without}) for part in (found, expected)]
    expect(names[0] == names[1], f"{what}: fields {', '.join(names[0])}", ", ".join(names[1]))
    for name in names[0]:
        same_bytes(found.fields[name], expected.fields[name], f"{what}, field {name!r}")


def same_canonical(found: QuantizedTensor, expected: QuantizedTensor, what: str) -> None:
    """Fail unless two canonical tensors are the same numbers; how they are typed is left open."""
    import torch

    same_values(found.codes.int(), expected.codes.int(), f"{what}, codes")
    expect(
        found.block_size == expected.block_size,
        f"{what}: blocks of {found.block_size}",
        f"blocks of {expected.block_size}",
    )
    for name in ("scale", "zero_point", "minimum", "codebook", "g_idx"):
        parts = [getattr(part, name) for part in (found, expected)]
        if parts[0] is None or parts[1] is None:
            told = ["none" if part is None else "one" for part in parts]
            expect(told[0] == told[1], f"{what}: {name}: {told[0]}", told[1])
            continue
        first, second = (torch.as_tensor(part, dtype=torch.float64) for part in parts)
        # One number may stand for one per block.
        like = first if first.ndim else second
        same_values(first.expand_as(like), second.expand_as(like), f"{what}, {name}")


class unchanged:
    """Context in which tensors must stay what they are.

    Examples
    --------
    >>> import torch
    >>> from qformats.testing.compare import unchanged
    >>> weight = torch.ones(2)
    >>> with unchanged("weight", weight):
    ...     _ = weight + 1
    """

    def __init__(self, what: str, *parts: object) -> None:
        self.what = what
        self.held = [tensor for part in parts for tensor in _tensors(part)]
        self.before = [tensor.clone() for tensor in self.held]

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            for now, before in zip(self.held, self.before, strict=True):
                same_bytes(now, before, f"{self.what} changes its argument")


def _tensors(part: object) -> list[Tensor]:
    import torch

    if isinstance(part, torch.Tensor):
        return [part]
    if isinstance(part, PackedTensor):
        return list(part.fields.values())
    return [value for value in vars(part).values() if isinstance(value, torch.Tensor)]
