"""The Python reference: what users and plugins may import, with its docstrings, which mkdocstrings puts in when the site is built."""

from __future__ import annotations

import importlib
import inspect

__all__ = ["python_page"]

ROOMS = {
    "qformats": "What everyone imports",
    "qformats.errors": "What is raised",
    "qformats.interfaces": "Interfaces of plugins, and the data that crosses them",
    "qformats.numbers": "Numbers: dtypes, bit packing, grids",
    "qformats.exact": "Exact conversion",
    "qformats.testing": "Checks of plugins",
    "qformats.calibration": "Quantizers that run a model over text",
    "qformats.folder": "Hugging Face folders",
    "qformats.work.files": "Mapped files, and JSON that somebody else wrote",
    "qformats.work.outside": "Operations that no captured graph may hold",
    "qformats.work.progress": "Reporting progress",
}
"""Public modules, in the order of the page; each name is documented where it is first."""


def python_page(generated: str) -> str:
    """Names of the public modules, each with a line that mkdocstrings replaces by its reference."""
    lines = [
        generated,
        "# Python",
        "",
        "Shapes, dtypes and errors of everything that may be imported. `./scripts/docs` shows this page with signatures and",
        "docstrings; every example in them is run by the tests. What a plugin may import is listed in",
        "[plugin hooks](plugin_hooks.md#what-a-plugin-may-import).",
    ]
    seen: set[int] = set()
    for room, title in ROOMS.items():
        module = importlib.import_module(room)
        lines += ["", f"## `{room}`", "", f"{title}.", ""]
        for name in sorted(module.__all__, key=_order(module)):
            found = getattr(module, name)
            if not (inspect.isclass(found) or inspect.isfunction(found)) or id(found) in seen:
                continue
            seen.add(id(found))
            lines.append(f"::: {found.__module__}.{found.__qualname__}")
    return "\n".join(lines) + "\n"


def _order(module: object) -> object:
    """Functions before classes, by name."""
    return lambda name: (inspect.isclass(getattr(module, name)), name.lower())
