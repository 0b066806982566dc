"""Which chat template counts is what Transformers' own loader says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from models.vocabularies import byte_level

import qformats
from qformats.errors import CheckpointError
from qformats.folder import chat_templates
from qformats.runtime import tokenizer

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


PROCESSORS = "chat_template.json"


@pytest.mark.parametrize("others", [{}, {"processor_config.json": '{"processor_class": "LlavaProcessor"}'}])
@pytest.mark.parametrize("chat", [None, "old"])
def test_the_file_of_processors_is_ignored_and_named(chat, others, tmp_path):
    """Transformers' tokenizers ignore chat_template.json, with a processor beside it or without."""
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(qformats.open("demo").path, folder)
    told = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(told if chat is None else told | {"chat_template": chat}))
    assert qformats.open(folder).notes == ()
    for name, text in {PROCESSORS: '{"chat_template": "processor"}', **others}.items():
        (folder / name).write_text(text)
    source = qformats.open(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == chat
    assert tokenizer(source).chat_template == chat
    assert chat_templates(source.tokenizer_files(), folder).get("default") == chat
    (note,) = source.notes
    assert note.startswith("Not read: chat_template.json;")
    qformats.export(folder, tmp_path / "model.gguf", format="gguf:q8_0")
    assert tokenizer(qformats.open(tmp_path / "model.gguf")).chat_template == chat
    qformats.export(folder, tmp_path / "back", format="dense:f32")
    assert (tmp_path / "back" / PROCESSORS).read_text() == (folder / PROCESSORS).read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG, settings(5)),
        (CONFIG, settings([5])),
        (CONFIG, settings([{"name": "a"}])),
        (CONFIG, settings({"a": 1})),
        (CONFIG, "{"),
    ],
)
def test_malformed(name, content):
    with pytest.raises(CheckpointError, match=f"folder/{name}"):
        chat_templates({name: content.encode()}, Path("folder"))
    with pytest.raises(CheckpointError, match=r"folder/chat_template\.jinja: byte 0 is not UTF-8"):
        chat_templates({name: content.encode(), FILE: b"\xff"}, Path("folder"))
