"""Exports to an object store: nothing there reads as a model before all of it is there, and what is wrong is said."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from cli.command import ended, run, start
from export.store import Store, running

import qformats
from qformats.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    ModelNotFoundError,
    OutputError,
    QFormatsError,
)

pytest.importorskip("s3fs")
pytest.importorskip("moto")

FORMAT = ("-f", "dense:f16", "-O", "max-shard-size=1MB")
URL = "s3://bucket/models/out"


@pytest.fixture(scope="module")
def server():
    with running() as store:
        yield store


@pytest.fixture
def store(server, tmp_path, monkeypatch) -> Store:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("QFORMATS_SCRATCH", str(tmp_path / "scratch"))
    client = server.client()
    if client.find("bucket"):
        client.rm("bucket/models", recursive=True)
    return server


def content(store: Store, place: str = "bucket/models/out") -> dict[str, bytes]:
    """All files of a folder in the store."""
    client = store.client()
    return {path.removeprefix(f"{place}/"): client.cat_file(path) for path in client.find(place)}


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> dict[str, bytes]:
    """What is written into a folder on this machine."""
    place = tmp_path_factory.mktemp("clean") / "out"
    qformats.export("demo", place, format="dense:f16", options={"max-shard-size": "1MB"})
    found = {file.name: file.read_bytes() for file in place.iterdir()}
    assert len([name for name in found if name.endswith(".safetensors")]) > 5
    return found


def test_the_same_files(store, clean, tmp_path):
    result = run("export", "demo", *FORMAT, "-o", URL)
    assert (result.code, result.err) == (0, "")
    assert URL in result.out
    assert content(store) == clean
    # Nothing is left on this machine.
    assert not (tmp_path / "scratch").exists()
    again = run("export", "demo", *FORMAT, "-o", URL)
    assert again.code != 0
    assert again.err == f"qformats: {URL}: exists already. Choose another name, or replace it with --force.\n"


def test_a_single_file_and_its_record(store, tmp_path):
    report = qformats.export("demo", "s3://bucket/models/demo.gguf", format="gguf:q4_0")
    assert (report.target, report.run_with) == ("s3://bucket/models/demo.gguf", "")
    qformats.export("demo", tmp_path / "demo.gguf", format="gguf:q4_0")
    here = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    assert content(store, "bucket/models") == here
    with pytest.raises(OutputError, match="exists already"):
        qformats.export("demo", "s3://bucket/models/demo.gguf", format="gguf:q4_0")


def test_force_leaves_nothing_of_the_old_model(store, clean):
    qformats.export("demo", URL, format="gptq", quantizer="rtn")
    qformats.export("demo", URL, format="dense:f16", options={"max-shard-size": "1MB"}, force=True)
    assert content(store) == clean
    store.client().pipe_file("bucket/models/out/notes.csv", b"1")
    with pytest.raises(OutputError, match=r"files that are not part of a model: notes\.csv"):
        qformats.export("demo", URL, format="nf4", force=True)


def killed(store: Store, scratch: Path, *args: str) -> None:
    """An export that is killed while it uploads, after the first file and before the last."""
    process = start("export", "demo", *FORMAT, "-o", URL, *args)
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        notes = list(scratch.glob("*/.out.qformats-partial/files/.qformats-uploaded"))
        if notes and json.loads(notes[0].read_text()):
            # The store stands still, so that no more arrives.
            os.kill(store.process, signal.SIGSTOP)
            break
        time.sleep(0.0005)
    try:
        assert ended(process, signal.SIGKILL)[0] == -signal.SIGKILL
    finally:
        os.kill(store.process, signal.SIGCONT)


def test_a_killed_upload_is_no_model_and_goes_on(store, clean, tmp_path):
    killed(store, tmp_path / "scratch")
    there = content(store)
    assert there.keys() < clean.keys() - {"config.json"}
    before = {name: store.client().modified(f"bucket/models/out/{name}") for name in there}
    result = run("export", "demo", *FORMAT, "-o", URL)
    assert result.code == 0, result.err
    assert result.err.startswith("qformats: going on with an interrupted export: ")
    assert content(store) == clean
    assert not (tmp_path / "scratch").exists()
    # What had been noted was not sent again.
    same = [
        name for name, when in before.items() if store.client().modified(f"bucket/models/out/{name}") == when
    ]
    assert same


def test_a_killed_replacement_is_no_model(store, clean, tmp_path):
    qformats.export("demo", URL, format="nf4")
    killed(store, tmp_path / "scratch", "--force")
    assert "config.json" not in content(store)
    # Without the folder on this machine nothing tells whose files these are.
    os.rename(tmp_path / "scratch", tmp_path / "aside")
    found = run("export", "demo", *FORMAT, "-o", URL)
    assert found.err.startswith(f"qformats: {URL}: holds files but no model. ")
    os.rename(tmp_path / "aside", tmp_path / "scratch")
    assert run("export", "demo", *FORMAT, "-o", URL, "--force").code == 0
    assert content(store) == clean


def test_interrupted_uploads_leave_nothing(store, tmp_path):
    process = start("export", "demo", *FORMAT, "-o", URL)
    while not list((tmp_path / "scratch").glob("*/.out.qformats-partial/files/.qformats-uploaded")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)
    code, err = ended(process, signal.SIGINT)
    assert (code, err) == (130, "qformats: interrupted; the target is unchanged\n")
    assert content(store) == {}
    assert not (tmp_path / "scratch").exists()


def test_parts_of_killed_uploads_are_dropped(store, clean):
    client = store.client()
    first = next(name for name in clean if name.endswith(".safetensors"))
    for key in (f"models/out/{first}", f"models/other/{first}"):
        client.call_s3("create_multipart_upload", Bucket="bucket", Key=key)
    qformats.export("demo", URL, format="dense:f16", options={"max-shard-size": "1MB"})
    left = [each["Key"] for each in client.list_multipart_uploads("bucket")]
    assert left == [f"models/other/{first}"]
    client.clear_multipart_uploads("bucket")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "s3://nowhere/models/out",
            "s3://nowhere/models/out: there is no such bucket or place .*Make it first",
        ),
        ("s3://bucket", "is a whole bucket. Give the name of a file or folder inside of it"),
    ],
)
def test_places_that_cannot_be_written(store, url, said, tmp_path):
    with pytest.raises(OutputError, match=said):
        qformats.export("demo", url, format="nf4")
    assert not (tmp_path / "scratch").exists()


def test_access_that_is_denied(store, tmp_path):
    store.refuse(0)
    try:
        with pytest.raises(OutputError, match=r"access is denied .*\. Check the credentials"):
            qformats.export("demo", URL, format="nf4")
    finally:
        store.refuse(float("inf"))
    assert not (tmp_path / "scratch").exists()


def test_no_credentials(store, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(OutputError, match=r"access is denied .*Check the credentials"):
        qformats.export("demo", URL, format="nf4")


def test_unknown_urls():
    with pytest.raises(ConfigError, match=r"^URL: found 'nope://a/b'; expected a path, or a URL such as"):
        qformats.export("demo", "nope://a/b", format="nf4")


def test_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(BackendUnavailableError, match=r"Install it: pip install 'qformats\[gcs\]'"):
        qformats.export("demo", "gs://bucket/models/out", format="nf4")


def test_a_full_scratch_folder(store, mount, monkeypatch):
    place = mount("small", "size=1m")
    monkeypatch.setenv("QFORMATS_SCRATCH", str(place))
    with pytest.raises(OutputError, match="the disk is full: the output takes"):
        qformats.export("demo", URL, format="dense:f16")
    assert list(place.iterdir()) == []
    assert content(store) == {}


def test_a_store_in_memory(tmp_path, monkeypatch):
    """Any other file system of fsspec's, too."""
    import fsspec

    monkeypatch.setenv("QFORMATS_SCRATCH", str(tmp_path / "scratch"))
    qformats.export("demo", "memory://bucket/models/out", format="nf4")
    found = fsspec.filesystem("memory").find("/bucket/models/out")
    assert "/bucket/models/out/config.json" in found
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def test_a_model_in_a_store_is_fetched_once(store, tmp_path):
    qformats.export("demo", "s3://bucket/models/in", format="dense:f16")
    result = run("inspect", "s3://bucket/models/in", "--json")
    assert result.code == 0, result.err
    assert result.err.startswith("qformats: s3://bucket/models/in: 10.")
    assert "are fetched into" in result.err
    model = qformats.open("s3://bucket/models/in")
    assert (model.name, model.path.name) == ("in", "in")
    again = run("inspect", "s3://bucket/models/in", "--json")
    assert (again.out, again.err) == (result.out, "")
    # Another model under the same name is another one.
    qformats.export("demo", "s3://bucket/models/in", format="nf4", force=True)
    assert "bitsandbytes:nf4" in {
        each.format for each in qformats.open("s3://bucket/models/in").tensors.values()
    }


def test_parts_of_a_file_are_fetched_together(store, tmp_path):
    options = {"max-shard-size": "2MB"}
    qformats.export("demo", "s3://bucket/models/demo.gguf", format="gguf:q8_0", options=options)
    first = next(name for name in content(store, "bucket/models") if "-00001-of-" in name)
    qformats.export(f"s3://bucket/models/{first}", tmp_path / "whole.gguf", format="gguf:q8_0")
    qformats.export("demo", tmp_path / "direct.gguf", format="gguf:q8_0")
    read = qformats.open(tmp_path / "whole.gguf").read("model.layers.0.mlp.up_proj.weight")
    direct = qformats.open(tmp_path / "direct.gguf").read("model.layers.0.mlp.up_proj.weight")
    assert read.equal(direct)


def test_nothing_in_a_store(store):
    with pytest.raises(
        ModelNotFoundError, match=r"^s3://bucket/models/none: there is no model at this URL\."
    ):
        qformats.open("s3://bucket/models/none")


def test_names_that_lead_elsewhere_are_not_fetched(store, tmp_path):
    client = store.client()
    client.pipe_file("bucket/models/evil/config.json", b"{}")
    client.call_s3("put_object", Bucket="bucket", Key="models/evil/../../../escaped.json", Body=b"{}")
    with pytest.raises(QFormatsError):
        qformats.open("s3://bucket/models/evil")
    assert not list(tmp_path.rglob("escaped.json"))
    assert [file.name for file in (tmp_path / "scratch").rglob("*") if file.is_file()].count(
        "config.json"
    ) == 1


def test_a_model_that_does_not_fit(store, mount, monkeypatch):
    qformats.export("demo", "s3://bucket/models/in", format="dense:f16")
    place = mount("small", "size=1m")
    monkeypatch.setenv("QFORMATS_SCRATCH", str(place))
    with pytest.raises(CheckpointError, match=r"of which .* are free in .*QFORMATS_SCRATCH"):
        qformats.open("s3://bucket/models/in")
