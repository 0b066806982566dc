"""What an interrupted export may be resumed from, and when a source is no longer the one that was opened."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

import qformats
from qformats.errors import CheckpointError
from qformats.exporting import Recipe, fill, make_plan, plan
from qformats.exporting.report import ExportReport

engine = importlib.import_module("qformats.exporting.run")
SLICE = 1000
"""Weights a slice here: a tiny model has many."""


def planned(model: Path, target: Path, format: str = "gguf:q8_0"):
    return make_plan(qformats.open(model), target, Recipe(format), {})


def identity(plan) -> str:
    return plan.identity([(s.tensor, s.start, s.stop) for s in fill.slices_of(plan)])


@pytest.fixture
def unfinished(llama, tmp_path, monkeypatch):
    """An export that has written every slice, and failed before it put anything in place."""

    class Failure(Exception):
        pass

    def fail(*_args) -> None:
        raise Failure

    with monkeypatch.context() as patch:
        patch.setattr(fill, "SLICE_WEIGHTS", SLICE)
        patch.setattr(engine, "seal", fail)
        with pytest.raises(Failure):
            engine.execute(planned(llama, tmp_path / "out.gguf"), keep_partial=True)
    return tmp_path / ".out.gguf.qformats-partial"


def finish(llama: Path, unfinished: Path) -> ExportReport:
    report = engine.execute(planned(llama, unfinished.parent / "out.gguf"))
    assert not unfinished.exists()
    expected = unfinished.parent / "expected.gguf"
    engine.execute(planned(llama, expected))
    assert expected.read_bytes() == (unfinished.parent / "out.gguf").read_bytes()
    return report


def test_resumed_in_full(llama, unfinished, monkeypatch):
    monkeypatch.setattr(fill, "SLICE_WEIGHTS", SLICE)
    count = len(fill.slices_of(planned(llama, unfinished.parent / "out.gguf")))
    assert count > 50
    assert finish(llama, unfinished).resumed == count


def test_slices_cut_otherwise_begin_anew(llama, unfinished):
    assert finish(llama, unfinished).resumed == 0


def test_slices_count(llama, tmp_path):
    """A journal knows them by number only."""
    made = planned(llama, tmp_path / "out.gguf")
    (tensor, start, stop), *others = [(s.tensor, s.start, s.stop) for s in fill.slices_of(made)]
    assert stop > 1
    before = made.identity([(tensor, start, stop), *others])
    assert before == identity(made)
    assert made.identity([(tensor, start, 1), (tensor, 1, stop), *others]) != before
    assert made.identity([*others, (tensor, start, stop)]) != before


@pytest.mark.parametrize("change", ["offset", "length", "missing", "twice", "index"])
def test_spans_of_another_place_are_not_taken_over(llama, unfinished, monkeypatch, change):
    """Their checksums are right, but they are not what the slice consists of."""
    monkeypatch.setattr(fill, "SLICE_WEIGHTS", SLICE)
    log = unfinished / "journal.jsonl"
    first, *lines = log.read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    damaged, other = entries[0], entries[1]
    count = len(entries) - 1
    with (unfinished / "files" / "out.gguf").open("r+b") as file:
        file.seek(damaged["spans"][0][1])
        file.write(b"\x55" * damaged["spans"][0][2])
    if change == "offset":
        damaged["spans"] = other["spans"]
    elif change == "length":
        damaged["spans"][0][2:] = [0, "99aa06d3014798d86001c324468d497f"]
    elif change == "missing":
        damaged["spans"] = []
    elif change == "twice":
        damaged["spans"] = other["spans"] * 2
    else:
        damaged |= {"slice": 10**6, "spans": other["spans"]}
    log.write_text("".join(f"{line}\n" for line in (first, *map(json.dumps, entries))))
    assert finish(llama, unfinished).resumed == count


@contextmanager
def versions(monkeypatch, of):
    """Other versions of what is installed, which are otherwise read once."""
    with monkeypatch.context() as patch:
        patch.setattr(plan.metadata, "version", of)
        plan._installed.cache_clear()
        try:
            yield
        finally:
            plan._installed.cache_clear()


def test_every_version_counts(llama, tmp_path, monkeypatch):
    """Of the plugins that take part, and of what they compute with."""
    made = planned(llama, tmp_path / "out.gguf")
    before = identity(made)
    assert identity(planned(llama, tmp_path / "out.gguf")) == before
    original = metadata.version
    for distribution in ("torch", "gguf", "numpy", "qformats"):
        with versions(monkeypatch, lambda name, d=distribution: "0" if name == d else original(name)):
            assert identity(made) != before, distribution
    assert identity(made) == before


def test_version_of_a_third_party_plugin_counts(llama, tmp_path, monkeypatch):
    """Only if it takes part."""
    made = planned(llama, tmp_path / "out.gguf")
    before = identity(made)
    record = next(r for r in qformats.registry.registry().plugins if "gguf:q8_0" in r.formats)
    monkeypatch.setattr(record, "distribution", "pytest")
    changed = identity(made)
    assert changed != before
    with versions(monkeypatch, lambda name: "0"):
        assert identity(made) != changed
    monkeypatch.setattr(record, "formats", [])
    monkeypatch.setattr(record, "loaders", [])
    assert "pytest" not in made._plugins()


def test_each_part_of_a_fingerprint_counts(llama, tmp_path):
    made = planned(llama, tmp_path / "out.gguf")
    (first, *rest) = made.fingerprint
    for part in range(1, len(first)):
        other = (*first[:part], first[part] + 1, *first[part + 1 :])
        assert identity(replace(made, fingerprint=(other, *rest))) != identity(made)


def same_size_and_time(file: Path) -> None:
    state = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def another_inode(file: Path) -> None:
    state = file.stat()
    shutil.copy(file, file.with_name("copy"))
    os.replace(file.with_name("copy"), file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("change", [same_size_and_time, another_inode, Path.unlink])
@pytest.mark.parametrize("moment", ["opened", "planned"])
def test_source_that_changes_before_it_is_read(copy, tmp_path, change, moment):
    """Headers were read when it was opened; bytes of another file must not be read by them."""
    weights, target = copy / "model.safetensors", tmp_path / "out.gguf"
    source = qformats.open(copy)
    if moment == "opened":
        change(weights)
    made = make_plan(source, target, Recipe("gguf:q8_0"), {})
    if moment == "planned":
        change(weights)
    with pytest.raises(CheckpointError, match="changed while it was being read") as caught:
        engine.execute(made)
    assert str(weights) in str(caught.value)
    assert os.listdir(tmp_path) == ["in"]


def test_options_and_container_are_part_of_it(llama, tmp_path):
    """How a source is read, or rows are laid out, decides bytes that no size shows."""

    def identity(options: dict[str, str], **recipe: str) -> str:
        plan = make_plan(qformats.open(llama), tmp_path / "out", Recipe("glm:int8", **recipe), options)
        return plan.identity([])

    assert identity({}) == identity({})
    assert identity({}) == identity({}, container="huggingface")
    found = {identity({}), identity({"qkv": "contiguous"}), identity({"qkv": "interleaved"})}
    assert len(found) == 3
