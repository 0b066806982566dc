"""Hooks by which other plugins extend this one."""

from __future__ import annotations

from pathlib import Path

from qformats import hookspec

__all__ = ["qformats_gguf_register_architectures"]


@hookspec
def qformats_gguf_register_architectures() -> list[Path]:  # type: ignore[empty-body]
    """Files that describe architectures, each as ``architectures/read.py`` says."""
