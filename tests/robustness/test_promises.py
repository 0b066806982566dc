"""What docs/security.md promises, looked for in the code itself; and that the tests it names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [file for home in ("qformats", "plugins") for file in sorted((ROOT / home).rglob("*.py"))]
_RUNNING = {"eval", "exec", "compile", "__import__"}
_UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}


_PRIVATE = ("qformats/calibration/teamwork.py", "qformats/calibration/member.py")
"""Processes of one calibration: what they unpickle comes through a pipe from the process that started them."""


def trees():
    return [(file, ast.parse(file.read_text())) for file in SOURCES]


def name_of(function):
    """A call's function as it is written: `torch.load`."""
    return ast.unparse(function) if isinstance(function, ast.Name | ast.Attribute) else ""


def forbidden(tree):
    """Calls and imports that a file from a stranger could make run code with, as lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [each.name for each in node.names]
            )
            if any(module.partition(".")[0] in _UNPICKLING for module in modules):
                yield f"{node.lineno}: imports {modules}"
        if not isinstance(node, ast.Call):
            continue
        called, named = name_of(node.func), {each.arg: each.value for each in node.keywords}
        constants = {key: value.value for key, value in named.items() if isinstance(value, ast.Constant)}
        if called in _RUNNING or called in ("os.system", "os.popen", "yaml.load", "yaml.unsafe_load"):
            yield f"{node.lineno}: calls {called}"
        if called == "torch.load" and constants.get("weights_only") is not True:
            yield f"{node.lineno}: torch.load without weights_only=True"
        if "trust_remote_code" in named and constants.get("trust_remote_code") is not False:
            yield f"{node.lineno}: trust_remote_code"
        if called.endswith("np.load") or constants.get("allow_pickle") is True:
            yield f"{node.lineno}: arrays of pickled objects"
        if constants.get("shell") is True or called.endswith((".extractall", ".extract")):
            yield f"{node.lineno}: {called}"


def test_nothing_runs_what_a_file_says():
    found = [
        f"{file.relative_to(ROOT)}:{line}"
        for file, tree in trees()
        for line in forbidden(tree)
        if str(file.relative_to(ROOT)) not in _PRIVATE
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "from_pretrained(path, trust_remote_code=True)",
        "from_pretrained(path, trust_remote_code=told)",
        "np.load(path)",
        "subprocess.run(command, shell=True)",
        "zipfile.ZipFile(path).extractall(folder)",
        "yaml.load(text)",
    ],
)
def test_each_of_these_would_be_found(line):
    assert list(forbidden(ast.parse(line)))


def test_templates_are_rendered_in_one_place_and_for_chats_only():
    """jinja2 is imported by the process that renders; that is started for prompts (its own example is the third)."""
    renders = {
        str(file.relative_to(ROOT))
        for file, tree in trees()
        for node in ast.walk(tree)
        if (
            isinstance(node, ast.Import)
            and any(each.name.partition(".")[0] == "jinja2" for each in node.names)
        )
        or (isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "jinja2")
    }
    assert renders == {"qformats/folder/chat_process.py"}
    asks = {
        str(file.relative_to(ROOT)) for file, _ in trees() if "folder.chat_render import" in file.read_text()
    }
    assert asks == {
        "qformats/chatting/prompts.py",
        "qformats/cli/generate.py",
        "qformats/folder/chat_render.py",
    }


def test_the_tests_that_the_page_names_are_there():
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 10
    for file, test in named:
        assert (ROOT / file).is_file(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), test
