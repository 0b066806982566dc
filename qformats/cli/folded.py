"""Names that differ only in numbers, as patterns: ``model.layers.{0..31}.mlp.gate.weight (32)``."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["folded"]

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_LISTED = 4
"""Numbers that are written out where they have gaps."""


def folded(names: Iterable[str]) -> list[str]:
    """Patterns of names, in the order of their first ones, each with the number of names if there are several.

    Only whole parts between dots count as numbers.

    Examples
    --------
    >>> from qformats.cli.folded import folded
    >>> folded(["lm_head.weight", *(f"visual.blocks.{n}.attn.qkv.weight" for n in range(32))])
    ['lm_head.weight', 'visual.blocks.{0..31}.attn.qkv.weight (32)']
    """
    groups: dict[str, list[tuple[str, list[int]]]] = {}
    for name in names:
        numbers = [int(number) for number in _NUMBER.findall(name)]
        groups.setdefault(_NUMBER.sub("{}", name.replace("{", "{{").replace("}", "}}")), []).append(
            (name, numbers)
        )
    return [_pattern(shape, members) for shape, members in groups.items()]


def _pattern(shape: str, members: list[tuple[str, list[int]]]) -> str:
    if len(members) == 1:
        return members[0][0]
    columns = zip(*(numbers for _, numbers in members), strict=True)
    return f"{shape.format(*(_range(sorted({*column})) for column in columns))} ({len(members)})"


def _range(numbers: list[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    if last - first == len(numbers) - 1:
        return f"{{{first}..{last}}}"
    shown = numbers if len(numbers) <= _LISTED else [first, numbers[1], "...", last]
    return f"{{{','.join(map(str, shown))}}}"
