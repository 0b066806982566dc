"""Who may know whom: plugins use the public framework only, and the framework knows no format."""

import ast
import tomllib
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_import_neither_each_other_nor_private_parts(plugin):
    wrong = []
    for path in sorted(PLUGINS[plugin].rglob("*.py")):
        for name, line in _imports(path):
            parts = name.split(".")
            foreign = parts[0].startswith("qformats_") and parts[0] != plugin
            private = parts[0] == "qformats" and any(part.startswith("_") for part in parts[1:])
            if foreign or private:
                wrong.append(f"{_name(path)}:{line} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_use_no_private_attribute_of_the_framework(plugin):
    """``from qformats import grids; grids._range`` is no better than importing it."""
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
