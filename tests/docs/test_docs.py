"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import qformats
from qformats import hookspecs

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


WITH_PYTHON = [page for page in PAGES if code_blocks(page, "python")]
EACH_BY_ITSELF = """
import os, sys
# Seconds for each page otherwise; nothing of this project is among it.
import torch, transformers.generation, transformers.models.llama.modeling_llama
for program, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    child = os.fork()
    if not child:
        os.chdir(folder)
        exec(compile(open(program, encoding="utf-8").read(), program, "exec"), globals())
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{program} failed")
"""


@pytest.mark.parametrize("part", range(3))
def test_python_blocks_run(part: int, tmp_path: Path) -> None:
    """Those of each page from top to bottom, in a process and a folder of its own."""
    arguments: list[Path] = []
    for page in WITH_PYTHON[part::3]:
        folder = tmp_path / "-".join(page.relative_to(ROOT).with_suffix("").parts)
        folder.mkdir()
        program = tmp_path / f"{folder.name}.py"
        program.write_text("\n".join(code_blocks(page, "python")), encoding="utf-8")
        arguments += [program, folder]
    command = [sys.executable, "-c", EACH_BY_ITSELF, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_first_command_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    """Install apart; everything but the time must be as printed."""
    command = (
        next(c for c in code_blocks(ROOT / "README.md", "sh") if "export demo" in c).split("&&")[1].split()
    )
    program = Path(sys.executable).with_name("qformats")
    done = subprocess.run(
        [program, *command[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    shown = code_blocks(ROOT / "README.md", "text")[0]

    def steady(text: str) -> list[str]:
        lines = [" ".join(line.split()) for line in text.strip().splitlines()]
        return [line for line in lines if not line.startswith("time")]

    assert steady(done.stdout) == steady(shown)


def test_the_page_of_architectures_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert page == make.architectures_page(), "run scripts/make_docs.py"


def _own_hooks(plugin: str) -> ModuleType | None:
    """Specifications of the hooks that a built-in plugin has for others."""
    name = f"{plugin}.hookspecs"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


def test_every_hook_is_documented_with_its_signature() -> None:
    page = (ROOT / "docs" / "plugin_hooks.md").read_text(encoding="utf-8")
    documented = re.findall(r"^## `(.+)`$", page, re.MULTILINE)
    own = [module for plugin in PLUGINS if (module := _own_hooks(plugin))]
    assert own
    hooks = [
        f"{name}({', '.join(inspect.signature(function).parameters)})"
        for module in (hookspecs, *own)
        for name, function in vars(module).items()
        if name.startswith("qformats_") and inspect.isfunction(function)
    ]
    assert sorted(documented) == sorted(hooks)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_no_public_name_is_a_submodule() -> None:
    """Importing a submodule would replace the function of that name by the module."""
    modules = {module.name for module in pkgutil.iter_modules(qformats.__path__)}
    assert not modules & set(qformats.__all__)


def test_public_names_exist_and_are_documented() -> None:
    for name in qformats.__all__:
        assert inspect.getdoc(getattr(qformats, name)), name
