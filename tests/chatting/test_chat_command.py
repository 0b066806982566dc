"""``qformats chat``: a conversation through a pipe, and in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time

import pytest
from chatting.conftest import TEMPLATE
from cli.command import PROGRAM, environment, without_escapes
from oracles import hf

import qformats
from qformats.cli.conversation import HELP
from qformats.runtime import tokenizer


def continued(prompt: str, count: int) -> str:
    """What the reference says after a prompt."""
    words = tokenizer(qformats.open("demo"))
    ids = words(prompt)["input_ids"]
    new = hf.greedy(hf.load(qformats.open("demo").path), ids, count)
    return words.decode(ids + new).removeprefix(words.decode(ids))


def test_a_conversation_has_a_history(typed, talker, tmp_path):
    """Each turn is rendered with all turns before it; answers alone are on standard output."""
    lines = ["Who are you?", "One\\", "two", "/stats", f"/save {tmp_path / 'said.json'}"]
    done = typed(talker, "-n", "12", "--system", "Be brief.", lines=lines)
    assert done.code == 0, done.err
    first = "system: Be brief.\nuser: Who are you?\nassistant:"
    one = continued(first, 12)
    second = f"system: Be brief.\nuser: Who are you?\nassistant: {one}\nuser: One\ntwo\nassistant:"
    two = continued(second, 12)
    assert done.out == f"{one}\n{two}\n"
    said = json.loads((tmp_path / "said.json").read_text())["messages"]
    assert [each["role"] for each in said] == ["system", "user", "assistant", "user", "assistant"]
    assert [each["content"] for each in said[1:]] == ["Who are you?", one, "One\ntwo", two]
    # The second turn reads only what is new.
    found = re.search(r"prompt: (\d+) tokens, (\d+) of them from the turns before, [\d.]+ tokens/s", done.err)
    assert found, done.err
    assert int(found[2]) >= len(tokenizer(qformats.open("demo"))(first)["input_ids"])
    assert re.search(
        r"answer: 12 tokens, [\d.]+ tokens/s\nmemory: weights 19.9 MB, cache [\d.]+ kB", done.err
    )


def test_commands(typed, talker, tmp_path):
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    lines = [
        *("Hello", "/reset", "/format", "/format q4_0", "/format", "Hello", "/system Be brief.", "/system"),
        *("/help", "/nope", ' """', "Hello", '"""', "/exit", "never reached"),
    ]
    done = typed(talker, "-n", "6", lines=lines)
    assert done.code == 0, done.err
    system = continued("system: Be brief.\nuser: Hello\nassistant:", 6)
    answers = done.out.rstrip("\n").split("\n")
    assert answers[0] == continued("user: Hello\nassistant:", 6)
    assert done.out.endswith(f"{system}\n") or "gguf:q4_0" in done.err
    for told in (
        "dense:bf16: 39 tensors, 19.9 MB\n",
        "the conversation begins anew\n",
        "talker in gguf:q4_0, 2.9 MB; the conversation goes on\n",
        "gguf:q4_0: 29 tensors, 2.5 MB\n",
        "system: Be brief.\n",
        "no command /nope; /help lists them",
        *HELP.values(),
    ):
        assert told in done.err
    refused = typed(talker, lines=[f"/save {taken}"])
    assert (refused.code, taken.read_text()) == (4, "mine")
    assert "exists already. Choose another name." in refused.err


def test_plain_text_and_templates_from_files(typed, tmp_path):
    raw = typed("demo", "--raw", "-n", "6", lines=["The United States"])
    assert (raw.code, raw.out) == (0, continued("The United States", 6) + "\n")
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE)
    given = typed("demo", "--template", file, "-n", "6", "--stop", " ", lines=["Hello"])
    whole = continued("user: Hello\nassistant:", 6)
    assert given.out == whole[: whole.index(" ")] + "\n"


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (
            ("demo",),
            2,
            "MODEL: found demo-llama, which has no chat template; expected a chat model. Give one with",
        ),
        (("demo", "--template", "not-here"), 3, "not-here: No such file or directory. Give a chat template."),
        (
            ("demo", "--raw", "--system", "x"),
            2,
            "--system: found 'x'; expected a conversation, without --raw",
        ),
        (("demo", "--raw", "--top-p", "0"), 2, "top_p: found 0.0; expected a number above 0, up to 1"),
        (("demo", "--raw", "--dtype", "int8"), 2, "--dtype: found 'int8'; expected f32, f16 or bf16"),
        (("./not-here",), 3, "./not-here: no such file or folder"),
    ],
)
def test_mistakes(typed, args, code, says):
    done = typed(*args)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
    assert done.err.count("\n") == 1


def test_what_templates_refuse_is_said_in_the_conversation(typed, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{{ raise_exception('only about ships') }}")
    done = typed("demo", "--template", file, lines=["Hello"])
    assert (done.code, done.out) == (3, "")
    assert "its chat template fails: only about ships" in done.err


class Terminal:
    """The program in a terminal."""

    def __init__(self, *args):
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [*PROGRAM, *map(str, args)],
            env=environment(TERM="xterm-256color"),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            # Ctrl-C reaches the group that the terminal belongs to.
            preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def until(self, pattern: str, timeout: float = 60) -> str:
        """Read until something is shown; gives what was shown up to there."""
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.seen!r}"
            try:
                part = os.read(self.master, 1 << 16)
            except OSError:
                part = b""
            assert part, f"the program ended: {self.seen!r}"
            self.seen += without_escapes(part.decode("utf-8", "replace")).replace("\r\n", "\n")
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def type(self, text: str) -> None:
        # As people do: Python misses a Ctrl-C between showing a prompt and waiting for what is typed.
        time.sleep(0.2)
        os.write(self.master, text.encode())


def test_in_a_terminal(talker):
    """Ctrl-C stops an answer and not the program; Ctrl-D ends."""
    terminal = Terminal("chat", talker, "--device", "cpu", "--temperature", "1.2")
    try:
        terminal.until(r"talker, dense:bf16, 19.9 MB \(cpu\); /help lists commands, Ctrl-D ends\n> ")
        terminal.type("Tell me everything.\n")
        terminal.until(r"(?s)everything\.\n.{20}")
        terminal.type("\x03")
        terminal.until(r"qformats: stopped\n> ")
        terminal.type("half a mess\x03")
        terminal.until(r"qformats: Ctrl-D ends the conversation\n> ")
        terminal.type("/format nope\n")
        terminal.until(r"no format 'nope'.*\n> ")
        terminal.type("/stats\n")
        terminal.until(r"answer: \d+ tokens.*\n.*\n.*\n> ")
        terminal.type("\x04")
        assert terminal.process.wait(30) == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGKILL)
            terminal.process.wait()
        os.close(terminal.master)
