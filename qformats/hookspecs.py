"""The hooks of the plugin group ``qformats``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from qformats.interfaces import Family, Loader, ModelClass, Quantizer

__all__ = [
    "hookimpl",
    "qformats_register_families",
    "qformats_register_loaders",
    "qformats_register_models",
    "qformats_register_quantizers",
]

hookspec = pluggy.HookspecMarker("qformats")
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
