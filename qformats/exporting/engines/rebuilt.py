"""A plan in few words, from which another machine makes the same plan, or refuses to."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from qformats.errors import BackendUnavailableError, Described, QFormatsError
from qformats.exporting.fill import Slice, slices_of
from qformats.exporting.plan import Plan, make_plan
from qformats.exporting.recipe import Recipe
from qformats.folder import AdapterCheckpoint
from qformats.sources import open_model

__all__ = ["Told"]

_SHARED = "Model and target must lie on a file system that every node mounts at the same place"
_SAME = "Install the same versions on every node"


@dataclass(frozen=True)
class Told:
    """What a machine needs to make a plan again: nothing of it is larger than what a user types.

    Attributes
    ----------
    source : Path
        The model; absolute.
    name : str
        Its name, which outputs may hold.
    kind : str
        Class of the checkpoint.
    adapter : bool
        Whether it is opened as an adapter.
    target : Path
        What will be made; absolute.
    recipe : Recipe
        What the user requested; places of files in it are absolute.
    options : mapping of str to str
        Of the loaders.
    extra_identity : mapping of str to str
        What else decides the bytes of the output.
    software : mapping of str to str
        Versions of the distributions whose code decides them.
    files : tuple of (str, int, int)
        Name, size and time of change of every file of the model. Devices and inodes are another machine's own.
    identity : str
        Fingerprint of the plan and its slices, with these files.
    """

    source: Path
    name: str
    kind: str
    adapter: bool
    target: Path
    recipe: Recipe
    options: Mapping[str, str]
    extra_identity: Mapping[str, str]
    software: Mapping[str, str]
    files: tuple[tuple[str, int, int], ...]
    identity: str

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """Describe a plan.

        Raises
        ------
        BackendUnavailableError
            If the same plan does not come of the description: a model that a program has changed in memory.
        """
        imatrix = tuple(str(Path(file).expanduser().absolute()) for file in plan.recipe.imatrix)
        told = cls(
            plan.source.path.absolute(),
            plan.source.name,
            _kind(plan.source),
            isinstance(plan.source, AdapterCheckpoint),
            plan.target.absolute(),
            replace(plan.recipe, imatrix=imatrix),
            dict(plan.options),
            dict(plan.extra_identity),
            plan.software,
            _files(plan),
            _identity(plan, slices_of(plan)),
        )
        told.plan()
        return told

    def plan(self) -> tuple[Plan, list[Slice]]:
        """The plan, made here, and its slices.

        Raises
        ------
        BackendUnavailableError
            If this machine makes another one, saying why: other versions, other files, or none.
        """
        try:
            source = open_model(self.source, self.options, adapter=self.adapter)
        except (QFormatsError, OSError) as error:
            raise _refused(f"cannot open the model ({error})".replace(".)", ")"), _SHARED) from error
        source.name = self.name
        try:
            plan = make_plan(
                source, self.target, self.recipe, self.options, extra_identity=self.extra_identity
            )
        except QFormatsError as error:
            raise _refused(f"cannot plan the export ({error})".replace(".)", ")"), _SAME) from error
        if plan.software != dict(self.software):
            names = [
                f"{name} {plan.software.get(name, 'not installed')} instead of {version}"
                for name, version in self.software.items()
                if plan.software.get(name) != version
            ]
            raise _refused(f"has {', '.join(names) or 'other plugins'}", _SAME)
        for here, there in zip(_files(plan), self.files, strict=False):
            if here != there:
                raise _refused(f"sees another {here[0]} in {self.source}", _SHARED)
        slices = slices_of(plan)
        if _kind(plan.source) != self.kind or _identity(plan, slices) != self.identity:
            found = Described("makes another plan of the model than the one that was asked for")
            raise _refused(found, "Give the model's path, and install the same qformats on every node")
        return plan, slices


def _refused(found: str, hint: str) -> BackendUnavailableError:
    return BackendUnavailableError("ray", f"the node {socket.gethostname()} {found}", hint)


def _kind(source: object) -> str:
    return f"{type(source).__module__}.{type(source).__qualname__}"


def _files(plan: Plan) -> tuple[tuple[str, int, int], ...]:
    return tuple((Path(path).name, size, changed) for path, _, _, size, changed, _ in plan.fingerprint)


def _identity(plan: Plan, slices: list[Slice]) -> str:
    """Identity of a plan with what is the same on every machine that shares its files."""
    files: Any = _files(plan)
    return replace(plan, fingerprint=files).identity([(s.tensor, s.start, s.stop) for s in slices])
