"""The hooks of the plugin group ``qformats``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from types import ModuleType

    from qformats.interfaces import Family, Loader, ModelClass, Quantizer

__all__ = [
    "hookimpl",
    "hookspec",
    "qformats_register_families",
    "qformats_register_hooks",
    "qformats_register_loaders",
    "qformats_register_models",
    "qformats_register_quantizers",
]

hookspec = pluggy.HookspecMarker("qformats")
"""Marks the specification of a hook, also of one that a plugin has for others."""
hookimpl = pluggy.HookimplMarker("qformats")
"""Marks a plugin's implementation of a hook."""


@hookspec
def qformats_register_quantizers() -> list[type[Quantizer]]:  # type: ignore[empty-body]
    """Quantizer classes of a plugin."""


@hookspec
def qformats_register_families() -> list[type[Family]]:  # type: ignore[empty-body]
    """Families of formats of a plugin."""


@hookspec
def qformats_register_loaders() -> list[type[Loader]]:  # type: ignore[empty-body]
    """Loader classes of a plugin, one per container."""


@hookspec
def qformats_register_models() -> list[type[ModelClass]]:  # type: ignore[empty-body]
    """Model classes of a plugin, for models that Transformers has no class for."""


@hookspec
def qformats_register_hooks() -> list[ModuleType]:  # type: ignore[empty-body]
    """Modules with the specifications of a plugin's own hooks, by which other plugins extend it."""
