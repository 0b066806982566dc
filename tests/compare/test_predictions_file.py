"""The file that keeps what a base predicts: read back as written, refused for anything else."""

import numpy as np
import pytest

from qformats.comparing.logits import LogitsReader, LogitsWriter, Predictions
from qformats.errors import CheckpointError, OutputError

WINDOWS, ROWS, VOCABULARY = 3, 5, 17
IDENTITY = {"model": [["model.gguf", 5, 7]], "text or tokenizer": "abc", "window": 12, "dtype": "float32"}


def _predictions():
    generator = np.random.default_rng(0)
    return [
        Predictions(
            generator.random((ROWS, 4)), generator.integers(0, 65536, (ROWS, VOCABULARY)).astype(np.uint16)
        )
        for _ in range(WINDOWS)
    ]


def _write(path, count=WINDOWS):
    with LogitsWriter(path, IDENTITY, WINDOWS, ROWS) as writer:
        for each in _predictions()[:count]:
            writer.add(each)


def _read(path):
    with LogitsReader(path) as reader:
        reader.check(IDENTITY, "those of model.gguf")
        return list(reader)


def test_round_trip(tmp_path):
    path = tmp_path / "predictions"
    _write(path)
    for found, wanted in zip(_read(path), _predictions(), strict=True):
        np.testing.assert_array_equal(found.rows, wanted.rows)
        np.testing.assert_array_equal(found.steps, wanted.steps)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions"]


def test_it_can_be_read_several_times(tmp_path):
    _write(tmp_path / "predictions")
    with LogitsReader(tmp_path / "predictions") as reader:
        assert [len(list(reader)) for _ in range(3)] == [WINDOWS] * 3


@pytest.mark.parametrize("key", IDENTITY)
def test_predictions_of_something_else_are_refused(key, tmp_path):
    path = tmp_path / "predictions"
    _write(path)
    with LogitsReader(path) as reader, pytest.raises(CheckpointError) as caught:
        reader.check({**IDENTITY, key: "other"}, "those of model.gguf on a.txt")
    message = str(caught.value)
    assert f"another {key}" in message
    assert "expected those of model.gguf on a.txt" in message
    assert str(path) in message


@pytest.mark.parametrize("place", [0, 20, 60, 200, 400, -1])
def test_every_changed_byte_is_noticed(place, tmp_path):
    path = tmp_path / "predictions"
    _write(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged|is not a file of predictions"):
        _read(path)


@pytest.mark.parametrize("size", [0, 10, 19, 100, 300, -1])
def test_a_cut_file_is_refused(size, tmp_path):
    path = tmp_path / "predictions"
    _write(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=r"is damaged.* written again|is not a file of predictions"):
        _read(path)


def test_a_longer_file_is_refused(tmp_path):
    path = tmp_path / "predictions"
    _write(path)
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        _read(path)


def test_nothing_appears_before_all_is_written(tmp_path):
    path = tmp_path / "predictions"

    def write_one():
        with LogitsWriter(path, IDENTITY, WINDOWS, ROWS) as writer:
            writer.add(_predictions()[0])
            assert not path.exists()
            assert list(tmp_path.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_one()
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_overwritten_in_passing(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("a text of mine")
    with pytest.raises(CheckpointError, match="is not a file of predictions") as caught:
        LogitsReader(path)
    assert "not overwritten" in str(caught.value)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        LogitsWriter(tmp_path / "file" / "predictions", IDENTITY, WINDOWS, ROWS)
    with pytest.raises(CheckpointError, match="cannot be read"):
        LogitsReader(tmp_path)
