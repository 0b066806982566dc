"""Left-overs of interrupted runs that somebody else has put beside a model: they steer nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest
from cli.command import call, run

import qformats
from qformats.errors import OutputError
from qformats.exporting.journal import Journal

TEXT = "curl https://example.org | sh\n"
STRANGE = "holds an interrupted export that is not this user's"


@pytest.fixture
def cloned(llama, tmp_path):
    """A model as a repository brings it, with the partial output of an export inside."""
    folder = tmp_path / "home" / "model"
    folder.mkdir(parents=True)
    for file in Path(llama).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def export(cloned, capsys, monkeypatch):
    """The command, in the folder."""

    def exported():
        monkeypatch.chdir(cloned)
        return call(capsys, "export", ".", "--format", "gguf", "--type", "q4_0")

    return exported


def _partial(folder: Path, lines, name=".model-q4_0.gguf.qformats-partial") -> Path:
    partial = folder / name
    (partial / "files").mkdir(parents=True)
    (partial / "files" / "profile").write_text(TEXT)
    (partial / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return partial


def _everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "moves",
    [
        [["files/profile", "../.bash_profile"]],
        [["files/profile", "/tmp/qformats-test-profile"]],
        [["../model.safetensors", "stolen"]],
        [["files/profile", ".bash_profile"]],
        "nonsense",
    ],
)
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_a_hostile_journal_moves_nothing(cloned, moves, token, export):
    _partial(cloned, [{"identity": "x", "token": token}, {"placing": moves, "token": token}])
    before = _everything(cloned.parent)
    done = export()
    assert done.code == 4
    assert STRANGE in done.err
    assert "remove it" in done.err
    assert _everything(cloned.parent) == before


def test_what_was_moved_aside_by_a_stranger_comes_not_back(cloned, export):
    partial = _partial(cloned, [{"identity": "x"}])
    (partial / "replaced").mkdir()
    (partial / "replaced" / ".bash_profile").write_text(TEXT)
    done = export()
    assert done.code == 4
    assert not (cloned / ".bash_profile").exists()


def test_links_are_not_followed(cloned, tmp_path, export):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    partial = cloned / ".model-q4_0.gguf.qformats-partial"
    partial.mkdir()
    (partial / "files").symlink_to(elsewhere)
    assert export().code == 4
    (partial / "files").unlink()
    shutil.rmtree(partial)
    partial.symlink_to(elsewhere)
    done = export()
    assert done.code == 4
    assert "is a link or a file" in done.err
    partial.unlink()
    partial.mkdir()
    (partial / "journal.jsonl").symlink_to(elsewhere / "log")
    assert export().code == 4
    assert list(elsewhere.iterdir()) == []


def test_a_folder_that_others_can_write_is_refused(cloned, export):
    partial = cloned / ".model-q4_0.gguf.qformats-partial"
    partial.mkdir()
    partial.chmod(0o777)
    done = export()
    assert done.code == 4
    assert "can be written by other users" in done.err


def test_a_journal_alone_is_overwritten(cloned, export):
    partial = cloned / ".model-q4_0.gguf.qformats-partial"
    partial.mkdir(mode=0o700)
    (partial / "journal.jsonl").write_text('{"identity": "x"}\n{"placing": [["files/a", "b"]]}\n')
    assert export().code == 0
    assert (cloned / "model-q4_0.gguf").is_file()
    assert not partial.exists()


def test_a_copied_folder_is_not_ours(tmp_path):
    """The token is for one place: whoever copies a partial output elsewhere does not copy the trust."""
    journal = Journal(tmp_path / "a", "x")
    journal.close()
    os.rename(journal.folder, tmp_path / ".b.qformats-partial")
    with pytest.raises(OutputError, match=STRANGE):
        Journal(tmp_path / "b", "x")


def test_without_a_place_for_the_key_exports_work_all_the_same(cloned, tmp_path):
    (tmp_path / "readonly").write_text("a file, not a folder")
    done = run("export", ".", "-f", "gguf", cwd=cloned, XDG_STATE_HOME=str(tmp_path / "readonly"))
    assert done.code == 0, done.err


def test_a_key_that_others_can_read_is_not_used(cloned, tmp_path):
    state = tmp_path / "state" / "qformats"
    state.mkdir(parents=True)
    (state / "resume-key").write_bytes(b"k" * 32)
    (state / "resume-key").chmod(0o644)
    assert run("export", ".", "-f", "gguf", cwd=cloned, XDG_STATE_HOME=str(tmp_path / "state")).code == 0


def test_prepared_work_of_a_stranger_is_discarded(cloned):
    """Codes that somebody else has chosen are not written as those of the model."""
    from qformats.exporting import Recipe, make_plan
    from qformats.exporting.prepare import Workspace

    target = cloned / "out.gguf"
    plan = make_plan(qformats.open(cloned), target, Recipe("gguf:q4_0"), {})
    left = cloned / ".out.gguf.qformats-prepared"
    (left / "files").mkdir(parents=True)
    (left / "files" / "block-00000.safetensors").write_text("codes")
    (left / "identity").write_text(plan.identity([]))
    workspace = Workspace(plan)
    assert list(workspace.files.iterdir()) == []
    (workspace.files / "mine").write_text("")
    workspace.close()
    again = Workspace(plan)
    assert [file.name for file in again.files.iterdir()] == ["mine"]
    again.discard()
