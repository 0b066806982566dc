"""Every command of docs/chatglm.md, in order, on a small ChatGLM2."""

from __future__ import annotations

import json
import re
import shlex
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from cli.command import call
from models import chatglm, glm
from models.text import CORPUS

import qformats
from qformats.errors import CheckpointError

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "chatglm.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
PYTHON = re.findall(r"```py\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with what the guide begins with."""
    path = tmp_path_factory.mktemp("guide")
    made = chatglm.model(vocab_size=glm.SIZE, intermediate_size=96)
    chatglm.save(made, path / "chatglm2-6b")
    glm.tokenizer("chatglm2", path / "chatglm2-6b")
    config = path / "chatglm2-6b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"seq_length": 32768}))
    (path / "book.txt").write_text(CORPUS)
    return path


@pytest.fixture
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "examples"))
    return folder


def test_there_are_commands():
    assert len(COMMANDS) == 12
    assert {command.split()[0] for command in COMMANDS} == {"qformats", "python"}


@pytest.fixture
def quantized(there):
    """The folder with what the guide's first export writes."""
    if not (there / "chatglm2-6b-int4").exists():
        qformats.export("chatglm2-6b", "chatglm2-6b-int4", format="glm:int4")
    return there


# A command uses what those before it wrote. Tests may run in several processes, each with a folder of its own.
@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("qformats ")])
@pytest.mark.filterwarnings("always::UserWarning")
def test_commands_run(there, capsys, command):
    for earlier in COMMANDS[: COMMANDS.index(command)]:
        words = shlex.split(earlier)
        if words[1] == "export" and not Path(words[words.index("-o") + 1]).exists():
            assert call(capsys, *words[1:]).code == 0
    done = call(capsys, *shlex.split(command)[1:])
    assert done.code == 0, done.err
    if " generate " in command:
        assert done.out.strip()
    if "--fits" in command:
        assert done.out.rstrip().splitlines()[-1].startswith("Yes, it fits")
    if " export " in command and command.endswith(".gguf"):
        assert "no weight was quantized" in done.out
        assert "rounded" not in done.out


def test_the_python_of_the_guide_runs(quantized, capsys):
    assert len(PYTHON) == 1
    exec(compile(PYTHON[0], "docs/chatglm.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_a_pointer_is_named(there, tmp_path):
    model = tmp_path / "pointers"
    model.mkdir()
    for file in (there / "chatglm2-6b").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "tokenizer.model").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1018370\n"
    )
    with pytest.raises(CheckpointError, match=r"tokenizer\.model.*Git LFS pointer"):
        qformats.open(model)


def test_the_page_answers(quantized):
    import chat_page

    server = chat_page.serve(chat_page.Chat("chatglm2-6b-int4", "cpu", most=8), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        with urllib.request.urlopen(address, timeout=60) as reply:
            assert b"<form>" in reply.read()
        messages = json.dumps([{"role": "user", "content": "What is a whale?"}]).encode()
        with urllib.request.urlopen(f"{address}/chat", messages, timeout=60) as reply:
            said = reply.read().decode()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        sys.modules.pop("chat_page")
    model = qformats.load_model("chatglm2-6b-int4", device="cpu")
    from qformats.runtime import tokenizer

    text = tokenizer(qformats.open("chatglm2-6b-int4"))
    inputs = text.apply_chat_template(
        json.loads(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert said == text.decode(expected[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
