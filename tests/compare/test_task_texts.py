"""Where the texts of tasks come from: files of users, and the caches of data sets as their libraries lay them out."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from qformats.comparing.tasks.files import passages_of, text_of
from qformats.comparing.tasks.task import tasks_of
from qformats.errors import BackendUnavailableError, CheckpointError, ConfigError

MADE_BY_DATASETS = Path(__file__).parents[1] / "golden" / "datasets_cache"
TOKENS = " \n = A = \n \n one two three \n"
"""The form of ``wiki.test.tokens``."""


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches of this test alone."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def snapshot(hub, name, commit="0" * 40, main=True):
    home = hub / ("datasets--" + name.replace("/", "--"))
    if main:
        (home / "refs").mkdir(parents=True, exist_ok=True)
        (home / "refs" / "main").write_text(commit)
    return home / "snapshots" / commit


def test_what_datasets_has_made_is_found(caches):
    shutil.copytree(MADE_BY_DATASETS, caches / "datasets")
    wikitext, ptb = tasks_of(["wikitext2", "ptb"], {})
    assert wikitext.text == TOKENS
    assert ptb.text == " no it was n't black monday \n but while the new york \n"
    assert wikitext.source.endswith("wikitext-test.arrow")


def test_what_was_downloaded_is_found(caches):
    rows = ["", " = A = \n", "", " one two three \n"]
    old = snapshot(caches / "hub", "Salesforce/wikitext", "f" * 40, main=False)
    table(old / "wikitext-2-v1" / "test-00000-of-00001.parquet", text=["old"])
    new = snapshot(caches / "hub", "Salesforce/wikitext", "1" * 40)
    table(new / "wikitext-2-v1" / "test-00000-of-00002.parquet", text=rows[:2])
    table(new / "wikitext-2-v1" / "test-00001-of-00002.parquet", text=rows[2:])
    table(new / "wikitext-2-v1" / "train-00000-of-00001.parquet", text=["train"])
    table(new / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet", text=["raw"])
    lambada = snapshot(caches / "hub", "EleutherAI/lambada_openai")
    table(lambada / "default" / "test" / "0000.parquet", text=["She was\nhome at last", "he said so"])
    first, second = tasks_of(["wikitext2", "lambada"], {})
    assert first.text == TOKENS
    assert "and 1 more" in first.source
    assert second.passages == (("She was\nhome at", "last"), ("he said", "so"))


def test_the_raw_text_serves_where_there_is_no_other(caches):
    found = snapshot(caches / "hub", "Salesforce/wikitext")
    table(found / "wikitext-103-raw-v1" / "test-00000-of-00001.parquet", text=[" raw \n"])
    (task,) = tasks_of(["wikitext103"], {})
    assert (task.text, task.title) == (" raw \n", "WikiText-103")
    assert "raw-v1" in task.source


def test_folders_that_were_not_finished_are_no_data_sets(caches):
    shutil.copytree(MADE_BY_DATASETS, caches / "datasets")
    for info in (caches / "datasets").rglob("dataset_info.json"):
        info.unlink()
    with pytest.raises(ConfigError, match=r"no text of Penn Treebank in .*nothing is downloaded"):
        tasks_of(["ptb"], {})


def test_nothing_is_read_before_everything_is_there(caches):
    file = caches / "wiki.test.tokens"
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="no text of LAMBADA"):
        tasks_of(["wikitext2", "lambada"], {"wikitext2": str(file)})


def test_files_of_users(caches):
    plain = caches / "wiki.test.tokens"
    plain.write_bytes(b" \n = A = \r\n")
    assert text_of([plain]) == " \n = A = \r\n", "as it is"
    lines = caches / "rows.jsonl"
    lines.write_text('{"text": " = A = \\n"}\n\n{"text": ""}\n{"text": "one\\u2028two"}\n', encoding="utf-8")
    assert text_of([lines]) == " = A = \n \n one\u2028two \n"
    passages = caches / "test.jsonl"
    rows = [
        {"inputs_pretokenized": "a b c ", "targets_pretokenized": ["d", "e"]},
        {"inputs_pretokenized": "f g", "targets_pretokenized": "h"},
    ]
    passages.write_text("\n".join(map(json.dumps, rows)))
    assert passages_of([passages]) == [("a b c", "d"), ("f g", "h")]
    one_a_line = caches / "lambada.txt"
    one_a_line.write_text("the cat sat\n\n  on the mat  \n")
    assert passages_of([one_a_line]) == [("the cat", "sat"), ("on the", "mat")]


def test_a_text_of_ones_own(caches):
    file = caches / "notes.txt"
    file.write_text("my own words")
    (task,) = tasks_of(["notes"], {"notes": str(file)})
    assert (task.name, task.title, task.text, task.asks) == ("notes", "notes", "my own words", False)


@pytest.mark.parametrize(
    ("names", "files", "error", "said"),
    [
        (["wikitext3"], {}, ConfigError, "lambada, wikitext2, wikitext103, ptb.*--text-file wikitext3=FILE"),
        (["ptb", "ptb"], {}, ConfigError, "each task once"),
        (["ptb"], {"lambada": "x"}, ConfigError, "--tasks ptb,lambada"),
        (["ptb"], {"ptb": "missing"}, CheckpointError, "does not exist"),
        (["ptb"], {"ptb": "."}, CheckpointError, "is a folder"),
        (["ptb"], {"ptb": "empty.txt"}, CheckpointError, "has no words"),
        (["lambada"], {"lambada": "empty.txt"}, CheckpointError, "has no passages"),
        (["lambada"], {"lambada": "word.txt"}, CheckpointError, "passage 2 has no two words"),
        (["ptb"], {"ptb": "latin.txt"}, CheckpointError, "not UTF-8"),
        (["ptb"], {"ptb": "list.jsonl"}, CheckpointError, "line 1 is not an object"),
        (["ptb"], {"ptb": "broken.jsonl"}, CheckpointError, "line 1 is not JSON"),
        (
            ["ptb"],
            {"ptb": "other.parquet"},
            CheckpointError,
            "columns label; expected a column text or sentence",
        ),
        (["ptb"], {"ptb": "number.parquet"}, CheckpointError, "text is int"),
        (["ptb"], {"ptb": "broken.parquet"}, CheckpointError, "cannot be read"),
        (["ptb"], {"ptb": "broken.arrow"}, CheckpointError, "cannot be read"),
    ],
)
def test_what_is_no_text_is_named(caches, monkeypatch, names, files, error, said):
    monkeypatch.chdir(caches)
    Path("empty.txt").write_text(" \n")
    Path("word.txt").write_text("two words\nword\n")
    Path("latin.txt").write_bytes("né".encode("latin-1"))
    Path("list.jsonl").write_text("[1]")
    Path("broken.jsonl").write_text("{")
    table(Path("other.parquet"), label=["x"])
    table(Path("number.parquet"), text=[1])
    Path("broken.parquet").write_bytes(b"PAR1 and no more")
    Path("broken.arrow").write_bytes(b"not a table")
    with pytest.raises(error, match=said):
        tasks_of(names, files)


def test_without_pyarrow_the_text_itself_is_asked_for(caches, monkeypatch):
    file = table(caches / "rows.parquet", text=["a b"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BackendUnavailableError, match=r"pip install pyarrow.*--text-file NAME=FILE"):
        text_of([file])
