"""The example container of the documentation: a file that ends with what only the written weights can tell."""

import json
import sys
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import qformats
from qformats.errors import CheckpointError, ConfigError, PluginError
from qformats.exporting import fill
from qformats.registry import registry

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "qformats-npz"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def _npz(tmp_path_factory, monkeypatch):
    """The plugin in this process, as an installation leaves it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    site = tmp_path_factory.mktemp("site")
    info = site / f"qformats_npz-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: qformats-npz\nVersion: {project['version']}\n"
    )
    points = [f"{name} = {target}" for name, target in project["entry-points"]["qformats"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[qformats]", *points]))
    for folder in (site, EXAMPLE):
        monkeypatch.syspath_prepend(str(folder))
    registry.cache_clear()
    yield
    registry.cache_clear()
    sys.modules.pop("qformats_npz", None)


def _export(target, format="gguf:q4_0", source="demo", **more):
    qformats.export(source, target, format=format, container="npz", **more)
    return target


@pytest.mark.parametrize(
    "format", ["gguf:q4_0", "gptq:4bit-128g", "bitsandbytes:nf4-dq", "glm:int8", "dense:f16"]
)
def test_written_archives_are_whole_for_everyone(tmp_path, format):
    path = _export(tmp_path / "demo.npz", format, quantizer="rtn")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None, "every checksum is right"
        assert json.loads(archive.read("about.json"))["config"]["model_type"] == "llama"
    model = qformats.open(path)
    assert model.container == "npz"
    assert model.tensors[Q_PROJ].format == format
    dense = qformats.open("demo").read(Q_PROJ)
    expected = qformats.packer(format).encode_reference(dense.to(torch.bfloat16))
    with np.load(path) as arrays:
        for field, value in expected.fields.items():
            found = torch.from_numpy(arrays[f"{Q_PROJ}/{field}"])
            assert torch.equal(found.reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), (
                field
            )
    assert torch.equal(model.read(Q_PROJ), expected.dequantize())
    assert model.tokenizer_files() == qformats.open("demo").tokenizer_files()


def test_slices_and_threads_give_the_same_bytes(tmp_path, monkeypatch):
    once = _export(tmp_path / "once.npz").read_bytes()
    monkeypatch.setattr(fill, "SLICE_WEIGHTS", 5000)
    assert _export(tmp_path / "sliced.npz", workers=3).read_bytes() == once


def test_a_model_leaves_the_archive_unchanged(tmp_path):
    path = _export(tmp_path / "demo.npz", "glm:int4")
    report = qformats.export(path, tmp_path / "demo.gguf", format="gguf:q4_0", require_exact=True)
    assert report.types["gguf:q4_0"] == 28
    assert torch.equal(qformats.open(tmp_path / "demo.gguf").read(Q_PROJ), qformats.open(path).read(Q_PROJ))


def test_damaged_archives_are_refused(tmp_path):
    whole = _export(tmp_path / "demo.npz").read_bytes()
    for name, content in (
        ("cut", whole[:-1000]),
        ("tail", whole[:4000]),
        ("flipped", whole[:40] + b"x" * 4000),
    ):
        (tmp_path / f"{name}.npz").write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}\.npz"):
            qformats.open(tmp_path / f"{name}.npz")


@pytest.mark.parametrize(
    ("told", "error", "message"),
    [
        ([(-1, b"x")], ConfigError, r"npz: bytes that finish writes into demo\.npz: found '-1 to 0'"),
        (
            [(1 << 40, b"x")],
            ConfigError,
            "expected a range of the [0-9]+ bytes of the file that holds no weights",
        ),
        ("weights", ConfigError, "holds no weights"),
        ("raise", PluginError, r"plugin qformats_npz: Npz\.finish raised ZeroDivisionError .*container npz"),
    ],
)
def test_what_a_container_may_not_finish(tmp_path, monkeypatch, told, error, message):
    import qformats_npz

    from qformats.work.guard import _guarded

    def finish(self, file, content):
        if told == "raise":
            raise ZeroDivisionError
        return [(file.placements[0].offset, b"x")] if told == "weights" else told

    finish.__module__, finish.__qualname__ = "qformats_npz", "Npz.finish"
    monkeypatch.setattr(qformats_npz.Npz, "finish", _guarded(finish))
    with pytest.raises(error, match=message):
        _export(tmp_path / "demo.npz")
    assert list(tmp_path.iterdir()) == []
