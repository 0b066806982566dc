"""Where an export may write, and what is left behind when it cannot: nothing."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from cli.command import call

import qformats
from qformats.errors import OutputError
from qformats.exporting.journal import Journal, Span, Written


def write(capsys, model: Path, target: Path | str, *args: str):
    return call(capsys, "export", model, "-f", "gguf:q4_0", "-o", target, *args)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_disk_full(capsys, llama, mount):
    place = mount("small", "size=64k")
    result = write(capsys, llama, place / "a" / "out.gguf")
    assert result.code == 4
    assert f"{place / 'a' / 'out.gguf'}: the disk is full: the output takes " in result.err
    assert "Free some space" in result.err
    assert tree(place) == []


def test_disk_that_is_full_at_any_point(llama, mount, tmp_path):
    """The output, its journal and its record want space at different times; each may be the one that finds none."""
    size = qformats.export(llama, tmp_path / "out.gguf", format="gguf:q4_0").file_nbytes
    pages = -(-size // 4096)
    outcomes = []
    for more in range(6):
        place = mount(f"disk{more}", f"size={(pages + more) * 4}k")
        message = ""
        try:
            qformats.export(llama, place / "out.gguf", format="gguf:q4_0")
        except OutputError as error:
            message = str(error)
        if message:
            assert str(place / "out.gguf") in message
            assert "full" in message or "No space left on device" in message
            assert tree(place) == []
        else:
            assert (place / "out.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()
        outcomes.append("refused" if message else "written")
    assert outcomes[0] == "refused"
    assert outcomes[-1] == "written"
    assert outcomes == sorted(outcomes)


def test_disk_too_full_for_the_journal(mount):
    place = mount("small", "size=64k")
    journal = Journal(place / "new" / "out.gguf", "identity")
    (place / "filler").write_bytes(bytes(12 * 4096))
    too_many = [Span(0, 0, 1, "0" * 32)] * 2000
    with pytest.raises(OutputError, match="No space left on device"):
        journal.add(0, Written(too_many))
    journal.discard()
    assert tree(place) == ["filler"]


def test_read_only_file_system(capsys, llama, mount):
    place = mount("fixed", "size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
    result = write(capsys, llama, place / "a" / "out.gguf")
    assert result.code == 4
    expected = f"qformats: {place / 'a' / 'out.gguf'}: cannot be written (Read-only file system). "
    assert result.err == expected + "Choose another place with --output.\n"


def test_parent_is_a_file(capsys, llama, tmp_path):
    (tmp_path / "file").write_text("mine")
    result = write(capsys, llama, tmp_path / "file" / "out.gguf")
    assert result.code == 4
    assert "cannot be written (Not a directory)" in result.err
    assert tree(tmp_path) == ["file"]


def test_name_too_long(capsys, llama, tmp_path):
    result = write(capsys, llama, tmp_path / "new" / ("x" * 300 + ".gguf"))
    assert result.code == 4
    assert "its name is too long" in result.err
    assert tree(tmp_path) == []


def test_existing_file(capsys, llama, tmp_path):
    target = tmp_path / "out.gguf"
    target.write_text("mine")
    result = write(capsys, llama, target)
    assert result.code == 4
    assert (
        result.err
        == f"qformats: {target}: exists already. Choose another name, or replace it with --force.\n"
    )
    assert target.read_text() == "mine"
    assert write(capsys, llama, target, "--force").code == 0
    assert target.read_bytes()[:4] == b"GGUF"
    assert tree(tmp_path) == ["out.gguf", "out.gguf.qformats.json"]


def test_failed_replacement_keeps_the_old_file(capsys, llama, mount):
    place = mount("small", "size=64k")
    (place / "out.gguf").write_text("mine")
    assert write(capsys, llama, place / "out.gguf", "--force").code == 4
    assert (place / "out.gguf").read_text() == "mine"
    assert tree(place) == ["out.gguf"]


def test_record_without_its_model_is_replaced(capsys, llama, tmp_path):
    assert write(capsys, llama, tmp_path / "out.gguf").code == 0
    (tmp_path / "out.gguf").unlink()
    assert write(capsys, llama, tmp_path / "out.gguf").code == 0


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_file_over_folder(capsys, llama, tmp_path, force):
    (tmp_path / "out").mkdir()
    result = write(capsys, llama, tmp_path / "out", *force)
    assert result.code == 4
    assert f"is a folder. Give the name of a file, such as {tmp_path / 'out' / 'model.gguf'}" in result.err
    assert tree(tmp_path) == ["out"]


def test_folder_over_file(capsys, llama, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = call(capsys, "export", llama, "-f", "dense:f16", "-o", tmp_path / "out", "--force")
    assert result.code == 4
    assert "is a file, but the output is a folder" in result.err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["thesis.tex"], "is a folder without a model"),
        (["config.json", "thesis.tex"], "also holds files that are not part of a model: thesis.tex."),
        (["config.json", *"abcdef"], "also holds files that are not part of a model: a, b, c and 3 more."),
    ],
)
def test_folder_with_other_things_is_never_replaced(capsys, llama, tmp_path, names, found):
    target = tmp_path / "out"
    target.mkdir()
    for name in names:
        (target / name).write_text("mine")
    result = call(capsys, "export", llama, "-f", "dense:f16", "-o", target, "--force")
    assert result.code == 4
    assert found in result.err
    assert tree(target) == sorted(names)
    assert tree(tmp_path) == sorted(["out", *(f"out/{name}" for name in names)])


def test_folder_of_a_model_is_replaced_as_a_whole(llama, tmp_path):
    qformats.export(llama, tmp_path / "out", format="dense:f32", options={"max-shard-size": "50KB"})
    before = tree(tmp_path / "out")
    assert "model.safetensors.index.json" in before
    with pytest.raises(OutputError, match="exists already"):
        qformats.export(llama, tmp_path / "out", format="dense:f16")
    assert tree(tmp_path / "out") == before
    qformats.export(llama, tmp_path / "out", format="dense:f16", force=True)
    assert "model.safetensors" in tree(tmp_path / "out")
    assert "model.safetensors.index.json" not in tree(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_source_is_never_the_target(capsys, copy, tmp_path):
    before = tree(tmp_path)
    for target, found in (
        (copy, "is the model being read"),
        (copy.parent, "holds the model being read"),
    ):
        result = call(capsys, "export", copy, "-f", "dense:f16", "-o", target, "--force")
        assert result.code == 4
        assert found in result.err
    link = tmp_path / "link"
    link.symlink_to(copy)
    assert call(capsys, "export", copy, "-f", "dense:f16", "-o", link, "--force").code == 4
    link.unlink()
    assert tree(tmp_path) == before
    qformats.export(copy, tmp_path / "a.gguf", format="gguf:q8_0")
    bytes_before = (tmp_path / "a.gguf").read_bytes()
    result = write(capsys, tmp_path / "a.gguf", tmp_path / "in" / ".." / "a.gguf", "--force")
    assert result.code == 4
    assert "is the model being read" in result.err
    assert (tmp_path / "a.gguf").read_bytes() == bytes_before


@pytest.mark.parametrize("target", [".", "..", "/"])
def test_target_without_a_name(capsys, llama, tmp_path, monkeypatch, target):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = write(capsys, llama, target)
    assert result.code == 4
    assert "is a folder" in result.err or "is not a valid name for a file or folder" in result.err
    assert tree(tmp_path) == ["here"]


def test_default_name(capsys, llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "export", llama, "-f", "gguf", "-t", "Q4_0").code == 0
    assert call(capsys, "export", "demo", "-f", "dense:f16").code == 0
    assert sorted(os.listdir(tmp_path)) == [
        "demo-llama-f16",
        "llama-q4_0.gguf",
        "llama-q4_0.gguf.qformats.json",
    ]


@pytest.mark.parametrize("name", ["a [red]b[/red] c.gguf", "it's.gguf", os.fsdecode(b"\xff\xe9.gguf")])
def test_odd_names(capsys, llama, tmp_path, name):
    """Names are printed as they are; the command that runs the result can be pasted into a shell."""
    result = write(capsys, llama, tmp_path / name)
    assert result.code == 0
    assert (tmp_path / name).is_file()
    if name.isascii():
        assert f"{tmp_path / name}  gguf:q4_0" in result.out
        command = result.out.split("Run it:  ")[1].strip()
        echoed = subprocess.run(["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True)
        assert echoed.stdout.splitlines()[:3] == ["llama-cli", "-m", str(tmp_path / name)]


def test_folders_inside_an_output_are_looked_into(capsys, llama, tmp_path):
    """Of a folder with folders in it only what its record lists is replaced; anything else belongs to somebody."""
    target = tmp_path / "out"
    (target / "100").mkdir(parents=True)
    (target / "100" / "part.pt").write_bytes(b"x")
    (target / "latest").write_text("100")
    record = {"files": [["latest", 3], ["100/part.pt", 1]]}
    (target / "qformats.json").write_text(json.dumps(record))
    arguments = ("export", llama, "-f", "dense:f16", "-o", target, "--force")
    for foreign in ("100/optimizer.pt", "100/notes/thesis.tex", "100/link"):
        path = target / foreign
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(tmp_path) if foreign.endswith("link") else path.write_bytes(b"mine")
        result = call(capsys, *arguments)
        assert result.code == 4
        assert "not part of a model: 100" in result.err
        assert os.path.lexists(path)
        path.unlink()
        if path.parent.name == "notes":
            path.parent.rmdir()
    assert call(capsys, *arguments).code == 0
    assert not (target / "100").exists()
