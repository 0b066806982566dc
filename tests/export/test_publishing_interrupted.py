"""A publisher's run that is interrupted or killed: no half-written output, and the next run goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import pytest
from cli.command import PROGRAM, call, ended, environment, start

import qformats
from qformats.errors import OutputError
from qformats.publishing.finished import FOLDER, Finished
from qformats.work.pool import torch_threads
from qformats.work.progress import Silent

FORMATS = ("gguf:q8_0", "gguf:q4_0", "glm:int4")
NAMES = [
    "large-Q4_0.gguf",
    "large-Q4_0.gguf.qformats.json",
    "large-Q8_0.gguf",
    "large-Q8_0.gguf.qformats.json",
]
FINAL = ["README.md", "SHA256SUMS", *NAMES, "large-int4"]


def arguments(model: Path | str, folder: Path, *more: str) -> list[str]:
    wanted = [word for format in FORMATS for word in ("-f", format)]
    return ["export", str(model), *wanted, "-o", str(folder), *more]


def content(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def shown(folder: Path) -> list[str]:
    """What lies in the folder, but for what is hidden."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".")) if folder.exists() else []


def sliced(folder: Path) -> int:
    """Slices that the journals of a run hold, if all of them have some."""
    counts = [log.read_bytes().count(b"\n") - 1 for log in folder.glob(".*.qformats-partial/journal.jsonl")]
    return sum(counts) if len(counts) == len(FORMATS) and min(counts) > 1 else 0


def wait_for(process: subprocess.Popen[str], ready) -> None:
    # A machine where nothing has been compiled yet, and which is busy, takes a minute.
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def clean(large, tmp_path_factory) -> dict[str, str]:
    """What an undisturbed run writes."""
    folder = tmp_path_factory.mktemp("clean") / "out"
    qformats.publish(large, folder, formats=FORMATS)
    assert sorted(os.listdir(folder)) == FINAL
    found = content(folder)
    shutil.rmtree(folder)
    return found


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "out"
    shutil.rmtree(tmp_path)


def test_killed_while_it_writes(large, folder, clean, capsys):
    process = start(*arguments(large, folder, "-j", "1"))
    wait_for(process, lambda: sliced(folder) > 9)
    assert ended(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert shown(folder) == []
    done = call(capsys, *arguments(large, folder))
    assert done.code == 0, done.err
    assert "going on with an interrupted export: " in done.err
    assert content(folder) == clean


def test_interrupted_while_it_writes(large, folder):
    process = start(*arguments(large, folder, "-j", "1"))
    wait_for(process, lambda: sliced(folder) > 9)
    assert ended(process, signal.SIGINT) == (130, "qformats: interrupted; the target is unchanged\n")
    assert not folder.exists()


def test_interrupted_and_kept(large, folder, clean):
    process = start(*arguments(large, folder, "-j", "1", "--keep-partial"))
    wait_for(process, lambda: sliced(folder) > 9)
    code, err = ended(process, signal.SIGINT)
    assert code == 130
    assert "what was written is kept; run the same command again to go on" in err
    assert shown(folder) == []
    report = qformats.publish(large, folder, formats=FORMATS)
    assert sum(output.report.resumed for output in report.outputs) > 9
    assert content(folder) == clean


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_after_the_outputs_are_in_place(tmp_path, capsys, number):
    """While models run on the text: outputs stay, and the next run tells them from files that were there before."""
    folder = tmp_path / "out"
    measured = arguments("demo", folder, "--text", "demo", "--window", "64")
    process = start(*measured)
    wait_for(process, (folder / "SHA256SUMS").exists)
    code, err = ended(process, number)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert (
            f"interrupted; the 3 formats are in {folder}; run the same command again for SHA256SUMS and"
            in err
        )
    names = [name.replace("large", "demo-llama") for name in FINAL]
    assert shown(folder) == names[1:]
    before = {name: (folder / name).stat() for name in names[2:]}
    # Another run is not this one: it did not put them there.
    other = call(capsys, *arguments("demo", folder, "--pure"))
    assert other.code == 4
    assert "exists already" in other.err
    done = call(capsys, *measured, "--windows", "2")
    assert done.code == 0, done.err
    assert (
        "written already, by a run that was interrupted: demo-llama-Q8_0.gguf, demo-llama-Q4_0.gguf"
        in done.err
    )
    assert sorted(os.listdir(folder)) == names
    for name, state in before.items():
        after = (folder / name).stat()
        assert (after.st_ino, after.st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=True)
    # With everything there, it is an ordinary folder again.
    again = call(capsys, *measured)
    assert again.code == 4
    assert "exists already" in again.err


def test_killed_while_it_calibrates_the_second_format(tmp_path):
    """The first calibration is not done again, and all bytes are those of an undisturbed run of as many threads."""
    formats = ["gguf:q4_k_m", "gptq:4bit-128g"]
    options = {"samples": "4", "sequence-length": "64", "device": "cpu", "rounds": "1", "search": "no"}
    words = [word for name, value in options.items() for word in ("-Q", f"{name}={value}")]
    folder = tmp_path / "out"
    process = start(
        *("export", "demo", "-f", formats[0], "-f", formats[1], "--quantizer", "gptq", *words, "-o", folder),
        OMP_NUM_THREADS="2",
    )
    prepared = folder / ".demo-llama-GPTQ-4bit-128g.qformats-prepared"
    wait_for(process, (prepared / "files" / "blocks" / "block-00000.safetensors").exists)
    assert ended(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert shown(folder) == []

    said: list[str] = []

    class Told(Silent):
        def notice(self, text: str) -> None:
            said.append(text)

    more = {"formats": formats, "quantizer": "gptq", "quantizer_options": options}
    qformats.publish("demo", folder, progress=Told(), **more)
    resumed = [text for text in said if text.startswith("going on with an interrupted calibration: ")]
    assert len(resumed) == 2
    assert "4 blocks are finished" in resumed[0]
    with torch_threads(2):
        qformats.publish("demo", tmp_path / "clean", **more)
    assert content(folder) == content(tmp_path / "clean")


def test_failure_after_the_outputs_are_in_place_says_so(llama, tmp_path, monkeypatch):
    def fails(*_):
        raise OutputError(tmp_path, "no memory")

    with monkeypatch.context() as patch:
        patch.setattr("qformats.publishing.run.compare", fails)
        with pytest.raises(
            OutputError, match=r"The 2 formats are in .*; run the same command again for SHA256SUMS"
        ):
            qformats.publish(
                llama, tmp_path / "out", formats=["gguf:q8_0", "dense:f16"], text="demo", window=64
            )
    report = qformats.publish(llama, tmp_path / "out", formats=["gguf:q8_0", "dense:f16"])
    assert all(output.earlier for output in report.outputs)


def test_killed_between_two_renames(llama, tmp_path, monkeypatch):
    """One output is in place and the other is not, and nobody had the time to clean up."""
    from qformats.exporting.journal import Journal

    folder = tmp_path / "out"
    original, placed = Journal.place, []

    class Killed(BaseException):
        pass

    def place(self, moves, stale=()):
        if placed:
            raise Killed
        placed.append(self.target.name)
        original(self, moves, stale)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "place", place)
        patch.setattr(Journal, "discard", Journal.close)
        patch.setattr(Finished, "close", lambda self, *, done: self._unlock())
        with pytest.raises(Killed):
            qformats.publish(llama, folder, formats=["gguf:q8_0", "dense:f16"])
    assert shown(folder) == ["llama-Q8_0.gguf", "llama-Q8_0.gguf.qformats.json"]
    report = qformats.publish(llama, folder, formats=["gguf:q8_0", "dense:f16"])
    assert [output.earlier for output in report.outputs] == [True, False]
    assert report.outputs[1].report.resumed > 0
    expected = qformats.publish(llama, tmp_path / "expected", formats=["gguf:q8_0", "dense:f16"])
    assert content(folder) == content(tmp_path / "expected")
    assert report.outputs[0].report.tensors == expected.outputs[0].report.tensors


@pytest.fixture
def stopped(llama, tmp_path, monkeypatch):
    """A folder with outputs in place, of a run that failed before its end."""
    folder = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("qformats.publishing.run.card_text", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            qformats.publish(llama, folder, formats=["gguf:q8_0", "dense:f16"])
    assert (folder / FOLDER).is_dir()
    return folder


def test_outputs_that_changed_since_are_not_taken_for_finished(llama, stopped):
    with (stopped / "llama-F16" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(OutputError, match="llama-F16: exists already"):
        qformats.publish(llama, stopped, formats=["gguf:q8_0", "dense:f16"])
    assert (stopped / "llama-F16" / "config.json").read_text().endswith("\n\n")


def test_notes_of_somebody_else_are_not_believed(llama, stopped):
    """A folder from elsewhere may claim that its files are this user's."""
    log = stopped / FOLDER / "finished.jsonl"
    log.write_text(log.read_text().replace('"token": "', '"token": "0'))
    with pytest.raises(OutputError, match="exists already"):
        qformats.publish(llama, stopped, formats=["gguf:q8_0", "dense:f16"])


def test_another_source_begins_anew(llama, copy, stopped):
    renamed = copy.rename(copy.with_name("llama"))
    (renamed / "config.json").touch()
    with pytest.raises(OutputError, match="exists already"):
        qformats.publish(renamed, stopped, formats=["gguf:q8_0", "dense:f16"])
    report = qformats.publish(renamed, stopped, formats=["gguf:q8_0", "dense:f16"], force=True)
    assert not any(output.earlier for output in report.outputs)


def test_two_runs_in_one_folder(llama, tmp_path):
    finished = Finished(tmp_path)
    try:
        with pytest.raises(OutputError, match="is being written by another process"):
            qformats.publish(llama, tmp_path, formats=["gguf:q8_0", "dense:f16"])
    finally:
        finished.close(done=False)
    assert list(tmp_path.iterdir()) == []


def test_error_of_one_format_leaves_nothing_of_the_others(llama, tmp_path, monkeypatch):
    """Found by the disk when the third format is written."""
    from qformats.exporting.engines import local

    original, seen = local.convert, []

    def convert(plan, piece, files, check):
        seen.append(plan.recipe.format)
        if len(set(seen)) == 3:
            raise OutputError(plan.target, "broken")
        return original(plan, piece, files, check)

    monkeypatch.setattr(local, "convert", convert)
    with pytest.raises(OutputError, match="broken"):
        qformats.publish(llama, tmp_path / "a" / "out", formats=["gguf:q8_0", "dense:f16", "nf4"], workers=1)
    assert list(tmp_path.iterdir()) == []


def test_calibration_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("qformats.calibration.run._Block.go", lambda *_: 1 / 0)
    with pytest.raises(qformats.QFormatsError, match="division by zero"):
        qformats.publish(
            "demo",
            tmp_path / "out",
            formats=["gguf:q8_0", "gptq:4bit-128g"],
            quantizer_options={"samples": "1", "sequence-length": "32", "device": "cpu"},
        )
    assert list(tmp_path.iterdir()) == []


def test_disk_without_room_for_all(llama, tmp_path, mount):
    """One of them would fit; it is refused before the first is begun."""
    place = mount("small", "size=500k")
    sizes = [qformats.export(llama, tmp_path / f, format=f"gguf:{f}").file_nbytes for f in ("bf16", "f16")]
    assert max(sizes) < 400_000 < 512_000 < sum(sizes), sizes
    with pytest.raises(OutputError, match=f"bytes free, and the 2 outputs take {sum(sizes):,}"):
        qformats.publish(llama, place / "out", formats=["gguf:bf16", "gguf:f16"])
    assert list(place.iterdir()) == []


def test_program_is_the_one_of_the_tests():
    """The processes above run this code, not an installed one."""
    code = [*PROGRAM[:1], "-c", "import qformats; print(qformats.__file__)"]
    done = subprocess.run(code, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == qformats.__file__
