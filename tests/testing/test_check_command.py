"""``qformats check`` and ``qformats new-plugin`` as users have them."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from cli.command import call
from testing import broken

from qformats.testing import checks


def test_all_is_well(capsys):
    result = call(capsys, "check", "dense:f32", "rtn", "-k", "check_descriptor", "-k", "options")
    assert (result.code, result.err) == (0, "")
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["passed", "failed", "skipped", "seconds"]
    assert lines[2][:4] == ["dense:f32", "1", "0", "0"]
    assert lines[3][:5] == ["quantizer", "rtn", "1", "0", "0"]


def test_failures_are_told_in_a_line_each(capsys, install):
    class Kit(broken.Kit):
        packers = (broken.NarrowKernel(), broken.Right())

    install(Kit)
    result = call(capsys, "check", "kit", "--only", "check_descriptor", "--only", "device")
    assert result.code == 1
    assert result.err == ""
    failed = [line for line in result.out.splitlines() if line.startswith("failed ")]
    assert [line.split()[1:3] for line in failed] == [
        ["check_descriptor:", "kit:narrowkernel"],
        ["check_device_layout:", "kit:narrowkernel"],
    ]
    counts = {
        line.split()[0]: line.split()[1:4] for line in result.out.splitlines() if line.startswith("kit:")
    }
    assert counts == {"kit:narrowkernel": ["0", "2", "0"], "kit:right": ["2", "0", "0"]}


def test_json(capsys, install):
    class Kit(broken.Kit):
        packers = (broken.NarrowKernel(),)

    install(Kit)
    result = call(capsys, "check", "kit:narrowkernel", "--json")
    assert result.code == 1
    report = json.loads(result.out)
    assert [row["check"] for row in report] == [check.name for check in checks("format")]
    assert {row["outcome"] for row in report} <= {"passed", "failed", "skipped"}
    assert set(report[0]) == {"check", "subject", "kind", "outcome", "reason", "seconds"}


def test_mistakes_on_the_command_line(capsys):
    result = call(capsys, "check", "nothing")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("qformats: no format, quantizer or container 'nothing'; known: ")
    result = call(capsys, "check", "dense:f32", "-k", "nothing")
    assert (result.code, result.out) == (2, "")
    assert "name of a check: found 'nothing'" in result.err


def test_a_model_of_ones_own(capsys, tmp_path):
    result = call(capsys, "check", "huggingface", "-k", "names", "--model", tmp_path / "no-model")
    assert result.code == 1
    assert "no-model" in result.out
    result = call(capsys, "check", "huggingface", "-k", "names", "--model", "demo")
    assert result.code == 0


# A new plugin.


def _environment(*paths):
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200"}


def _site(folder, site):
    """What an installation would leave behind, from the plugin's own pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head)
    points = [f"{name} = {target}" for name, target in project["entry-points"]["qformats"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[qformats]", *points]))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A plugin as it is generated, and as it would be installed."""
    folder = tmp_path_factory.mktemp("plugins") / "mine"
    done = subprocess.run(
        [sys.executable, "-m", "qformats", "new-plugin", "my-format", "-o", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{folder} is a plugin with the format my-format:int4" in done.stdout
    site = folder.parent / "site"
    _site(folder, site)
    return folder, site


def test_a_new_plugin_is_complete(plugin):
    folder, _ = plugin
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [
        "README.md",
        "pyproject.toml",
        "qformats_my_format.py",
        "tests/conftest.py",
        "tests/test_qformats_my_format.py",
    ]
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    for name in files:
        assert "$" not in (folder / name).read_text()


def test_a_new_plugin_passes_its_own_tests(plugin):
    folder, site = plugin
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"],
        cwd=folder,
        env=_environment(folder, site),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(checks('format')) + 1} passed" in done.stdout


def test_a_new_plugin_is_checked_by_the_command(plugin):
    folder, site = plugin
    done = subprocess.run(
        [sys.executable, "-m", "qformats", "check", "my-format", "-k", "check_descriptor", "-k", "rows"],
        env=_environment(folder, site),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ["my-format:int4", "2", "0", "0"] in [line.split()[:4] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "My_Format",
            r"found 'My_Format'; expected lower-case letters, digits and single hyphens, such as my-format",
        ),
        ("", r"found ''; expected lower-case letters"),
        ("a--b", r"found 'a--b'; expected lower-case"),
        ("../x", r"found '../x'; expected lower-case"),
        ("4bit", r"found '4bit'; expected lower-case"),
        ("x" * 41, r"at most 40 characters"),
        ("qformats-x", r"found 'qformats-x'; expected a name without qformats"),
        ("gguf", r"found 'gguf'; expected a name that nothing installed has; .*gguf.* are taken"),
        ("rtn", r"found 'rtn'; expected a name that nothing installed has"),
    ],
)
def test_bad_names_are_refused(capsys, tmp_path, name, message):
    result = call(capsys, "new-plugin", name, "-o", tmp_path / "x")
    assert (result.code, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert line.startswith("qformats: name of a plugin: ")
    assert re.search(message, line)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(capsys, tmp_path):
    (tmp_path / "x").mkdir()
    result = call(capsys, "new-plugin", "fine", "-o", tmp_path / "x")
    assert (result.code, result.out) == (4, "")
    assert result.err == f"qformats: {tmp_path / 'x'}: exists already. Choose another folder with --output.\n"
    assert list((tmp_path / "x").iterdir()) == []


def test_nothing_is_left_half_written(capsys, tmp_path, monkeypatch):
    from qformats.testing import new_plugin

    def full(folder, words):
        folder.mkdir()
        (folder / "README.md").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(new_plugin, "_fill", full)
    result = call(capsys, "new-plugin", "fine", "-o", tmp_path / "x")
    assert (result.code, result.out) == (4, "")
    assert result.err == f"qformats: {tmp_path / 'x'}: cannot be written (No space left on device).\n"
    assert list(tmp_path.iterdir()) == []
