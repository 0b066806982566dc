"""What the operating system refuses is one sentence, also where no file is named."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from cli.command import call

ROOM = "Free some space, or set TMPDIR to a folder with room for temporary files"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_full_disk(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        result = call(capsys, "formats", "--json")
    assert (result.code, result.err) == (4, f"qformats: No space left on device. {ROOM}\n")


def test_no_folder_for_temporary_files(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    result = call(capsys, "generate", "demo", "x", "--device", "cpu")
    assert (result.code, result.out) == (3, "")
    assert result.err == f"qformats: No usable temporary directory found in ['{tmp_path}/gone']. {ROOM}\n"
