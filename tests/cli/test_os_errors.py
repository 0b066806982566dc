"""What the operating system refuses is one sentence, also where no file is named."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from cli.command import call, environment

ROOM = "Free some space, or set TMPDIR to a folder with room for temporary files"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        result = call(capsys, "formats", "--json")
    assert (result.code, result.err) == (4, f"qformats: No space left on device. {ROOM}\n")


def test_no_folder_for_temporary_files(tmp_path):
    """In a process of its own: parts of torch cannot be imported then, nor later on in the same process."""
    gone = str(tmp_path / "gone")
    code = (
        f"import sys, tempfile; tempfile._candidate_tempdir_list = lambda: [{gone!r}];"
        "sys.argv = ['qformats', 'generate', 'demo', 'x', '--device', 'cpu'];"
        "from qformats.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"qformats: No usable temporary directory found in ['{gone}']. {ROOM}\n"


def test_too_many_open_files(capsys, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EMFILE, "Too many open files", "model.safetensors")

    monkeypatch.setattr("qformats.sources._locate", refuse)
    result = call(capsys, "inspect", "demo")
    assert (result.code, result.out) == (3, "")
    assert result.err == (
        "qformats: model.safetensors: Too many open files. Allow more open files: ulimit -n 4096\n"
    )


def test_a_folder_that_did_not_exist_is_named(capsys, tmp_path):
    target = tmp_path / "new" / "folder" / "out.gguf"
    result = call(capsys, "export", "demo", "-f", "gguf:q8_0", "-o", target)
    assert (result.code, result.err) == (0, f"qformats: made the folder {target.parent}\n")
    again = call(capsys, "export", "demo", "-f", "gguf:q8_0", "-o", target, "--force")
    assert (again.code, again.err) == (0, "")
