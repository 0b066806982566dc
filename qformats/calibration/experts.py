"""Experts in a calibration: which layers are theirs, which are gathered together, and which saw too little text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["expert_of", "few_tokens", "stages"]

_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(\w+)(?:\.weight)?")
_MEMORY = 1 << 30
"""Bytes of the second moments that are gathered at a time: as much as an export takes at most."""
_SHOWN = 4
"""Experts that a notice names."""


def expert_of(name: str) -> tuple[str, int, str] | None:
    """Module of the experts, number and matrix of a layer, or of its weight; None if it is no expert's.

    Examples
    --------
    >>> from qformats.calibration.experts import expert_of
    >>> expert_of("mlp.experts.3.up_proj"), expert_of("self_attn.q_proj")
    (('mlp.experts', 3, 'up_proj'), None)
    """
    match = _EXPERT.fullmatch(name)
    return (match[1], int(match[2]), match[3]) if match else None


def stages(
    groups: Sequence[tuple[str, ...]], missed: Sequence[str], columns: Callable[[str], int]
) -> list[list[tuple[str, ...]]]:
    """Groups of layers of the same input, those together that may be gathered in one pass over the text.

    Parameters
    ----------
    groups : sequence of tuple of str
        In the order in which data reaches them.
    missed : sequence of str
        Layers of experts that no token has reached yet.
    columns : callable
        Inputs of a layer.

    Returns
    -------
    list of list of tuple of str
        Each group by itself, but for those of experts: the same matrices of all of them follow each other, as far as
        memory allows, since the output of one expert reaches no other.

    Examples
    --------
    >>> from qformats.calibration.experts import stages
    >>> found = stages([("q",), ("m.experts.0.up",), ("m.experts.0.down",)], ["m.experts.1.up"], lambda local: 8)
    >>> found
    [[('q',)], [('m.experts.0.up',), ('m.experts.1.up',)], [('m.experts.0.down',)]]
    """
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[str, ...]]] = {}
    order: list[list[tuple[str, ...]]] = []
    shared: dict[tuple[str, str], tuple[str, ...]] = {}
    for group in filter(None, groups):
        first = expert_of(group[0])
        if first is None:
            order.append([group])
            continue
        labels = tuple(found[2] for local in group if (found := expert_of(local)))
        shared |= {(first[0], label): labels for label in labels}
        if (first[0], labels) not in alike:
            alike[first[0], labels] = []
            order.append(alike[first[0], labels])
        alike[first[0], labels].append(group)
    _add_missed(missed, alike, order, shared)
    return [part for stage in order for part in _within_memory(stage, columns)]


def _add_missed(
    missed: Sequence[str],
    alike: dict[tuple[str, tuple[str, ...]], list[tuple[str, ...]]],
    order: list[list[tuple[str, ...]]],
    shared: Mapping[tuple[str, str], tuple[str, ...]],
) -> None:
    """Put layers that nothing has reached where the same matrices of other experts are."""
    together: dict[tuple[str, int, tuple[str, ...]], list[str]] = {}
    for local in missed:
        found = expert_of(local)
        assert found is not None
        labels = shared.get((found[0], found[2]), (found[2],))
        together.setdefault((found[0], found[1], labels), []).append(local)
    for (owner, _, labels), group in together.items():
        if (owner, labels) not in alike:
            alike[owner, labels] = []
            order.append(alike[owner, labels])
        alike[owner, labels].append(tuple(group))


def _within_memory(
    stage: list[tuple[str, ...]], columns: Callable[[str], int]
) -> Iterable[list[tuple[str, ...]]]:
    most = max(1, _MEMORY // (4 * columns(stage[0][0]) ** 2))
    return (stage[start : start + most] for start in range(0, len(stage), most))


def few_tokens(seen: Mapping[str, int], columns: Mapping[str, int]) -> str:
    """Sentence about experts that saw too little of the calibration text; empty if there are none.

    With fewer tokens than inputs, the moments of a layer's inputs are singular: what the text leaves open, damping
    decides.

    Parameters
    ----------
    seen : mapping of str to int
        Tokens by canonical name of a weight.
    columns : mapping of str to int
        Inputs of these layers.

    Examples
    --------
    >>> from qformats.calibration.experts import few_tokens
    >>> few_tokens({"l.0.experts.7.up.weight": 5, "l.0.experts.8.up.weight": 900}, dict.fromkeys(
    ...     ("l.0.experts.7.up.weight", "l.0.experts.8.up.weight"), 64))
    '1 of 2 experts saw fewer tokens of the calibration text than their layers have inputs: l.0.experts.7 (5 tokens). \
They are rounded nearly as without calibration: take a longer text or more samples'
    """
    least: dict[str, int] = {}
    lacking: dict[str, int] = {}
    for name, tokens in seen.items():
        found = expert_of(name)
        assert found is not None
        expert = f"{found[0]}.{found[1]}"
        least[expert] = min(tokens, least.get(expert, tokens))
        if tokens < columns[name]:
            lacking[expert] = least[expert]
    if not lacking:
        return ""
    # Those that saw least are named.
    worst = sorted(lacking, key=lambda expert: lacking[expert])
    shown = ", ".join(f"{expert} ({lacking[expert]:,} tokens)" for expert in worst[:_SHOWN])
    more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
    return (
        f"{len(lacking)} of {len(least)} experts saw fewer tokens of the calibration text than their layers have "
        f"inputs: {shown}{more}. They are rounded nearly as without calibration: take a longer text or more samples"
    )
