"""What pages of the documentation show: code blocks, and the plugins that are built in them, installed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

__all__ = ["DOCS", "commands", "install", "python"]

DOCS = Path(__file__).resolve().parents[2] / "docs"


def python(page: Path) -> str:
    """All Python of a page, one below the other."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


def commands(page: Path) -> list[list[str]]:
    """Words of every command of qformats in the shell blocks of a page."""
    found = []
    for block in re.findall(r"```(?:sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split("&&"):
                words = shlex.split(part, comments=True)
                if words[:1] == ["qformats"]:
                    found.append(words[1:])
    return found


def install(site: Path, module: str, text: str) -> None:
    """Put a plugin of one module where Python finds it, with the metadata that pip writes."""
    (site / f"{module}.py").write_text(text, encoding="utf-8")
    info = site / f"{module}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[qformats]\n{module} = {module}\n")
