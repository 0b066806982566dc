"""The version of the installed distribution."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("qformats")
except PackageNotFoundError:
    __version__ = "0+uninstalled"
