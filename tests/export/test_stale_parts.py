"""Parts of an older split model beside a new one of the same name: replaced with it, or named."""

from __future__ import annotations

import json
import os

import pytest
from cli.command import call
from export.test_placing import contents, kill_at_rename, visible

import qformats
from qformats.errors import OutputError

MANY, FEW = {"max-shard-size": "30KB"}, {"max-shard-size": "110KB"}


@pytest.fixture
def older(llama, tmp_path) -> dict[str, bytes]:
    """A model in many parts."""
    qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16", options=MANY)
    return contents(tmp_path)


def names(folder) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".gguf"))


@pytest.mark.parametrize("options", [FEW, {}], ids=["fewer", "one"])
def test_parts_of_what_is_replaced_go_with_it(llama, older, tmp_path, options):
    before = names(tmp_path)
    with pytest.raises(OutputError, match=r"exists already, as out-00001-of-\d{5}\.gguf and \d+ more"):
        qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16", options=options)
    assert contents(tmp_path) == older
    report = qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16", options=options, force=True)
    assert names(tmp_path) == sorted(name for name, _ in report.files)
    assert not set(before) & set(names(tmp_path))
    assert report.notes[-1].startswith(f"Removed with the export that this one replaces: {before[0]}, ")
    # The same as if there had been nothing.
    fresh = tmp_path / "fresh"
    qformats.export(llama, fresh / "out.gguf", format="gguf:f16", options=options)
    assert contents(fresh) == {name: data for name, data in contents(tmp_path).items() if "/" not in name}


def test_one_file_goes_with_the_export_that_replaces_it(llama, tmp_path):
    qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16")
    with pytest.raises(OutputError, match=r"exists already, as out\.gguf"):
        qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16", options=MANY)
    qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16", options=MANY, force=True)
    assert "out.gguf" not in names(tmp_path)


def test_parts_that_nobody_recorded_stay_and_are_named(capsys, llama, older, tmp_path):
    (tmp_path / "out.gguf.qformats.json").unlink()
    (tmp_path / "out-00001-of-00002.gguf.txt").write_text("mine")
    (tmp_path / "out-2-00001-of-00002.gguf").write_text("mine")
    before = names(tmp_path)
    result = call(capsys, "export", llama, "-f", "gguf:f16", "-o", tmp_path / "out.gguf", "--force")
    assert result.code == 0
    told = " ".join(result.out.split())
    parts = [name for name in before if name.startswith("out-0")]
    assert (
        f"{', '.join(parts[:3])} and {len(parts) - 3} more beside it are parts of another model of the same"
        in told
    )
    assert set(before) < set(names(tmp_path))


def test_a_record_names_nothing_but_parts_of_its_own_model(llama, tmp_path):
    """It may have come with somebody else's model."""
    victims = [
        "notes.gguf",
        "out-mine.gguf",
        "config.json",
        "out-00001-of-00002.txt",
        "../outside-00001-of-00001.gguf",
    ]
    for name in victims:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("mine")
    (tmp_path / "in" / "out-00009-of-00009.gguf").mkdir()
    listed = [[name, 4] for name in (*victims, "out-00009-of-00009.gguf")]
    record = tmp_path / "in" / "out.gguf.qformats.json"
    for content in (json.dumps({"files": listed}), json.dumps({"files": 3}), "[" * 10_000, "\0"):
        record.write_text(content)
        report = qformats.export(llama, tmp_path / "in" / "out.gguf", format="gguf:f16", force=True)
        assert report.notes == ()
        for name in victims:
            assert (tmp_path / "in" / name).read_text() == "mine"


def test_the_model_that_is_read_is_never_removed(llama, older, tmp_path):
    first = tmp_path / next(name for name in names(tmp_path) if "00001" in name)
    qformats.export(first, tmp_path / "out.gguf", format="gguf:q8_0", force=True)
    assert set(older) - {"out.gguf.qformats.json"} < set(contents(tmp_path))


def test_killed_at_any_rename_the_older_model_is_back(llama, older, tmp_path, monkeypatch):
    def export() -> None:
        qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16", options=FEW, force=True)

    number = 0
    while True:
        number += 1
        try:
            kill_at_rename(monkeypatch, number, export)
        except pytest.fail.Exception:
            break
        with pytest.raises(OutputError, match="exists already"):
            qformats.export(llama, tmp_path / "out.gguf", format="gguf:f16", options=FEW)
        assert visible(tmp_path) == older
    assert number > len(older) + 2
    assert not set(older) - {"out.gguf.qformats.json"} & set(contents(tmp_path))


def test_a_folder_keeps_no_part_of_the_one_it_replaces(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="dense:f16", options=MANY)
    report = qformats.export(llama, tmp_path / "out", format="dense:f16", options=FEW, force=True)
    kept = {name for name in os.listdir(tmp_path / "out") if name.endswith(".safetensors")}
    assert kept == {name for name, _ in report.files if name.endswith(".safetensors")}
