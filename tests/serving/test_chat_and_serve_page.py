"""docs/chat_and_serve.md: its commands run, its program talks to a server, its tables say what there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from qformats.cli.app import app
from qformats.cli.conversation import HELP

PAGE = (Path(__file__).parents[2] / "docs" / "chat_and_serve.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if "qformats " in line
]


def test_options_exist():
    """Those of every command line, and those that sentences name."""
    known = typer.main.get_command(app).commands
    for line in COMMANDS:
        words = shlex.split(line.partition("| ")[2].partition(">")[0] or line)
        spelled = {each for parameter in known[words[1]].params for each in parameter.opts}
        assert {word for word in words if re.fullmatch(r"--?[a-z-]+", word)} <= spelled, line
    named = set(re.findall(r"`(--[a-z-]+)", PAGE))
    assert named <= {
        opt for command in ("chat", "serve") for each in known[command].params for opt in each.opts
    }
    assert {
        re.sub(r"`", "", cell).strip() for cell in re.findall(r"^\| (`/.*?`) \|", PAGE, re.MULTILINE)
    } == set(HELP)


@pytest.mark.parametrize("line", [line for line in COMMANDS if " chat " in line])
def test_conversations(line, talker, typed, tmp_path, monkeypatch):
    (tmp_path / "my-model").symlink_to(talker)
    monkeypatch.chdir(tmp_path)
    said, _, command = line.rpartition("| ")
    lines = shlex.split(said)[1].split("\\n")[:-1] if said else ["Who was the king?"]
    words = shlex.split(command.partition(">")[0])
    more = [] if "-n" in words else ["-n", "8"]
    done = typed(*words[2:], *more, lines=lines)
    assert done.code == 0, done.err
    assert len(done.out) > 8 * len(lines)


def test_the_program_talks_to_the_server(server):
    (program,) = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
    program = program.replace("http://127.0.0.1:8000", server[0]).replace("my-model", "talker")
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("20 tokens\n")
