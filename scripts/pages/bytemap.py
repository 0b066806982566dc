"""Which bits of which stored items hold which element, measured with the format's own packer.

One code after the other is changed, and the tensor is packed again: the bits that differ are those of that element. So the
tables of the documentation cannot disagree with the code, whatever format they describe.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import torch

from qformats import QuantizedTensor
from qformats.interfaces import Packer

MOST = 256
"""Elements of a row that are looked at: a whole block of GGUF."""
FIRST = 32
"""The same of formats that store tensors instead of blocks, where the order repeats sooner."""


@dataclass(frozen=True)
class Run:
    """Items of a field that hold elements in the same way: each those of the item before, plus `step`."""

    field: str
    first: int
    count: int
    bits: tuple[tuple[int, ...], ...]
    elements: tuple[int, ...]
    step: int


def smallest(packer: Packer) -> tuple[int, int] | None:
    """Rows and columns of the smallest matrix with a block in it; ``None`` if none of the usual sizes is taken."""
    widths = sorted({packer.spec.block_size or 64, 32, 64, 128, 256, 1024})
    shapes = product((1, 2, 8, 32), (width for width in widths if width >= max(packer.spec.block_size, 32)))
    return next((shape for shape in shapes if packer.veto(shape) is None), None)


def runs(packer: Packer) -> list[Run]:
    """What the items of the first row hold."""
    shape = smallest(packer)
    if shape is None or packer.grid is None or not packer.writable:
        return []
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    base = packer.unpack(packer.encode_reference(weight))
    highest = packer.grid.levels - 1
    values = sorted({0, highest, *(1 << bit for bit in range(8) if 1 << bit < highest)})
    owners: dict[tuple[str, int], dict[int, tuple[int, ...]]] = {}
    for element in range(min(shape[1], FIRST if packer.container == "huggingface" else MOST)):
        for name, item, bits in _differing(packer, base, element, values):
            owners.setdefault((name, item), {})[element] = bits
    for key, held in owners.items():
        if any(set(one) & set(other) for one, other in combinations(held.values(), 2)):
            owners[key] = dict.fromkeys(held, tuple(range(8)))  # digits of one number
    return _joined(owners)


def _differing(
    packer: Packer, base: QuantizedTensor, element: int, values: list[int]
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Field, item along the row and bits that change with the code of an element of the first row."""
    packed = []
    for value in values:
        codes = base.codes.clone()
        codes[0, element] = value
        packed.append(packer.pack(dataclasses.replace(base, codes=codes)).fields)
    for name, field in packed[0].items():
        size, stride = field.element_size(), math.prod(field.shape[1:]) if field.element_size() > 1 else 1
        stored = [
            fields[name].flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)
            for fields in packed
        ]
        changed = torch.zeros_like(stored[0])
        for other in stored[1:]:
            changed |= other ^ stored[0]
        bits: dict[int, list[int]] = {}
        for at in changed.nonzero().flatten().tolist():
            low = at % size * 8
            item = at // size // stride
            bits.setdefault(item, []).extend(low + bit for bit in range(8) if int(changed[at]) >> bit & 1)
        yield from ((name, item, tuple(each)) for item, each in bits.items())


def _joined(owners: dict[tuple[str, int], dict[int, tuple[int, ...]]]) -> list[Run]:
    found: list[Run] = []
    for (field, at), held in sorted(owners.items()):
        elements, bits = tuple(sorted(held)), tuple(held[element] for element in sorted(held))
        last = found[-1] if found else None
        if last and last.field == field and last.first + last.count == at and last.bits == bits:
            advances = {now - then for now, then in zip(elements, last.elements, strict=True)}
            step, rest = divmod(advances.pop(), last.count)
            if (not advances and not rest and last.count == 1) or step == last.step:
                found[-1] = dataclasses.replace(last, count=last.count + 1, step=step)
                continue
        found.append(Run(field, at, 1, bits, elements, 0))
    return found


def table(packer: Packer, *, most: int = 12) -> list[str]:
    """The rows of a table in Markdown; of an irregular layout the first ones. Empty if nothing can be packed."""
    found = runs(packer)
    if not found:
        return []
    plain = packer.container != "huggingface"
    lines = [
        f"| {'byte' if plain else 'item'} | bits | {'element' if plain else 'column'} |",
        "| --- | --- | --- |",
    ]
    for run in found[:most]:
        last = f"{run.first + run.count - 1}"
        index = str(run.first) if run.count == 1 else f"j = {run.first} to {last}" if run.first == 0 else ""
        index = index or f"{run.first} + j, j = 0 to {run.count - 1}"
        groups: dict[tuple[int, ...], list[str]] = {}
        for bits, element in zip(run.bits, run.elements, strict=True):
            groups.setdefault(bits, []).append(_term(element, run))
        for number, (bits, held) in enumerate(groups.items()):
            where = index if plain else f"`{run.field}` {index}"
            digits = " (digits of one number)" if len(held) > 1 else ""
            lines.append(f"| {where if number == 0 else ''} | {_span(bits)} | {', '.join(held)}{digits} |")
    if len(found) > most:
        lines.append("| and so on | | |")
    return lines


def _term(element: int, run: Run) -> str:
    if run.count == 1:
        return str(element)
    factor = "j" if run.step == 1 else f"{run.step} j"
    return factor if element == 0 else f"{element} + {factor}"


def _span(bits: tuple[int, ...]) -> str:
    whole = bits == tuple(range(bits[0], bits[-1] + 1))
    return str(bits[0]) if len(bits) == 1 else f"{bits[0]}-{bits[-1]}" if whole else ", ".join(map(str, bits))
