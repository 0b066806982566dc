"""Checksums and recipes in records: what has changed is noticed, and what was made is made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli.command import call

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.exporting.again import Again
from qformats.exporting.recorded import Record, record_beside, require_unchanged
from qformats.work import checksums
from qformats.work.checksums import Piece, file_digest

SPLIT = {"max-shard-size": "50KB"}


def exported(source, target: Path, format: str, **more) -> Path:
    qformats.export(source, target, format=format, **more)
    return target


def flip(file: Path, offset: int, count: int = 1) -> None:
    with file.open("r+b") as content:
        content.seek(offset)
        old = content.read(count)
        content.seek(offset)
        content.write(bytes(byte ^ 0xFF for byte in old))


def record_of(path: Path) -> Record:
    found = record_beside(path)
    assert found is not None
    return Record.read(found)


@pytest.mark.parametrize(
    "format", ["gguf:q4_0", "glm:int4", "gptq:4bit-32g", "awq:4bit-32g", "nf4", "dense:f16"]
)
def test_every_byte_has_a_checksum(llama, tmp_path, format):
    target = exported(llama, tmp_path / "out", format, quantizer="rtn")
    record = record_of(target)
    for name, size in record.sizes.items():
        pieces = record.pieces[name]
        assert [p.offset for p in pieces] == [sum(q.nbytes for q in pieces[:i]) for i in range(len(pieces))]
        assert sum(piece.nbytes for piece in pieces) == size == record.file(name).stat().st_size
    # Every tensor has its own.
    named = {
        record.tensor_name(p.tensor) for pieces in record.pieces.values() for p in pieces if p.tensor >= 0
    }
    assert named == {tensor["name"] for tensor in record.content["tensors"]}
    require_unchanged(qformats.open(target), verify=True)


def test_a_flipped_byte_anywhere_is_noticed(llama, tmp_path):
    target = exported(llama, tmp_path / "out.gguf", "gguf:q4_0")
    size = target.stat().st_size
    opened = qformats.open(target)
    for offset in [*range(0, size, max(1, size // 97)), size - 1]:
        flip(target, offset)
        with pytest.raises(CheckpointError, match=r"out\.gguf.*have changed since they were written"):
            require_unchanged(opened)
        flip(target, offset)
    require_unchanged(opened)


@pytest.mark.parametrize("format", ["gguf:q8_0", "gptq:4bit-32g", "dense:bf16"])
def test_exports_and_loads_refuse_what_was_changed(llama, tmp_path, format):
    target = exported(llama, tmp_path / "out", format, quantizer="rtn")
    weights = target / "model.safetensors" if target.is_dir() else target
    # In the middle of a tensor, so that the file still opens.
    flip(weights, weights.stat().st_size - 1000, 64)
    with pytest.raises(CheckpointError, match=r"tensor '.*bytes .* have changed.*remove .*qformats\.json"):
        qformats.export(target, tmp_path / "again", format="dense:f32")
    with pytest.raises(CheckpointError, match="have changed"):
        qformats.load_model(target, device="cpu")
    assert not (tmp_path / "again").exists()
    record = record_beside(target)
    assert record is not None
    record.unlink()
    qformats.export(target, tmp_path / "again", format="dense:f32")


def test_what_is_no_weight_may_be_edited(llama, tmp_path):
    target = exported(llama, tmp_path / "out", "glm:int4")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"use_cache": False}))
    qformats.export(target, tmp_path / "again", format="dense:f32", verify=True)


def test_a_file_that_was_replaced_is_noticed(llama, tmp_path):
    """Its record has stayed behind."""
    target = exported(llama, tmp_path / "out.gguf", "gguf:q4_0")
    other = exported(llama, tmp_path / "other.gguf", "gguf:q8_0")
    shutil.copy(other, target)
    with pytest.raises(CheckpointError, match=r"bytes; expected the [\d,]+ bytes that were written"):
        qformats.export(target, tmp_path / "again.gguf", format="gguf:f16")


def test_parts_of_split_models_are_found(llama, tmp_path):
    exported(llama, tmp_path / "out.gguf", "gguf:q8_0", options=SPLIT)
    parts = sorted(tmp_path.glob("out-0*.gguf"))
    assert len(parts) > 2
    assert {record_beside(part) for part in parts} == {tmp_path / "out.gguf.qformats.json"}
    flip(parts[-1], parts[-1].stat().st_size - 10)
    with pytest.raises(CheckpointError, match=parts[-1].name):
        qformats.export(parts[0], tmp_path / "again.gguf", format="gguf:f16")


def test_a_model_may_be_renamed_with_its_record(llama, tmp_path):
    target = exported(llama, tmp_path / "out.gguf", "gguf:q8_0")
    renamed = target.rename(tmp_path / "other.gguf")
    (tmp_path / "out.gguf.qformats.json").rename(tmp_path / "other.gguf.qformats.json")
    require_unchanged(qformats.open(renamed), verify=True)
    flip(renamed, renamed.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"other\.gguf"):
        require_unchanged(qformats.open(renamed))


def test_of_large_models_a_sample_is_compared_and_all_on_request(llama, tmp_path, monkeypatch):
    target = exported(llama, tmp_path / "out.gguf", "gguf:f32")
    opened, record = qformats.open(target), record_of(target)
    (pieces,) = record.pieces.values()
    read: list[int] = []
    monkeypatch.setattr("qformats.exporting.recorded._SAMPLE", 100_000)
    original = checksums.digest

    def digest(handle, offset, nbytes):
        read.append(offset)
        return original(handle, offset, nbytes)

    monkeypatch.setattr("qformats.exporting.recorded.digest", digest)
    seen = set()
    for _ in range(30):
        read.clear()
        require_unchanged(opened)
        assert 0 in read
        assert 1 < len(read) < len(pieces)
        seen |= set(read)
    # Others each time.
    assert len(seen) > len(read)
    read.clear()
    require_unchanged(opened, verify=True)
    assert len(read) == len(pieces)
    flip(target, pieces[-1].offset)
    with pytest.raises(CheckpointError):
        require_unchanged(opened, verify=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["checksums"]["files"]["out"].pop(3), "gap at byte"),
        (lambda r: r["checksums"]["files"]["out"].pop(), "end at byte"),
        (lambda r: r["checksums"]["files"]["out"].insert(0, "x"), "is damaged"),
        (lambda r: r["checksums"]["files"].clear() or r["checksums"]["files"].update(other=[]), "is damaged"),
        (lambda r: r["files"].append(["../out", 3]), "no file of an output"),
        (lambda r: r["files"].append(["/etc/passwd", 3]), "no file of an output"),
        (lambda r: r["files"].append(["a\0b", 3]), "no file of an output"),
        (lambda r: r["files"].append(["\ud800", 3]), "is damaged .UnicodeEncodeError"),
        (lambda r: r["files"].append([3, 3]), "no file of an output"),
        (lambda r: r["files"].append(["a", float("inf")]), "no number of bytes: 'inf'"),
        (lambda r: r["files"].append(["a", -1]), "no number of bytes: '-1'"),
        (lambda r: r.update(files=3), "is damaged"),
        (lambda r: r.update(checksums=[1]), "is damaged"),
        (lambda r: r.pop("tensors"), "is something else"),
    ],
    ids=range(14),
)
def test_damaged_records_are_refused(llama, tmp_path, change, told):
    target = exported(llama, tmp_path / "out", "gguf:q8_0")
    path = record_beside(target)
    assert path is not None
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=told):
        Record.read(path)


@pytest.mark.parametrize("name", ["imatrix 0", "imatrix x", "text 1"])
def test_files_that_no_recipe_has_are_refused(name, llama, tmp_path):
    path = record_beside(exported(llama, tmp_path / "out", "gguf:q8_0"))
    assert path is not None
    content = json.loads(path.read_text())
    content["recipe"]["inputs"][name] = "3 abc"
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"no file of the recipe: '{name}'"):
        Again.of(Record.read(path))


def test_threads_that_are_no_number_are_passed_over(llama, tmp_path):
    path = record_beside(exported(llama, tmp_path / "out", "gguf:q8_0"))
    assert path is not None
    content = json.loads(path.read_text())
    content["recipe"]["decided_by"]["threads"] = "9" * 5000
    path.write_text(json.dumps(content))
    before = torch.get_num_threads()
    with Again.of(Record.read(path)).conditions():
        assert torch.get_num_threads() == before


def test_a_file_whose_name_is_no_text_is_recorded(llama, tmp_path):
    target = exported(llama, tmp_path / "out\udcff.gguf", "gguf:q8_0")
    require_unchanged(qformats.open(target), verify=True)
    flip(target, target.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="have changed"):
        require_unchanged(qformats.open(target), verify=True)


def test_records_of_earlier_versions_have_sizes(llama, tmp_path):
    target = exported(llama, tmp_path / "out", "glm:int4")
    path = target / "qformats.json"
    content = json.loads(path.read_text())
    del content["checksums"], content["recipe"]
    path.write_text(json.dumps(content))
    require_unchanged(qformats.open(target), verify=True)
    with (target / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError):
        qformats.export(target, tmp_path / "again", format="dense:f32")
    with pytest.raises(CheckpointError, match="has no recipe"):
        Again.of(Record.read(path))


def test_pieces():
    assert Piece.parse("0 5 " + "0" * 32).tensor == -1
    for wrong in ("", "0 5", "0 5 zz", "-1 5 " + "0" * 32, "0 5 " + "0" * 32 + " -1", "00 5 " + "0" * 32):
        with pytest.raises(ValueError, match=r"."):
            Piece.parse(wrong)


def test_checksums_of_files_do_not_depend_on_how_they_are_read(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(bytes(range(256)) * 1000)
    told: list[int] = []
    monkeypatch.setattr(checksums, "PIECE", 100_000)
    first = file_digest(file, told.append)
    assert told == [100_000, 100_000, 56_000]
    monkeypatch.setattr(checksums, "_READ", 7)
    assert file_digest(file) == first
    flip(file, 200_001)
    assert file_digest(file) != first


@pytest.mark.parametrize(
    ("format", "more"),
    [
        ("gguf:q4_k_m", {"tensor_types": {"ffn_down": "q5_0"}, "output_type": "q8_0"}),
        ("gguf:q8_0", {"options": SPLIT}),
        ("gptq:4bit-32g", {"quantizer": "rtn", "options": SPLIT}),
        ("nf4", {}),
    ],
)
def test_the_recipe_makes_the_same_bytes_again(llama, tmp_path, format, more):
    first, second = tmp_path / "a", tmp_path / "b"
    exported(llama, first / "out", format, **more)
    report = qformats.export(llama, second / "out", recipe=record_beside_any(first))
    assert report.notes[-1].startswith("The bytes are those that")
    assert contents(first) == contents(second)


def record_beside_any(folder: Path) -> Path:
    (found,) = folder.rglob("*qformats.json")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_the_recipe_of_a_calibration(tmp_path, monkeypatch):
    text = tmp_path / "mine.txt"
    text.write_text("It was the best of times, it was the worst of times. " * 40)
    small = {"samples": "2", "sequence-length": "32", "calibration": str(text)}
    first = exported("demo", tmp_path / "out", "gptq:4bit-128g", quantizer_options=small)
    recipe = json.loads((first / "qformats.json").read_text())["recipe"]
    assert recipe["quantizer_options"] == small | {"calibration": "mine.txt"}
    assert recipe["decided_by"].keys() == {"tokens", "threads", "device", "dtype"}
    assert str(tmp_path) not in (first / "qformats.json").read_text()
    # Calibrated tensors say how far they are from the source.
    tensors = json.loads((first / "qformats.json").read_text())["tensors"]
    chosen = [tensor for tensor in tensors if tensor["action"] == "quantized"]
    assert all(0 < tensor["relative_error"] < 0.5 for tensor in chosen)
    monkeypatch.chdir(tmp_path)
    report = qformats.export(None, "again", recipe=first)
    assert report.notes[-1] == "The bytes are those that qformats.json records"
    assert contents(tmp_path / "again") == contents(first)
    # The text lies elsewhere now, and then has changed.
    moved = text.rename(tmp_path / "in-between.txt")
    with pytest.raises(ConfigError, match=r"calibration.*the file that the recipe names"):
        qformats.export(None, "third", recipe=first)
    place = {"calibration": str(moved)}
    moved.write_text(moved.read_text() + ".")
    with pytest.raises(ConfigError, match="this one has other content"):
        qformats.export(None, "third", recipe=first, quantizer_options=place)
    assert not (tmp_path / "third").exists()


def test_the_recipe_of_an_importance_matrix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matrix = tmp_path / "m.gguf"
    qformats.imatrix("demo", matrix, chunks=1, chunk_size=64, device="cpu")
    # Its place as given is in the file, as llama.cpp has it.
    exported("demo", tmp_path / "out.gguf", "gguf:q4_0", imatrix="m.gguf")
    qformats.export(None, "again.gguf", recipe="out.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    moved = matrix.rename(tmp_path / "elsewhere" / "m.gguf")
    with pytest.warns(UserWarning, match="what its file holds besides tensors came out otherwise"):
        qformats.export(None, "third.gguf", recipe="out.gguf", imatrix=moved)
    with pytest.raises(ConfigError, match="1, as in the recipe"):
        qformats.export(None, "fourth.gguf", recipe="out.gguf", imatrix=[moved, moved])
    flip(moved, moved.stat().st_size - 1)
    with pytest.raises(ConfigError, match=r"imatrix.*other content"):
        qformats.export(None, "fourth.gguf", recipe="out.gguf", imatrix=moved)


def test_another_source_is_refused(llama, copy, tmp_path):
    exported(llama, tmp_path / "out", "glm:int4")
    recipe = tmp_path / "out" / "qformats.json"
    qformats.export(copy, tmp_path / "same", recipe=recipe)
    weights = copy / "model.safetensors"
    flip(weights, weights.stat().st_size - 5)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: has other content; expected the source"):
        qformats.export(copy, tmp_path / "other", recipe=recipe)
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: was not there"):
        qformats.export(copy, tmp_path / "other", recipe=recipe)
    with pytest.raises(CheckpointError, match=r"expected the source that qformats\.json has recorded"):
        qformats.export("demo", tmp_path / "other", recipe=recipe)
    assert not (tmp_path / "other").exists()


def test_a_source_that_is_not_named(llama, tmp_path, monkeypatch):
    shutil.copytree(llama, tmp_path / "here" / "model")
    exported(tmp_path / "here" / "model", tmp_path / "out", "glm:int4")
    with pytest.raises(
        CheckpointError, match=r"was made from 'model', which is neither here nor beside it\. Give"
    ):
        qformats.export(None, tmp_path / "again", recipe=tmp_path / "out")
    monkeypatch.chdir(tmp_path / "here")
    qformats.export(None, tmp_path / "again", recipe=tmp_path / "out")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_other_versions_are_told(llama, tmp_path):
    exported(llama, tmp_path / "out", "glm:int4")
    path = tmp_path / "out" / "qformats.json"
    record = json.loads(path.read_text())
    record["recipe"]["software"]["torch"] = "1.0"
    piece = Piece.parse(record["checksums"]["files"]["model.safetensors"][-1])
    changed = Piece(piece.offset, piece.nbytes, "0" * 32, piece.tensor)
    record["checksums"]["files"]["model.safetensors"][-1] = changed.text
    path.write_text(json.dumps(record))
    with pytest.warns(UserWarning, match=r"1 tensors came out otherwise: torch .* instead of 1\.0"):
        qformats.export(llama, tmp_path / "again", recipe=path)


def test_the_command(llama, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "export", llama, "-f", "gguf:q4_0", "-o", "out.gguf").code == 0
    done = call(capsys, "export", llama, "--recipe", "out.gguf", "-o", "again.gguf")
    assert (done.code, done.err) == (0, "")
    assert "The bytes are those that out.gguf.qformats.json records" in done.out
    planned = call(capsys, "export", llama, "--recipe", "out.gguf", "--dry-run", "-o", "third.gguf")
    assert planned.code == 0
    assert not Path("third.gguf").exists()
    for more in (["-f", "gguf"], ["--pure"], ["--tensor-type", "a=f32"], ["--quantizer", "rtn"], ["--card"]):
        refused = call(capsys, "export", llama, "--recipe", "out.gguf", *more)
        assert refused.code == 2
        assert "no such option beside --recipe, which has it already" in refused.err
    assert call(capsys, "export", llama, "--recipe", llama).code == 3
    missing = call(capsys, "export")
    assert missing.code == 2
    assert missing.err.startswith("qformats: MODEL is missing. For example\n  qformats export ")
    flip(Path("out.gguf"), Path("out.gguf").stat().st_size - 1)
    damaged = call(capsys, "export", "out.gguf", "-f", "dense", "-o", "x", "--verify")
    assert damaged.code == 3
    assert "have changed since they were written" in damaged.err


def test_merged_models_are_not_run_again(llama, tmp_path):
    exported(llama, tmp_path / "out", "glm:int4")
    path = tmp_path / "out" / "qformats.json"
    record = json.loads(path.read_text())
    record["recipe"]["added"] = {"adapter": "0"}
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="something was added"):
        qformats.export(llama, tmp_path / "again", recipe=path)
