"""What is published holds everything, and works where it is installed: the sdist, and the wheel built from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*", "tests")
BUILD = "import setuptools.build_meta as b, sys; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def _built(kind: str, source: Path, target: Path) -> Path:
    """Call the build backend as pip does."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the sdist of a copy of the sources."""
    work = tmp_path_factory.mktemp("built")
    copy = work / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("qformats", "plugins"):
        shutil.copytree(ROOT / name, copy / name, ignore=IGNORED)
    sdist = _built("build_sdist", copy, work)
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    return _built("build_wheel", unpacked, work)


def test_every_file_of_the_packages_is_in_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = set()
    for base in (ROOT, ROOT / "plugins"):
        for package in base.glob("qformats*"):
            files = [
                path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
            ]
            expected |= {path.relative_to(base).as_posix() for path in files if ".egg-info" not in str(path)}
    assert held == expected


def test_every_package_says_that_it_is_typed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    packages = {
        name.split("/")[0] for name in names if name.startswith("qformats") and ".dist-info" not in name
    }
    assert len(packages) > 4
    assert {f"{package}/py.typed" for package in packages} <= names


def test_an_installed_wheel_works(wheel, tmp_path):
    """In an empty folder, with nothing of the repository in reach but the dependencies."""
    site = tmp_path / "site"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    program = (
        "import json, sys; from qformats.cli import main; import qformats; from qformats.registry import registry\n"
        "import importlib.metadata as m\n"
        "records = registry().failures\n"
        "files = {p.spec.family: sys.modules[type(p).__module__].__file__ for p in registry().formats()}\n"
        "print(json.dumps([qformats.__file__, records, files, m.version('qformats')]))\n"
        "sys.argv = ['qformats', 'export', 'demo', '--format', 'dense:f16', '-o', 'demo-f16', '-q']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, failures, files, version = json.loads(done.stdout.splitlines()[0])
    assert failures == {}
    assert Path(where).is_relative_to(site)
    assert files
    assert all(Path(file).is_relative_to(site) for file in files.values()), files
    assert wheel.name.startswith(f"qformats-{version}-")
    assert (tmp_path / "demo-f16" / "model.safetensors").stat().st_size > 9_900_000
