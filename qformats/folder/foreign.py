"""Folders in formats that no plugin reads and that declare nothing: they are known by what their tensors are called."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qformats.errors import CheckpointError, Described
from qformats.interfaces.family import ModuleFields
from qformats.registry import registry

__all__ = ["refuse_foreign"]

_Stored = Mapping[str, tuple[tuple[int, ...], str]]


def refuse_foreign(path: Path, stored: _Stored) -> None:
    """Refuse tensors that a family knows as those of a format which no plugin reads.

    Parameters
    ----------
    path : Path
        The folder.
    stored : mapping of str to (tuple of int, str)
        Shape and dtype of each tensor, by name.

    Raises
    ------
    CheckpointError
        Naming the format, a module, and the program that reads it.

    Examples
    --------
    >>> from pathlib import Path
    >>> from qformats.folder.foreign import refuse_foreign
    >>> refuse_foreign(Path("my-model"), {"model.norm.weight": ((64,), "f32")})
    """
    modules: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}
    for name, entry in stored.items():
        module, _, field = name.rpartition(".")
        modules.setdefault(module, {})[field] = entry
        # Some keep their tables in a module of its own: ``q_proj.centroids.weight`` beside ``q_proj.indices``.
        outer, _, inner = module.rpartition(".")
        modules.setdefault(outer, {})[f"{inner}.{field}"] = entry
    families = registry().families()
    for name, fields in modules.items():
        for family in families:
            known = family.foreign(ModuleFields(name, fields, _unread))
            if known:
                raise CheckpointError(
                    path,
                    Described(
                        f"tensors of {name or 'the model'} as {known} stores them: {family.about(known)}"
                    ),
                    "plain numbers, or a format that an installed plugin reads",
                    hint="install a plugin for this format, or use the unquantized model",
                )


def _unread(field: str) -> bytes:
    """Names and shapes are enough."""
    return b""
