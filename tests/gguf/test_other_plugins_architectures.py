"""Architectures that other plugins bring by the GGUF plugin's own hook: the documentation's example, and wrong ones."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from cli.command import call
from models import architectures
from oracles import hf
from oracles.llama_cpp import LlamaCpp
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "qformats-arcee"
TABLE = (EXAMPLE / "qformats_arcee" / "arcee.toml").read_text()
MODULE = """
from pathlib import Path
import qformats

@qformats.hookimpl
def qformats_gguf_register_architectures():
    return {returned}
"""


def installed(site, name, version="1.0"):
    """What ``pip install`` leaves behind beside the package itself."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
    )
    (info / "entry_points.txt").write_text(f"[qformats]\n{name} = {name}\n")
    return site


def plugin(site, name, files, returned=None):
    """A package of a third party with files of architectures."""
    package = installed(site, name) / name
    package.mkdir()
    for file, content in files.items():
        (package / file).write_text(content)
    listed = ", ".join(f"Path(__file__).with_name({file!r})" for file in files)
    (package / "__init__.py").write_text(MODULE.format(returned=returned or f"[{listed}]"))


def run(sites, *arguments):
    """The command line in an environment that has these packages."""
    path = os.pathsep.join([*map(str, sites), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("QFORMATS_PLUGINS", None)
    command = [sys.executable, "-m", "qformats", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def arcee(tmp_path_factory):
    """A tiny random model of an architecture that is in no table of ours."""
    case = architectures.Case("arcee", "ArceeForCausalLM", {"head_dim": 32})
    architectures.CASES["arcee"] = case
    try:
        return architectures.build("arcee", tmp_path_factory.mktemp("model") / "arcee")
    finally:
        del architectures.CASES["arcee"]


def test_the_example_of_the_documentation_works_both_ways(tmp_path, arcee, capsys):
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    sites = [installed(tmp_path / "site", project["entry-points"]["qformats"]["arcee"]), EXAMPLE]
    file, back = tmp_path / "m.gguf", tmp_path / "back"
    without = call(capsys, "export", arcee, "--format", "gguf:f32", "-o", file)
    assert without.code != 0
    assert "model_type: found 'arcee'" in " ".join(without.err.split())
    for source, format, target in ((arcee, "gguf:f32", file), (file, "dense:f32", back)):
        done = run(sites, "export", source, "--format", format, "-o", target)
        assert done.returncode == 0, done.stderr
    ids = list(range(3, 67))
    with LlamaCpp(file) as gguf:
        assert np.abs(gguf.log_probs(ids) - hf.log_probs(arcee, ids)).max() < 1e-4
    before, after = load_file(arcee / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    listed = json.loads(run(sites, "plugins", "--json").stdout)
    (record,) = [each for each in listed if each["name"] == "qformats_arcee"]
    assert record["error"] is None
    assert record["hooks"] == ["qformats_gguf_register_architectures"]


def test_the_page_shows_the_example():
    page = (ROOT / "docs" / "plugin_hooks.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```toml\n(arch = .*?)```", page, re.DOTALL)
    assert tomllib.loads(shown) == tomllib.loads(TABLE)


WRONG = {
    "syntax": ({"arcee.toml": TABLE + "\n[colours]\n"}, "unknown keys colours"),
    "arch": ({"arcee.toml": TABLE.replace('arch = "arcee"', "")}, "lacks 'arch'"),
    "unnamed": (
        {"arcee.toml": TABLE.replace('arch = "arcee"', 'arch = "nobodys"')},
        "gguf has no name for model.embed_tokens; it needs `to`",
    ),
    "file": ({"llama.toml": TABLE}, "architecture file name 'llama' is taken by plugin 'gguf' of qformats"),
    "type": (
        {"arcee.toml": TABLE.replace("[models.arcee]", "[models.llama]")},
        "model type name 'llama' is taken by plugin 'gguf' of qformats",
    ),
    "files": (
        {"arcee.toml": TABLE.replace('arch = "arcee"', 'arch = "llama"')},
        "GGUF architecture name 'llama' is taken by plugin 'gguf' of qformats",
    ),
}


def test_wrong_ones_are_left_out_and_take_no_other_down(tmp_path):
    for kind, (files, _) in WRONG.items():
        plugin(tmp_path / "site", f"qformats_{kind}", files)
    plugin(tmp_path / "site", "qformats_returned", {}, repr("arcee.toml"))
    done = run([tmp_path / "site"], "export", "demo", "--format", "gguf:q8_0", "-o", tmp_path / "m.gguf")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    for kind, expected in {
        **{kind: expected for kind, (_, expected) in WRONG.items()},
        "returned": "returned 'arcee.toml', expected a list of paths",
    }.items():
        assert expected in said, kind
        assert f"plugin 'qformats_{kind}' of qformats-{kind} 1.0" in said
