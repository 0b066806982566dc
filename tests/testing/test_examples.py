"""The examples of the documentation pass the kit too, as third parties would install them."""

import sys
import tomllib
from pathlib import Path

import pytest

from qformats.registry import registry
from qformats.testing import run_checks

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
OTHERS = ["qformats-arcee"]
"""What the kit checks nothing of: an architecture, which tests/gguf/test_other_plugins_architectures.py runs."""


@pytest.fixture
def example(request, tmp_path, monkeypatch):
    """An example, installed in this process; gives its name."""
    folder = EXAMPLES / request.param
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    points = project["entry-points"]["qformats"]
    lines = [f"{name} = {target}" for name, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[qformats]", *lines]))
    for path in (tmp_path, folder):
        monkeypatch.syspath_prepend(str(path))
    registry.cache_clear()
    yield next(iter(points))
    registry.cache_clear()
    for module in points.values():
        sys.modules.pop(module, None)


@pytest.mark.parametrize(
    "example",
    sorted({path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")} - {*OTHERS}),
    indirect=True,
)
def test_an_example_passes(example):
    results = run_checks(example)
    assert [result.reason for result in results if result.outcome == "failed"] == []
    assert sum(result.outcome == "passed" for result in results) >= 10
