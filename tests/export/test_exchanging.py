"""A folder takes the place of another one in one step: killed at any call, one of the two is there, and whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli.command import call

import qformats
from qformats.errors import OutputError
from qformats.exporting.journal import Journal, finish_or_undo
from qformats.work.exchanging import exchange

# Forks a process for each step, which it kills there: seconds for each otherwise.
CHILD = """
import os, shutil, signal, sys
from pathlib import Path
from qformats.exporting import journal

def place(target, step, able):
    calls = 0

    def killing(function):
        def called(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return called

    made = journal.Journal(target, "x")
    for name in ("config.json", "weights"):
        (made.files / name).write_text("new")
    if not able:
        journal.exchange = lambda first, second: False
    journal.exchange = killing(journal.exchange)
    for place, name in ((Path, "rename"), (Path, "mkdir"), (Path, "unlink"), (Path, "rmdir"), (os, "unlink"),
                        (os, "rmdir"), (os, "fsync"), (os, "write"), (os, "close")):
        setattr(place, name, killing(getattr(place, name)))
    made.place([(made.files, target)])
    journal.sync_folder(target.parent)
    made.discard()

for line in sys.stdin:
    child = os.fork()
    if not child:
        place(Path(sys.argv[1]) / line.strip() / "out", int(line), sys.argv[2] == "yes")
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def content(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.iterdir())} if folder.is_dir() else {}


OLD = {"config.json": "old", "more": "old"}
NEW = {"config.json": "new", "weights": "new"}


@pytest.mark.parametrize("able", ["yes", "no"])
def test_killed_between_any_two_steps(tmp_path, able):
    """With real kills, and with the recovery that the next export begins with."""
    if able == "yes" and not supported(tmp_path):
        pytest.skip("this file system cannot exchange")
    seen, step, finished = set(), 0, False
    command = [sys.executable, "-c", CHILD, str(tmp_path), able]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        while not finished:
            step += 1
            target = tmp_path / str(step) / "out"
            target.mkdir(parents=True)
            for name, text in OLD.items():
                (target / name).write_text(text)
            program.stdin.write(f"{step}\n")
            program.stdin.flush()
            code = int(program.stdout.readline())
            finished = code == 0
            assert finished or code == -signal.SIGKILL
            found = content(target)
            seen.add(tuple(found.items()))
            # Never a mixture; and where the system can, never nothing.
            assert found in ((OLD, NEW) if able == "yes" else (OLD, NEW, {}))
            finish_or_undo(target)
            after = content(target)
            assert after == (found or OLD)
            # The next export, which also finds a folder that was made and nothing more.
            Journal(target, "x").discard()
            assert content(target) == after
            assert os.listdir(target.parent) == ["out"]
    assert program.returncode == 0
    assert step > 8
    assert {tuple(OLD.items()), tuple(NEW.items())} <= seen


def supported(folder: Path) -> bool:
    first, second = folder / "first", folder / "second"
    first.mkdir()
    second.mkdir()
    able = exchange(first, second)
    first.rmdir()
    second.rmdir()
    return able


def test_exchange(tmp_path):
    if not supported(tmp_path):
        pytest.skip("this file system cannot exchange")
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").mkdir()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").is_dir()
    assert (tmp_path / "b").read_text() == "a"
    with pytest.raises(FileNotFoundError) as caught:
        exchange(tmp_path / "a", tmp_path / "none")
    assert caught.value.errno == errno.ENOENT
    assert (tmp_path / "a").is_dir()


def test_a_replaced_folder_is_never_missing(llama, tmp_path, monkeypatch):
    """Looked at at every rename of a real export."""
    if not supported(tmp_path):
        pytest.skip("this file system cannot exchange")
    target = tmp_path / "out"
    qformats.export(llama, target, format="dense:f16")
    rename, looked = Path.rename, []

    def watched(self, other):
        looked.append((target / "config.json").is_file())
        moved = rename(self, other)
        looked.append((target / "config.json").is_file())
        return moved

    monkeypatch.setattr(Path, "rename", watched)
    qformats.export(llama, target, format="dense:bf16", force=True)
    assert looked
    assert all(looked)
    assert os.listdir(tmp_path) == ["out"]


def test_a_strangers_log_exchanges_nothing(llama, tmp_path):
    """What a line tells counts only with this user's token, the inode too."""
    target = tmp_path / "out"
    qformats.export(llama, target, format="dense:f16")
    before = content_of(target)
    journal = Journal(target, "x")
    state = target.stat()
    with (journal.folder / "journal.jsonl").open("a") as log:
        log.write(f'{{"placing":[["files","out"]],"new":[{state.st_dev},{state.st_ino}],"token":"0"}}\n')
    journal.close()
    qformats.export(llama, target, format="dense:f16", force=True)
    assert content_of(target) == before


def content_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("length", [200, 237, 238, 241])
def test_long_names_of_files(llama, tmp_path, length, capsys):
    name = "x" * (length - 5) + ".gguf"
    qformats.export(llama, tmp_path / name, format="gguf:q8_0")
    assert sorted(os.listdir(tmp_path)) == [name, f"{name}.qformats.json"]
    qformats.export(llama, tmp_path / name, format="gguf:q4_0", force=True)


def test_names_of_255_bytes(llama, tmp_path, capsys):
    """A folder may have one; a file may not, since its record has a longer name. Either way the target is at fault."""
    folder = "ä" * 127 + "x"
    qformats.export(llama, tmp_path / folder, format="dense:f16")
    qformats.export(llama, tmp_path / folder, format="dense:bf16", force=True)
    assert os.listdir(tmp_path) == [folder]
    for name in ("x" * 250 + ".gguf", "x" * 237 + ".gguf", "x" * 300 + ".gguf"):
        with pytest.raises(OutputError, match=r"its name is too long.*file systems hold 255"):
            qformats.export(llama, tmp_path / name, format="gguf:q8_0")
    with pytest.raises(OutputError, match="its name is too long"):
        qformats.export(llama, tmp_path / ("x" * 256), format="dense:f16")
    assert call(capsys, "export", llama, "-f", "gguf:q8_0", "-o", tmp_path / ("x" * 250)).code == 4
    assert os.listdir(tmp_path) == [folder]
