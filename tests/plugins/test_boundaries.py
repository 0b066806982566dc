"""Who may know whom: imports only go down, plugins use the public rooms, and the framework knows no format."""

import ast
import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest
from public_rooms import PUBLIC

ROOT = Path(__file__).parents[2]
FRAMEWORK = sorted((ROOT / "qformats").rglob("*.py"))
PLUGINS = {
    folder.name: folder
    for folder in sorted((ROOT / "plugins").iterdir())
    if (folder / "__init__.py").is_file()
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def _name(path):
    return path.relative_to(ROOT).as_posix()


def test_entry_points_are_the_plugin_folders():
    points = dict(PROJECT["project"]["entry-points"]["qformats"])
    assert points.pop("framework") == "qformats.builtin"
    assert sorted(points.values()) == sorted(PLUGINS)
    assert points == {module.removeprefix("qformats_"): module for module in PLUGINS}


def test_every_package_is_typed():
    for package in (ROOT / "qformats", *PLUGINS.values()):
        assert (package / "py.typed").is_file(), _name(package)
    assert PROJECT["tool"]["setuptools"]["package-data"]["*"] == ["py.typed"]
    assert sorted(PROJECT["tool"]["mypy"]["packages"]) == sorted(["qformats", *PLUGINS])


def _imports(path):
    """Absolute name of everything that a file imports, also inside functions; names of packages end there."""
    package = path.parent.relative_to(ROOT / ("plugins" if ROOT / "plugins" in path.parents else ".")).parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


FLOORS = {
    "demo": 0,
    "errors": 1,
    "version": 1,
    "work": 2,
    "numbers": 3,
    "exact": 4,
    "kernels": 4,
    "vocabularies": 4,
    "interfaces": 5,
    "hookspecs": 6,
    "registry": 7,
    "folder": 8,
    "roundtrip": 8,
    "builtin": 9,
    "sources": 9,
    "exporting": 10,
    "runtime": 11,
    "calibration": 12,
    "chatting": 12,
    "comparing": 12,
    "verifying": 12,
    "publishing": 13,
    "serving": 13,
    "api": 14,
    "": 15,
    "testing": 16,
    "evaluation": 17,
    "cli": 17,
    "__main__": 18,
}
"""Floor of each room of the framework; the room without a name is the package itself, the face."""


def _modules():
    """Files of the framework and of all plugins, by the names of their modules."""
    found = {}
    for path in (*FRAMEWORK, *(path for folder in PLUGINS.values() for path in sorted(folder.rglob("*.py")))):
        base = ROOT / "plugins" if ROOT / "plugins" in path.parents else ROOT
        parts = path.relative_to(base).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _arrows(path):
    """Modules of ours that a file imports, with the line: at its top, in functions, and for types only."""
    for name, line in _imports(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        if name:
            yield name, line


def _room(module):
    return module.split(".")[1] if "." in module else ""


def test_every_room_has_a_floor():
    rooms = {_room(module) for module in MODULES if module.split(".")[0] == "qformats"}
    assert rooms <= FLOORS.keys()
    assert {room for room in FLOORS if room not in rooms} <= {"demo"}


def test_imports_only_go_down():
    wrong = []
    for module, path in MODULES.items():
        for name, line in _arrows(path) if module.split(".")[0] == "qformats" else ():
            here, there = FLOORS[_room(module)], FLOORS.get(_room(name), 99)
            if (
                name.split(".")[0] != "qformats"
                or there > here
                or (there == here and _room(name) != _room(module))
            ):
                wrong.append(f"{_name(path)}:{line} imports {name}, which is not below it")
    assert wrong == []


def _circle(arrows):
    """Modules of one circle, in order; empty if there is none."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        for other in sorted(arrows[module]):
            found = visit(other)
            if found:
                return found
        path.pop()
        done.add(module)
        return []

    return next(filter(None, map(visit, arrows)), [])


def test_no_imports_run_in_a_circle():
    assert (
        _circle({module: {n for n, _ in _arrows(path)} - {module} for module, path in MODULES.items()}) == []
    )


def test_circles_are_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_import_the_public_rooms_only(plugin):
    """And of each room what it says is public; of other plugins nothing."""
    wrong = []
    for path in sorted(PLUGINS[plugin].rglob("*.py")):
        for name, line in _imports(path):
            if name.split(".")[0] == plugin or not name.startswith("qformats"):
                continue
            room = next(
                (r for r in sorted(PUBLIC, key=len, reverse=True) if name == r or name.startswith(f"{r}.")),
                "",
            )
            rest = name.removeprefix(room).removeprefix(".")
            # A room may be imported whole.
            if name in PUBLIC:
                continue
            if not room or "." in rest or rest not in importlib.import_module(room).__all__:
                wrong.append(f"{_name(path)}:{line} imports {name}")
    assert wrong == []


def test_public_rooms_are_documented():
    page = (ROOT / "docs" / "plugin_hooks.md").read_text()
    listed = set(re.findall(r"^\| `(qformats[\w.]*)` \|", page, re.MULTILINE))
    assert listed == PUBLIC


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_use_no_private_attribute_of_the_framework(plugin):
    """``from qformats import numbers; numbers._range`` is no better than importing it."""
    wrong = []
    for path in sorted(PLUGINS[plugin].rglob("*.py")):
        modules = {name.split(".")[-1] for name, _ in _imports(path) if name.startswith("qformats.")}
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and not node.attr.startswith("__")
                if private and node.value.id in modules:
                    wrong.append(f"{_name(path)}:{node.lineno} uses {node.value.id}.{node.attr}")
    assert wrong == []


def test_the_framework_imports_no_plugin():
    wrong = [
        f"{_name(path)}:{line} imports {name}"
        for path in FRAMEWORK
        for name, line in _imports(path)
        if name.split(".")[0] in PLUGINS
    ]
    assert wrong == []


def _prose(tree):
    """Nodes that are read by people: docstrings, strings that stand alone, help texts and epilogs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value
        if isinstance(node, ast.keyword) and node.arg in ("help", "epilog"):
            yield from ast.walk(node.value)


def _words(tree):
    """Names and strings that the program works with, with their lines."""
    prose = {id(node) for node in _prose(tree)}
    for node in ast.walk(tree):
        if id(node) in prose:
            continue
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Constant(value=str(text)):
                yield text, line
            case ast.Name(id=text) | ast.Attribute(attr=text) | ast.arg(arg=text) | ast.alias(name=text):
                yield text, line
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text):
                yield text, line
            case ast.keyword(arg=str(text)):
                yield text, line


FORMATS = (
    "gguf",
    "ggml",
    "gptq",
    "bitsandbytes",
    "bnb",
    "glm",
    "awq",
    "nf4",
    "q4_0",
    "q8_0",
    "q4_1",
    "iq4",
    "q4_k",
)
"""Families, and variants typical of them."""


def test_the_framework_knows_no_format():
    found = {
        (_name(path), format, line)
        for path in FRAMEWORK
        for text, line in _words(ast.parse(path.read_text()))
        for format in FORMATS
        if format in text.lower()
    }
    wrong = sorted(f"{path}:{line}: {format}" for path, format, line in found)
    assert wrong == []


def test_the_search_for_formats_finds_them():
    """Break the rule in every way that the rule covers."""
    for code in (
        "x = 'gguf'",
        "gguf = 1",
        "a.gptq",
        "def q4_0(): 1",
        "f(bnb=1)",
        "import glm",
        "x = f'{y} nf4'",
    ):
        assert any(f in text for text, _ in _words(ast.parse(code)) for f in FORMATS), code
    for code in (
        "'''About gguf.'''",
        "def f():\n    '''gguf'''",
        "Option(help='as in gguf')",
        "x = 1  # gguf",
    ):
        assert not any(f in text for text, _ in _words(ast.parse(code)) for f in FORMATS), code


OPTIONAL = {
    "jinja2": "comes with torch",
    "triton": "comes with CUDA's torch",
    "peft": "extra",
    "fastapi": "extra",
    "starlette": "comes with fastapi",
    "pydantic": "comes with fastapi",
    "uvicorn": "extra",
    "lm_eval": "extra",
    "humming": "extra",
    "ray": "extra",
    "datasets": "asked for by name",
    "pyarrow": "reads data sets that lie in a cache",
    "pytest": "runs the tests that import it",
}
"""Third parties that are imported where they are used, with a sentence if they are missing."""
IMPORTED_AS = {"pyyaml": "yaml"}
"""Distributions whose package has another name."""


def test_whatever_is_imported_is_declared():
    declared = {
        IMPORTED_AS.get(name := re.split(r"[^\w.-]", line, maxsplit=1)[0], name.replace("-", "_"))
        for line in PROJECT["project"]["dependencies"]
    }
    standard = {*sys.stdlib_module_names, "qformats", *PLUGINS}
    found = {
        name.split(".")[0]
        for path in MODULES.values()
        for name, _ in _imports(path)
        if name.split(".")[0] not in standard
    }
    assert found - declared - OPTIONAL.keys() == set()
    assert declared - found == set()
