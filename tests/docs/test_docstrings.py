"""Docstrings of what plugins and users import: each has an example, and each example runs as it is printed."""

import doctest
import importlib
import inspect
import warnings
from pathlib import Path

import pytest
from public_rooms import PUBLIC

import qformats

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ROOT = Path(qformats.__file__).parent
MODULES = sorted(
    ".".join(("qformats", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("room", sorted(PUBLIC))
def test_public_names_have_an_example(room):
    module = importlib.import_module(room)
    public = {name: getattr(module, name) for name in module.__all__}
    lacking = [
        name
        for name, found in public.items()
        if (inspect.isclass(found) or inspect.isfunction(found)) and ">>> " not in (found.__doc__ or "")
    ]
    assert lacking == []


@pytest.mark.parametrize("module", MODULES)
def test_examples_run_as_they_are_printed(module, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    attempted = 0
    with warnings.catch_warnings():
        # Whatever a library warns of while it is imported belongs to no example.
        warnings.simplefilter("ignore")
        for example in examples:
            outcome = doctest.DocTestRunner(optionflags=FLAGS).run(example, clear_globs=True)
            attempted += outcome.attempted
            assert not outcome.failed, capsys.readouterr().out
    assert attempted
    assert list(tmp_path.iterdir()) == []
