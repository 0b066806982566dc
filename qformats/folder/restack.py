"""Experts of a folder to write: in stacks, as the model's class reads them, or a matrix each, if one is quantized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from qformats.folder.experts import Share, share_of, stacked
from qformats.interfaces.dense import dense
from qformats.interfaces.layout import Assignment, Draft

__all__ = ["listed", "restacked"]

_PLAIN = ("f32", "bf16", "f16")
"""By how many numbers they hold, for stacks of matrices that were to have several dtypes."""


def restacked(assignments: Sequence[Assignment], config: Mapping[str, Any]) -> list[Assignment]:
    """The same with stacks in place of matrices of experts, in layers of which none is quantized.

    Where one is, all experts of the layer stay apart, biases too: readers of such folders look for a list.

    Parameters
    ----------
    assignments : sequence of Assignment
        Of all tensors.
    config : mapping
        config.json of the model.
    """
    shares = [share_of(assignment.draft.name, config) for assignment in assignments]
    packed = {
        _owner(share)
        for share, assignment in zip(shares, assignments, strict=True)
        if share is not None and assignment.packer.quantizes
    }
    stacks: dict[str, list[tuple[Share, Assignment]]] = {}
    for share, assignment in zip(shares, assignments, strict=True):
        if share is not None and _owner(share) not in packed:
            stacks.setdefault(share.stack, []).append((share, assignment))
    found, done = [], set()
    for share, assignment in zip(shares, assignments, strict=True):
        if share is None or share.stack not in stacks:
            found.append(assignment)
        elif share.stack not in done:
            done.add(share.stack)
            found.append(_stack(stacks[share.stack]))
    return found


def _owner(share: Share) -> str:
    return share.name.partition(f"experts.{share.expert}.")[0]


def _stack(parts: Sequence[tuple[Share, Assignment]]) -> Assignment:
    share, first = parts[0]
    source = stacked([(each, assignment.draft.source) for each, assignment in parts])
    dtypes = {assignment.packer.dense_dtype for _, assignment in parts}
    packer = first.packer if len(dtypes) == 1 else dense(next(each for each in _PLAIN if each in dtypes))
    draft = Draft(
        share.stack, source, keep=first.draft.keep, why=first.draft.why, cast_along=first.draft.cast_along
    )
    return replace(first, draft=draft, packer=packer)


def listed(assignments: Sequence[Assignment], config: Mapping[str, Any]) -> tuple[str, ...]:
    """What to say of a folder that holds matrices of experts one by one, where the model's class reads stacks."""
    found = [a for a in assignments if share_of(a.draft.name, config) is not None]
    if not found:
        return ()
    kind = config.get("model_type")
    return (
        f"{found[0].draft.name.removesuffix('.weight')} and the other matrices of experts are written one by one, as "
        f"other programs write them; qformats reads that, but Transformers' own class for {kind} needs stacks",
    )
