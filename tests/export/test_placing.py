"""The last step of an export: old files out, new ones in, and at no time a mixture of both."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path

import pytest

import qformats
from qformats.errors import OutputError
from qformats.exporting import Recipe, make_plan
from qformats.exporting.journal import Journal, Span, Written

# The package's attribute of this name is the function.
engine = importlib.import_module("qformats.exporting.run")
SMALL = {"max-shard-size": "50KB"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def visible(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.startswith(".")}


def meanwhile(monkeypatch, action) -> None:
    """Do something when all slices are written, before they are put in place."""
    original = engine.fill

    def fill(*args) -> None:
        original(*args)
        action()

    monkeypatch.setattr(engine, "fill", fill)


@pytest.fixture
def _no_exchange(monkeypatch):
    """As on a system that cannot let two folders change places."""
    monkeypatch.setattr("qformats.exporting.journal.exchange", lambda first, second: False)


def at_rename(monkeypatch, number: int, error: BaseException, lasting: bool = False) -> None:
    """Raise instead of renaming for the nth time, and from then on if it is lasting."""
    original, calls = Path.rename, []

    def rename(self, target) -> Path:
        calls.append(target)
        if len(calls) == number or (lasting and len(calls) > number):
            raise error
        return original(self, target)

    monkeypatch.setattr(Path, "rename", rename)


class Killed(BaseException):
    """Ends the process in the eyes of the engine: nothing is cleaned up."""


def kill_at_rename(monkeypatch, number: int, export) -> None:
    with monkeypatch.context() as patch:
        at_rename(patch, number, Killed())
        # A killed process runs no handlers, but its lock is gone.
        patch.setattr(Journal, "discard", Journal.close)
        with pytest.raises(Killed):
            export()


@pytest.mark.parametrize(("kind", "name"), [("gguf:q4_0", "out.gguf"), ("dense:f16", "out")])
def test_target_that_appears_while_filling(llama, tmp_path, monkeypatch, kind, name):
    def appear() -> None:
        if name == "out":
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text("mine")
        else:
            (tmp_path / name).write_text("mine")

    meanwhile(monkeypatch, appear)
    with pytest.raises(OutputError, match="exists already"):
        qformats.export(llama, tmp_path / name, format=kind)
    assert list(contents(tmp_path).values()) == [b"mine"]


@pytest.mark.usefixtures("_no_exchange")
@pytest.mark.parametrize(
    ("kind", "number"),
    [("gguf:q8_0", 1), ("gguf:q8_0", 3), ("gguf:q8_0", 6), ("dense:f16", 1), ("dense:f16", 2)],
)
def test_failed_replacement_is_undone(llama, tmp_path, monkeypatch, kind, number):
    target = tmp_path / "out"
    qformats.export(llama, target, format="gguf:q4_0" if "gguf" in kind else "dense:f32", options=SMALL)
    before = contents(tmp_path)
    at_rename(monkeypatch, number, OSError(5, "Input/output error"))
    with pytest.raises(OutputError, match="cannot be put in place"):
        qformats.export(llama, target, format=kind, options=SMALL, force=True)
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("_no_exchange")
def test_what_cannot_be_put_back_is_kept(llama, tmp_path, monkeypatch):
    """The old folder is aside, the new one cannot come in, and the old one cannot go back."""
    target, partial = tmp_path / "out", tmp_path / ".out.qformats-partial"
    qformats.export(llama, target, format="dense:f16")
    before = contents(target)
    with monkeypatch.context() as patch:
        at_rename(patch, 2, OSError(5, "Input/output error"), lasting=True)
        with pytest.raises(OutputError, match="could not be restored") as caught:
            qformats.export(llama, target, format="dense:bf16", force=True)
    assert str(partial / "replaced") in str(caught.value)
    assert contents(partial / "replaced" / "out") == before
    # Whoever comes next puts it back.
    with pytest.raises(OutputError, match="exists already"):
        qformats.export(llama, target, format="dense:bf16")
    assert contents(target) == before
    assert qformats.export(llama, target, format="dense:bf16", force=True).resumed > 0
    assert contents(target) != before
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.usefixtures("_no_exchange")
def test_what_is_in_the_way_of_putting_back(llama, tmp_path, monkeypatch):
    target, replaced = tmp_path / "out", tmp_path / ".out.qformats-partial" / "replaced"
    qformats.export(llama, target, format="dense:f16")
    before = contents(target)
    kill_at_rename(monkeypatch, 2, lambda: qformats.export(llama, target, format="dense:bf16", force=True))
    target.mkdir()
    for _ in range(2):
        with pytest.raises(OutputError, match=f"File exists.* is in {replaced}"):
            qformats.export(llama, target, format="dense:bf16", force=True)
        assert contents(replaced / "out") == before
    target.rmdir()
    qformats.export(llama, target, format="dense:f16", force=True)
    assert contents(tmp_path) == {f"out/{name}": data for name, data in before.items()}


def test_killed_after_the_folder_was_replaced(llama, tmp_path, monkeypatch):
    """The old folder is still there, and must not be in the way of the next replacement."""
    target = tmp_path / "out"
    qformats.export(llama, target, format="dense:f16")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "discard", Journal.close)
        qformats.export(llama, target, format="dense:bf16", force=True)
    assert (tmp_path / ".out.qformats-partial" / "replaced" / "out" / "config.json").exists()
    new = contents(target)
    with pytest.raises(OutputError, match="exists already"):
        qformats.export(llama, target, format="dense:f32")
    assert contents(tmp_path) == {f"out/{name}": data for name, data in new.items()}
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "discard", Journal.close)
        qformats.export(llama, target, format="dense:f32", force=True)
    qformats.export(llama, target, format="dense:bf16", force=True)
    assert contents(tmp_path) == {f"out/{name}": data for name, data in new.items()}


def test_split_model_is_never_a_mixture(llama, tmp_path, monkeypatch):
    """Killed at any rename, the old model or none can be opened; the next export has the old one back, or goes on."""
    target = tmp_path / "out.gguf"
    qformats.export(llama, target, format="gguf:q4_0", options={"max-shard-size": "30KB"})
    old = contents(tmp_path)
    shards = sorted(name for name in old if name.endswith(".gguf"))
    expected = tmp_path.with_name(tmp_path.name + "-expected")
    # The same number of shards, so that the names are the same.
    options = {"max-shard-size": "110KB"}
    qformats.export(llama, expected / "out.gguf", format="gguf:f16", options=options)
    new = contents(expected)
    shutil.rmtree(expected)
    assert sorted(new) == sorted(old)
    renames = 2 * len(old)
    for number in range(1, renames + 1):
        kill_at_rename(
            monkeypatch,
            number,
            lambda: qformats.export(llama, target, format="gguf:f16", options=options, force=True),
        )
        if number > 1:
            assert not (tmp_path / shards[0]).exists()
        with pytest.raises(OutputError, match="exists already"):
            qformats.export(llama, target, format="gguf:f16", options=options)
        assert visible(tmp_path) == old
    kill_at_rename(
        monkeypatch,
        renames,
        lambda: qformats.export(llama, target, format="gguf:f16", options=options, force=True),
    )
    report = qformats.export(llama, target, format="gguf:f16", options=options, force=True)
    assert report.resumed > 0
    assert contents(tmp_path) == new


def test_split_targets_with_the_same_files_exclude_each_other(llama, tmp_path):
    def plan(name: str, options: dict[str, str]):
        return make_plan(qformats.open(llama), tmp_path / name, Recipe("gguf:q8_0"), options)

    split, plain = plan("m", SMALL), plan("m.gguf", SMALL)
    assert [f.name for f in split.layout.files] == [f.name for f in plain.layout.files]
    journal = Journal(plain.target, "x", plain.partial_name)
    with pytest.raises(OutputError, match="is being written by another process"):
        engine.execute(split)
    assert plan("m", {}).partial_name == "m"
    engine.execute(plan("m", {}))
    journal.discard()
    assert sorted(os.listdir(tmp_path)) == ["m", "m.qformats.json"]


def test_discard_removes_the_log_last(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "out", "x")
    journal.add(0, Written([Span(0, 0, 1, "")]))
    original, order = os.unlink, []

    def unlink(path, **kwargs) -> None:
        order.append(os.path.basename(os.fspath(path)))
        original(path, **kwargs)

    (journal.files / "a").write_text("")
    (journal.folder / "replaced").mkdir()
    monkeypatch.setattr(os, "unlink", unlink)
    journal.discard()
    assert order == ["a", "journal.jsonl"]
    assert os.listdir(tmp_path) == []


def test_link_that_leads_nowhere_is_a_target(llama, tmp_path):
    for link, to in (("out.gguf", "nowhere"), ("loop.gguf", "loop.gguf")):
        target = tmp_path / link
        target.symlink_to(tmp_path / to)
        with pytest.raises(OutputError, match="exists already"):
            qformats.export(llama, target, format="gguf:q4_0")
        assert target.is_symlink()
        qformats.export(llama, target, format="gguf:q4_0", force=True)
        assert target.is_file()
        assert not target.is_symlink()
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "name",
    ["notes.md/", "backup.bin/", "optimizer.pt", "training_args.bin", "trainer_state.json", "scheduler.pt"],
)
def test_folder_that_no_export_may_replace(llama, tmp_path, name):
    target = tmp_path / "out"
    (target / "additional_chat_templates").mkdir(parents=True)
    (target / "config.json").write_text("{}")
    kept = target / name.rstrip("/")
    if name.endswith("/"):
        kept.mkdir()
    else:
        kept.write_text("mine")
    with pytest.raises(OutputError, match=f"also holds files that are not part of a model: {kept.name}"):
        qformats.export(llama, target, format="dense:f16", force=True)
    assert kept.exists()
    shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    qformats.export(llama, target, format="dense:f16", force=True)


def test_what_is_no_ordinary_file_is_not_replaced(llama, tmp_path, monkeypatch):
    """Also with force: a pipe, a link to a device, standard output under its names."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "null.gguf").symlink_to("/dev/null")
    for target in ("pipe.gguf", "null.gguf", "-", "/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        with pytest.raises(OutputError, match=r"is not an ordinary file.*give the name of a file on a disk"):
            qformats.export(llama, target, format="gguf:q4_0", force=True)
    assert sorted(os.listdir(tmp_path)) == ["null.gguf", "pipe.gguf"]
    # A link to a file is replaced itself.
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link.gguf").symlink_to("mine")
    qformats.export(llama, "link.gguf", format="gguf:q4_0", force=True)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "link.gguf").is_symlink()
