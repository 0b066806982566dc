"""Exports that are interrupted, killed, resumed, or disturbed: nothing half-written, and always the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from cli.command import call, ended, run, start

import qformats

PARTIAL = ".out.gguf.qformats-partial"


def sliced(place: Path) -> int:
    """Slices that the journal of a running export holds."""
    try:
        return (place / PARTIAL / "journal.jsonl").read_bytes().count(b"\n") - 1
    except FileNotFoundError:
        return 0


def started(model: Path, place: Path, *args: str, slices: int = 6) -> subprocess.Popen[str]:
    """An export that has written some slices, and stands still."""
    process = start("export", model, "-f", "gguf:q8_0", "-o", place / "out.gguf", "-j", "1", *args)
    deadline = time.monotonic() + 60
    while sliced(place) < slices:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    return process


def killed(model: Path, place: Path, *args: str, slices: int = 6) -> None:
    code, _ = ended(started(model, place, *args, slices=slices), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert os.listdir(place) == [PARTIAL]


def content(place: Path) -> dict[str, str]:
    """Checksums of all files; the record is among them."""
    return {file.name: sha256(file.read_bytes()).hexdigest() for file in place.iterdir()}


def resumed(model: Path, place: Path, workers: int = 2) -> int:
    """Export again, in this process; gives the number of slices that were taken over."""
    return qformats.export(model, place / "out.gguf", format="gguf:q8_0", workers=workers).resumed


@pytest.fixture(scope="module")
def clean(large, tmp_path_factory) -> dict[str, str]:
    """What an undisturbed export writes, with four threads."""
    place = tmp_path_factory.mktemp("clean")
    assert resumed(large, place, workers=4) == 0
    found = content(place)
    shutil.rmtree(place)
    assert sorted(found) == ["out.gguf", "out.gguf.qformats.json"]
    return found


@pytest.fixture
def place(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(large, place, number):
    code, err = ended(started(large, place), number, signal.SIGCONT)
    assert code == 128 + number
    assert err == "qformats: interrupted; the target is unchanged\n"
    assert os.listdir(place) == []


def test_interrupted_removes_the_folders_that_it_made(large, place):
    deep = place / "a" / "b"
    process = start("export", large, "-f", "gguf:q8_0", "-o", deep / "out.gguf", "-j", "1")
    while sliced(deep) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    assert ended(process, signal.SIGINT)[0] == 130
    assert os.listdir(place) == []


def test_impatient_user(large, place):
    code, err = ended(started(large, place), signal.SIGCONT, *[signal.SIGINT] * 20)
    assert code == 130
    assert "Traceback" not in err
    assert os.listdir(place) == []


def test_interrupted_and_kept(large, place, clean):
    code, err = ended(started(large, place, "--keep-partial"), signal.SIGINT, signal.SIGCONT)
    assert (code, err) == (
        130,
        "qformats: interrupted; what was written is kept; run the same command again to go on\n",
    )
    assert os.listdir(place) == [PARTIAL]
    assert resumed(large, place) >= 6
    assert content(place) == clean


def test_killed_and_resumed(large, place, clean):
    killed(large, place)
    result = run("export", large, "-f", "gguf:q8_0", "-o", place / "out.gguf", "-j", "4")
    assert result.code == 0
    assert result.err.startswith("qformats: going on with an interrupted export: ")
    assert content(place) == clean


def test_torn_journal(large, place, clean):
    """A line that was not finished is cut off, and what follows it is read the next time."""
    killed(large, place, slices=8)
    journal = place / PARTIAL / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:5]) + lines[5][:11])
    killed(large, place, slices=11)
    assert all(json.loads(line) for line in journal.read_bytes().splitlines()[:11])
    assert resumed(large, place) >= 11
    assert content(place) == clean


def test_damaged_journal(large, place, clean):
    killed(large, place)
    journal = place / PARTIAL / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1] + b'\x00\xff{"slice"\n' + b"".join(lines[2:]))
    assert resumed(large, place) == 1
    assert content(place) == clean


def test_damaged_slices_are_written_again(large, place, clean):
    """After a power cut the journal may know of bytes that never reached the disk."""
    killed(large, place)
    with (place / PARTIAL / "files" / "out.gguf").open("r+b") as file:
        entry = json.loads((place / PARTIAL / "journal.jsonl").read_text().splitlines()[2])
        file.seek(entry["spans"][0][1])
        file.write(bytes(1000))
    assert resumed(large, place) >= 5
    assert content(place) == clean


def test_other_options_begin_anew(large, place, clean):
    killed(large, place, "--tensor-type", "ffn_down=q4_0")
    assert resumed(large, place) == 0
    assert content(place) == clean


def test_other_source_begins_anew(large, place, clean):
    killed(large, place)
    weights = large / "model.safetensors"
    state = weights.stat()
    try:
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert resumed(large, place) == 0
    finally:
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content(place) == clean


def test_source_that_changes_while_it_is_read(large, place):
    weights = large / "model.safetensors"
    state = weights.stat()
    process = started(large, place)
    try:
        os.utime(weights)
        code, err = ended(process, signal.SIGCONT)
    finally:
        os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert code == 3
    assert f"{weights}: changed while it was being read" in err
    assert os.listdir(place) == []


def test_two_exports_to_one_target(large, place, clean, capsys):
    first = started(large, place)
    second = call(capsys, "export", large, "-f", "gguf:q8_0", "-o", place / "out.gguf")
    assert second.code == 4
    assert "is being written by another process. Wait for it, or stop it." in second.err
    assert os.listdir(place) == [PARTIAL]
    assert ended(first, signal.SIGCONT) == (0, "")
    assert content(place) == clean


def test_folder_killed_while_it_replaced_another(llama, tmp_path, capsys):
    """The old folder is moved aside for a moment; whoever comes next puts it back."""
    from qformats.exporting.journal import Journal

    journal = Journal(tmp_path / "out", "x")
    (journal.folder / "replaced" / "out").mkdir(parents=True)
    (journal.folder / "replaced" / "out" / "config.json").write_text("{}")
    journal.close()
    failed = call(capsys, "export", llama, "-f", "dense:f16", "-o", tmp_path / "out")
    assert failed.code == 4
    assert "exists already" in failed.err
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["config.json"]


@pytest.mark.parametrize("delay", [0.3, 1.0])
def test_interrupted_at_any_time(llama, tmp_path, delay):
    with start("export", llama, "-f", "gguf", "-o", tmp_path / "out.gguf", fresh=True) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    # Before its first line of code, Python itself ends with the signal.
    assert process.returncode in (0, 130, -signal.SIGINT)
    left = sorted(os.listdir(tmp_path))
    assert left == (["out.gguf", "out.gguf.qformats.json"] if process.returncode == 0 else [])


def test_interrupted_during_an_import(tmp_path):
    """The import is finished first: torch and numpy would swallow the interrupt and stay half imported."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.2)\n"
        "print('imported', flush=True)\n"
    )
    program = (
        "import signal, sys, time\n"
        "from qformats.cli import interrupt\n"
        "signal.signal(signal.SIGINT, interrupt)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n"
        "    import slow\n"
        "    time.sleep(10)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "imported\ninterrupted\n", done.stderr
