"""``qformats imatrix``."""

import json

import gguf
import numpy as np
import pytest
from cli.command import call

from qformats.calibration.text import calibration_text


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(calibration_text("", 0)[:3_000])
    return path


def _tensors(path):
    return {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(path).tensors}


def test_measured_added_up_and_told(text, tmp_path, capsys):
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    told = call(
        capsys,
        "imatrix",
        "demo",
        "--text",
        text,
        "--chunk-size",
        "64",
        "--chunks",
        "4",
        "-o",
        one,
        "--device",
        "cpu",
    )
    assert told.code == 0, told.err
    for shown in ("entries  28", "4 of 64 tokens", str(text)):
        assert shown in told.out
    told = call(capsys, "imatrix", "--in-file", one, "--in-file", one, "-o", two, "--json")
    assert told.code == 0, told.err
    report = json.loads(told.out)
    assert (report["entries"], report["chunks"], report["datasets"]) == (28, 8, [str(text)])
    first, second = _tensors(one), _tensors(two)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], 2 * values)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["demo", "--text", "nothing-here", "-o", "i.gguf"], "text: found 'nothing-here'"),
        (["demo", "-o", "i.dat"], "a name that ends in .gguf"),
        (["demo", "-o", "no/such/i.gguf"], "there is no folder no/such"),
        (["-o", "i.gguf"], "MODEL"),
        (["--in-file", "nothing.gguf", "-o", "i.gguf"], "nothing.gguf: no such file"),
    ],
)
def test_wrong_command_lines(arguments, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = call(capsys, "imatrix", *arguments)
    assert found.code in (2, 3, 4)
    assert told in found.err
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_if_told(tmp_path, capsys):
    target = tmp_path / "i.gguf"
    target.write_bytes(b"mine")
    found = call(capsys, "imatrix", "demo", "-o", target)
    assert found.code == 4
    assert "--force" in found.err
    assert target.read_bytes() == b"mine"
