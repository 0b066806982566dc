"""The demo model, loaded once, with a chat template."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from cli.command import call

import qformats
from qformats.chatting.loaded import ChatModel
from qformats.folder.chat import default_template

TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if shout is defined %}LOUD {% endif %}assistant:"
)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a chat template, as a folder; its text never ends by itself."""
    folder = tmp_path_factory.mktemp("chat") / "talker"
    shutil.copytree(qformats.open("demo").path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": []}))
    return folder


@pytest.fixture(scope="module")
def chat_model(talker):
    source = qformats.open(talker)
    with ChatModel(source, "talker", default_template(source), device="cpu") as model:
        yield model


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run the command in this process with lines on standard input."""

    def run(*args, lines=()):
        read, write = os.pipe()
        os.write(write, "".join(f"{line}\n" for line in lines).encode())
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdin", stream)
            return call(capsys, "chat", *args, "--device", "cpu")

    return run
