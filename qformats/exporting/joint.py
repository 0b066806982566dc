"""One number for matrices that programs join: for the largest weight of all, or one that leaves all unchanged."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described
from qformats.exporting.programs import JOINING, NEIGHBOURS
from qformats.exporting.transcode import transcode
from qformats.interfaces.layout import Assignment
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.stored import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Joint", "joints", "require_joint"]


class Joint:
    """Matrices whose format has a number per tensor that is to be the same for all.

    Parameters
    ----------
    tensors : sequence of StoredTensor
        The matrices as the source stores them.
    kept : bool
        Whether their values are to stay as they are; else their codes are chosen anew.

    Examples
    --------
    >>> import qformats
    >>> from qformats.exporting.joint import Joint
    >>> tensors = qformats.open("demo").tensors
    >>> parts = [tensors[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"]
    >>> Joint(parts).largest == max(float(part.dequantize().abs().max()) for part in parts)
    True
    """

    def __init__(self, tensors: Sequence[StoredTensor], *, kept: bool = False) -> None:
        self.tensors, self.kept = tuple(tensors), kept
        self._lock = threading.Lock()
        self._largest: float | None = None
        self._keeping: Packer | None = None

    @property
    def largest(self) -> float:
        """Largest magnitude of all of them; they are read once for it, whoever asks first."""
        with self._lock:
            if self._largest is None:
                self._largest = max(
                    float(each.dequantize().abs().max()) if each.numel else 0.0 for each in self.tensors
                )
            return self._largest

    def packer(self, own: Packer, *, room: bool = False) -> Packer:
        """The format, choosing its number for all of them; with `room`, for weights twice as large too."""
        return own.sharing(2 * self.largest if room else self.largest)

    def keeping(self, own: Packer) -> Packer:
        """The format, with a number that keeps the values of all of them, if there is one; they are read for it."""
        with self._lock:
            if self._keeping is None:
                self._keeping = own.keeping(each.read().unpack() for each in self.tensors)
            return self._keeping


def neighbours(tensors: Sequence[Assignment]) -> list[list[int]]:
    """Indices of matrices that programs join and whose format has a number per tensor, in groups of several."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, each in enumerate(tensors):
        found = NEIGHBOURS.fullmatch(each.draft.name)
        if found is not None and each.packer.joint:
            groups.setdefault((found[1], str(found.lastgroup), each.packer.name), []).append(index)
    return [members for members in groups.values() if len(members) > 1]


def joints(tensors: Sequence[Assignment], chosen: Sequence[bool], kept: Sequence[bool]) -> list[Joint | None]:
    """What each tensor shares a number with.

    Parameters
    ----------
    tensors : sequence of Assignment
        All of an output.
    chosen : sequence of bool
        Whether codes are still to be chosen for it: what is copied keeps its own number.
    kept : sequence of bool
        Whether it is quantized in another format, whose values stay if this one has them.
    """
    found: list[Joint | None] = [None] * len(tensors)
    for members in neighbours(tensors):
        keeps = all(kept[index] for index in members)
        if keeps or all(chosen[index] for index in members):
            joint = Joint([tensors[index].draft.source for index in members], kept=keeps)
            for index in members:
                found[index] = joint
    return found


def require_joint(
    program: str, tensors: Sequence[Assignment], shared: Sequence[Joint | None]
) -> tuple[str, ...]:
    """Refuse numbers that differ between matrices which a program joins, taking the largest; without one, say so.

    Parameters
    ----------
    program : str
        One of :data:`~qformats.exporting.programs.PROGRAMS`, or empty.
    tensors : sequence of Assignment
        All of an output.
    shared : sequence of Joint or None
        See :func:`joints`.

    Returns
    -------
    tuple of str
        Notes for the plan.

    Raises
    ------
    ConfigError
        Naming two of them, if the program is the one that joins.
    """
    own = [members for members in neighbours(tensors) if (joint := shared[members[0]]) is None or joint.kept]
    if not own or program not in ("", JOINING):
        return ()
    field = tensors[own[0][0]].packer.joint
    if not program:
        # A quantizer that prepared the model was given the same number for all.
        stored = [members for members in own if tensors[members[0]].draft.source.stored_packer.quantizes]
        if not stored:
            return ()
        name = tensors[stored[0][0]].draft.name
        told = f"{name} and its neighbours keep the {field} that each of them has"
        return (f"{told}: {JOINING} takes one for all of them, and --for {JOINING} checks that they agree",)
    for members in own:
        found = {tensors[index].draft.name: _number(tensors[index], shared[index]) for index in members}
        if len(set(found.values())) > 1:
            (first, one), *others = found.items()
            second, other = next((name, value) for name, value in others if value != one)
            told = Described(f"{field} of {first} ({one:.7g}) and {second} ({other:.7g})")
            hint = f"quantize the model from its plain weights: then they share one; or leave out --for {JOINING}"
            expected = f"one for matrices that {JOINING} joins: it takes the largest, and values would differ"
            raise ConfigError("for", told, expected, hint)
    return ()


class _Reference:
    """Rounds by the formats' own rules."""

    def encode(self, dense: Tensor, packer: Packer) -> PackedTensor:
        """As they do."""
        return packer.encode_reference(dense)


def _number(assignment: Assignment, joint: Joint | None) -> float:
    """The number of a tensor as it will be stored, if its codes are not chosen anew."""
    source, packer = assignment.draft.source, assignment.packer
    part = source.read()
    if part.format != packer.name:
        part, _ = transcode(part, packer if joint is None else joint.keeping(packer), _Reference())
    return float(part.fields[packer.joint])
