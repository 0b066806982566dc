"""The processes of one calibration, each on a device of its own: they share out samples and rows.

Every process runs the same steps over its share of the text. What they find out about the inputs of a layer is summed,
then each of them quantizes a range of the layer's rows, and all of them get the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.rows import stack
from qformats.numbers.float4 import Float4Grid
from qformats.numbers.quantized import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ALONE", "Finished", "Team"]

Thing = TypeVar("Thing")


@dataclass(frozen=True)
class Team:
    """Which of how many processes this is; they are connected by torch's default process group.

    Attributes
    ----------
    rank, size : int
        Number of this process, from 0, and how many there are.

    Examples
    --------
    >>> from qformats.calibration.team import Team
    >>> Team(1, 3).share(10)
    (3, 6)
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and tells."""
        return self.rank == 0

    def share(self, count: int) -> tuple[int, int]:
        """First and last (exclusive) of `count` things that are this process's."""
        return self._ends(count, self.rank)

    def _ends(self, count: int, rank: int) -> tuple[int, int]:
        return count * rank // self.size, count * (rank + 1) // self.size

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place; each gets the same bits."""
        if self.size > 1:
            import torch.distributed as group

            group.all_reduce(values)
            group.broadcast(values, 0)
        return values

    def total(self, *numbers: float) -> list[float]:
        """Sums of numbers over all processes."""
        if self.size == 1:
            return list(numbers)
        import torch.distributed as group

        found: list[tuple[float, ...]] = [()] * self.size
        group.all_gather_object(found, numbers)
        return [float(sum(each)) for each in zip(*found, strict=True)]

    def first(self, thing: Thing) -> Thing:
        """What the first process has; the others wait for it."""
        if self.size == 1:
            return thing
        import torch.distributed as group

        things = [thing]
        group.broadcast_object_list(things, 0)
        return things[0]

    def below(self, part: Tensor, rows: int) -> Tensor:
        """Rows of all processes below each other: those of :meth:`share`, on the device of `part`."""
        import torch
        import torch.distributed as group

        whole = torch.empty((rows, *part.shape[1:]), dtype=part.dtype, device=part.device)
        for rank in range(self.size):
            start, stop = self._ends(rows, rank)
            if rank == self.rank:
                whole[start:stop] = part
            # As bytes: NCCL and gloo do not know all dtypes.
            group.broadcast(whole[start:stop].view(torch.uint8), rank)
        return whole

    def divides(self, packer: Packer, shape: tuple[int, ...]) -> bool:
        """Whether rows of a weight can be quantized by different processes: nothing is stored for several of them."""
        if len(shape) != 2 or shape[0] < self.size or isinstance(packer.grid, Float4Grid):
            return False
        return packer.row_packer(shape) is packer

    def all_codes(self, part: QuantizedTensor, rows: int) -> QuantizedTensor:
        """Canonical rows of all processes, each row with numbers of its own, as one tensor."""
        zero, minimum = part.zero_point, part.minimum
        return replace(
            part,
            codes=self.below(part.codes, rows),
            scale=self.below(part.scale, rows),
            zero_point=zero if isinstance(zero, int | float) else self.below(zero, rows),
            minimum=None if minimum is None else self.below(minimum, rows),
        )

    def all_bytes(self, part: PackedTensor, shape: tuple[int, ...], dtype: str) -> PackedTensor:
        """Packed rows of all processes as one tensor of `shape`, on the CPU; `dtype` as of :meth:`Packer.fixed`."""
        packer = part.packer
        fixed = packer.fixed(shape, dtype)
        fields = {name: value for name, value in part.fields.items() if name not in fixed}
        parts: list[PackedTensor] = []
        for rank in range(self.size):
            start, stop = self._ends(shape[0], rank)
            own = self.fields_of(rank, fields)
            parts.append(replace(part, shape=(stop - start, *shape[1:]), fields={**part.fields, **own}))
        whole = stack(shape, parts)
        return replace(whole, fields={**whole.fields, **fixed})

    def fields_of(self, rank: int, fields: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Packed fields that a process has, on the CPU; the others give None."""
        import torch
        import torch.distributed as group

        things: list[dict[str, tuple[object, torch.dtype, torch.Size]] | None] = [None]
        if rank == self.rank:
            assert fields is not None
            # As bytes: torch does not pickle all dtypes.
            things = [
                {
                    name: (
                        value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
                        value.dtype,
                        value.shape,
                    )
                    for name, value in fields.items()
                }
            ]
        group.broadcast_object_list(things, rank)
        found = things[0]
        assert found is not None
        return {
            name: torch.from_numpy(value).view(dtype).view(shape)
            for name, (value, dtype, shape) in found.items()
        }


class Finished(Team):
    """A team that has done its work, as the process that reads what it has written sees it: nobody is left to ask.

    Examples
    --------
    >>> from qformats.calibration.team import Finished
    >>> Finished(0, 2).first("here")
    'here'
    """

    def first(self, thing: Thing) -> Thing:
        """What is here."""
        return thing


ALONE = Team()
"""One process."""
