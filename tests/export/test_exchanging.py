"""A folder takes the place of another one in one step: killed at any call, one of the two is there, and whole."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from cli.command import call
from robustness.killing import ended

import qformats
from qformats.errors import OutputError
from qformats.exporting import journal
from qformats.exporting.journal import Journal, finish_or_undo
from qformats.work.exchanging import exchange


def replace(target: Path, names: tuple[str, ...], able: bool) -> None:
    """What an export does when all is written: a folder of these files, or files beside each other."""
    if not able:
        journal.exchange = lambda first, second: False
    made = Journal(target, "x")
    for name in names:
        (made.files / name).write_text("new")
    folder = target.suffix == ""
    made.place(
        [(made.files, target)] if folder else [(made.files / name, target.with_name(name)) for name in names]
    )
    journal.sync_folder(target.parent)
    made.discard()


def content(folder: Path) -> dict[str, str]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {file.name: file.read_text() for file in files if file.is_file()}


OLD = {"config.json": "old", "more": "old"}
NEW = {"config.json": "new", "weights": "new"}


@pytest.mark.parametrize("able", ["yes", "no"])
def test_killed_between_any_two_steps(tmp_path, able):
    """With real kills, and with the recovery that the next export begins with."""
    if able == "yes" and not supported(tmp_path):
        pytest.skip("this file system cannot exchange")
    seen, step, finished = set(), 0, False
    while not finished:
        step += 1
        target = tmp_path / str(step) / "out"
        target.mkdir(parents=True)
        for name, text in OLD.items():
            (target / name).write_text(text)
        log = tmp_path / "log"
        code = ended(partial(replace, target, tuple(NEW), able == "yes"), step=step, log=log)
        finished = code == 0
        assert finished or code == -signal.SIGKILL, log.read_text()
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
    assert step > 8
    assert {tuple(OLD.items()), tuple(NEW.items())} <= seen


FILES = {
    "file": ["out.gguf.qformats.json", "out.gguf"],
    "split": [
        "out.gguf.qformats.json",
        "out-00003-of-00003.gguf",
        "out-00002-of-00003.gguf",
        "out-00001-of-00003.gguf",
    ],
}
"""What is put in place, in this order."""


@pytest.mark.parametrize("able", ["yes", "no"])
@pytest.mark.parametrize("kind", FILES)
def test_files_killed_between_any_two_steps(tmp_path, kind, able):
    """One file: always one of the two. Several: while the first part is there, all others are of its model."""
    if able == "yes" and not supported(tmp_path):
        pytest.skip("this file system cannot exchange")
    names, seen, step, finished = FILES[kind], set(), 0, False
    record, first = names[0], names[-1]
    while not finished:
        step += 1
        place = tmp_path / str(step)
        place.mkdir()
        for name in names:
            (place / name).write_text("old")
        log = tmp_path / "log"
        code = ended(partial(replace, place / "out.gguf", tuple(names), able == "yes"), step=step, log=log)
        finished = code == 0
        assert finished or code == -signal.SIGKILL, log.read_text()
        found = {name: text for name, text in content(place).items() if not name.startswith(".")}
        seen.add(tuple(sorted(found.items())))
        if first in found:
            # A record may be missing beside its file; it is never another one's.
            assert set(found.values()) == {found[first]}
            assert found.keys() >= set(names) - ({record} if kind == "file" else set())
        else:
            # No program takes the rest for a model.
            assert kind == "split" or able == "no"
        finish_or_undo(place / "out.gguf")
        after = content(place)
        assert after in ({name: "old" for name in names}, {name: "new" for name in names})
        assert found.get(first, "old") == after[first]
        Journal(place / "out.gguf", "x").discard()
        assert content(place) == after
        assert sorted(os.listdir(place)) == sorted(names)
    assert step > 12
    assert {tuple(sorted({name: text for name in names}.items())) for text in ("old", "new")} <= seen


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
