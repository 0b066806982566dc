"""Which chat template counts is what Transformers' own loader says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from models.vocabularies import byte_level

from qformats.errors import CheckpointError
from qformats.folder import chat_templates

CONFIG, FILE, EXTRA = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates/"


def settings(value: Any) -> str:
    return json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": value})


NAMED = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {CONFIG: settings("old")},
        {CONFIG: settings(None)},
        {CONFIG: settings(NAMED)},
        {CONFIG: settings("old"), FILE: "new"},
        {CONFIG: settings(NAMED), FILE: "new"},
        {CONFIG: settings("old"), FILE: "new", EXTRA + "rag.jinja": "documents"},
        {CONFIG: settings("old"), EXTRA + "rag.jinja": "documents"},
        {FILE: "new", EXTRA + "default.jinja": "newer"},
        {FILE: "é\r\n"},
    ],
)
def test_as_in_transformers(files, tmp_path):
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level()))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path).chat_template
    expected = theirs if isinstance(theirs, dict) else {"default": theirs} if theirs else {}
    found = chat_templates({name: text.encode() for name, text in files.items()}, tmp_path)
    # Transformers reads the file as text, which changes the ends of lines.
    assert {name: text.replace("\r\n", "\n") for name, text in found.items()} == expected


def test_the_file_of_processors_comes_between():
    """Transformers' processors, not its tokenizers, read chat_template.json."""
    json_file = json.dumps({"chat_template": "processor"}).encode()
    files = {CONFIG: settings("old").encode(), "chat_template.json": json_file}
    assert chat_templates(files, "") == {"default": "processor"}
    assert chat_templates(files | {FILE: b"new"}, "") == {"default": "new"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG, settings(5)),
        (CONFIG, settings([5])),
        (CONFIG, settings([{"name": "a"}])),
        (CONFIG, settings({"a": 1})),
        (CONFIG, "{"),
        ("chat_template.json", settings(5)),
    ],
)
def test_malformed(name, content):
    with pytest.raises(CheckpointError, match=f"folder/{name}"):
        chat_templates({name: content.encode()}, Path("folder"))
    with pytest.raises(CheckpointError, match=r"folder/chat_template\.jinja: byte 0 is not UTF-8"):
        chat_templates({name: content.encode(), FILE: b"\xff"}, Path("folder"))
