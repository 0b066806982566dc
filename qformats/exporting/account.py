"""Account: every tensor of a source is written or left out for a reason; nothing is dropped without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qformats.errors import PluginError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.layout import Draft
from qformats.interfaces.loader import Loader

__all__ = ["LeftOut", "account"]

_SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class LeftOut:
    """A tensor of the source that the output does not hold.

    Attributes
    ----------
    name : str
        Its canonical name, or that in its file if it has no other.
    reason : str
        Why.

    Examples
    --------
    >>> from qformats.exporting.account import LeftOut
    >>> LeftOut("model.layers.0.self_attn.rotary_emb.inv_freq", "every reader computes it").reason
    'every reader computes it'
    """

    name: str
    reason: str


def account(source: Checkpoint, drafts: Sequence[Draft], loader: Loader) -> tuple[LeftOut, ...]:
    """Which tensors of a source are not in an output, and why.

    Parameters
    ----------
    source : Checkpoint
        The model.
    drafts : sequence of Draft
        What `loader` makes of it.
    loader : Loader
        Writes the output; to blame if it forgets a tensor.

    Raises
    ------
    PluginError
        If a tensor is neither written nor left out for a reason: the loader that reads the model, or the one that
        writes it, has lost it.

    Examples
    --------
    >>> import dataclasses, qformats
    >>> from qformats.exporting.account import account
    >>> from qformats.folder import HuggingFaceFolder
    >>> model, loader = qformats.open("demo"), HuggingFaceFolder()
    >>> drafts = loader.draft(model, {})
    >>> account(model, drafts, loader)
    ()
    >>> drafts[0] = dataclasses.replace(drafts[0], left_out="not wanted")
    >>> account(model, drafts, loader)
    (LeftOut(name='lm_head.weight', reason='not wanted'),)
    """
    written = frozenset[str]().union(*(draft.source.names for draft in drafts if not draft.left_out))
    # A container that stays the same takes tensors from the file, before they are cut and renamed.
    uncut = frozenset[str]().union(
        *(
            draft.source.names
            for draft in drafts
            if not draft.left_out and source.tensors.keys().isdisjoint(draft.source.names)
        )
    )
    reasons = dict(source.left_out)
    for draft in drafts:
        reasons |= dict.fromkeys(draft.source.names if draft.left_out else (), draft.left_out)
    left: dict[str, str] = {}
    lost: list[str] = []
    seen: set[str] = set()
    for name, tensor in source.tensors.items():
        seen |= tensor.names
        if name in written or not uncut.isdisjoint(tensor.names):
            continue
        reason = next((reasons[each] for each in (name, *tensor.names) if each in reasons), None)
        if reason is None:
            lost.append(name)
        else:
            left[name] = reason
    for name in source.stored_names:
        if name in seen or name in written:
            continue
        if name in reasons:
            left[name] = reasons[name]
        else:
            lost.append(name)
    if lost:
        shown = ", ".join(lost[:_SHOWN]) + (", ..." if len(lost) > _SHOWN else "")
        told = RuntimeError(f"{len(lost)} tensors are neither written nor left out for a reason: {shown}")
        owner = type(loader).__module__.partition(".")[0]
        raise PluginError(owner, f"{type(loader).__name__}.draft", told)
    return tuple(LeftOut(name, reason) for name, reason in left.items())
