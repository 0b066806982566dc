"""What a newcomer meets: help that begins with an example, refused targets, interruptions and closed pipes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time

import pytest
import typer
from cli.command import PROGRAM, call, environment, run, start, without_escapes

from qformats.cli.app import app
from qformats.cli.declared import command, commands

OWN = typer.main.get_command(app).commands
COMMANDS = {**OWN, **{name: command(point) for name, point in commands().items()}}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_an_example_that_is_understood(capsys, name):
    shown = call(capsys, name, "--help")
    assert shown.code == 0
    example = COMMANDS[name].help.split("\n\n")[1].removeprefix("[bold]").removesuffix("[/bold]")
    before_options = re.sub(r"\s+", " ", without_escapes(shown.out).partition("╭")[0])
    assert example in before_options
    words = shlex.split(example)
    assert words[:2] == ["qformats", name]
    # The command line parses: its options and arguments exist.
    context = COMMANDS[name].make_context(name, words[2:], resilient_parsing=False)
    context.close()


def test_without_a_command_there_are_first_steps(capsys):
    shown = call(capsys)
    assert shown.code == 2
    text = shown.out + shown.err
    for step in (
        "qformats export demo --format",
        "qformats generate demo.gguf",
        "qformats inspect demo.gguf",
    ):
        assert step in text


@pytest.mark.parametrize("target", ["-", "/dev/stdout", "/dev/null", "/proc/self/fd/1"])
@pytest.mark.parametrize(
    "args",
    [
        ("export", "demo", "-f", "q8", "-o"),
        ("compare", "demo", "--try", "q8", "--html"),
        ("compare", "demo", "--try", "q8", "--logits"),
        ("new-plugin", "my-format", "-o"),
    ],
    ids=lambda args: " ".join((args[0], args[-1])),
)
def test_targets_that_are_no_files(capsys, monkeypatch, tmp_path, args, target):
    monkeypatch.chdir(tmp_path)
    result = call(capsys, *args, target)
    assert (result.code, result.out) == (4, "")
    assert f"qformats: {target}: is not an ordinary file. An output is written in pieces" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--csv", "--json"])
def test_reports_go_to_standard_output_by_their_own_name(capsys, option):
    result = call(capsys, "compare", "demo", "--try", "q8", f"{option}=/dev/stdout")
    assert (result.code, result.out) == (4, "")
    assert "/dev/stdout: is not an ordinary file" in result.err


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("export", "demo", "-f", "gguf", "-o", "x.gguf"), "interrupted; the target is unchanged"),
        (("compare", "demo", "--try", "q8"), "interrupted"),
        (("generate", "demo", "Once", "-n", "9999"), r"interrupted; \d+ tokens were written"),
    ],
    ids=lambda args: args[0],
)
@pytest.mark.parametrize("seconds", [0.4, 1.5])
def test_interrupted_at_any_time(tmp_path, args, told, seconds):
    with start(*args, "-v", cwd=tmp_path, fresh=True) as process:
        # The first step that is told: from here on the program listens.
        while not (line := process.stderr.readline()).startswith("qformats: "):
            assert line
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done by then")
    assert process.returncode == 130
    *steps, last = err.splitlines()
    assert re.fullmatch(f"qformats: {told}", last)
    assert all(re.match(r"qformats: +\d+\.\d s: ", step) for step in steps)
    assert not [name for name in os.listdir(tmp_path) if "partial" not in name]


def test_interrupted_after_the_end(tmp_path):
    late = "import atexit, os, signal; atexit.register(os.kill, os.getpid(), signal.SIGINT); "
    done = subprocess.run(
        [*PROGRAM[:2], late + PROGRAM[2], "formats"], env=environment(), capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "args", [("formats",), ("formats", "--json"), ("inspect", "demo", "--tensors"), ("--help",)]
)
def test_a_reader_that_goes_away(args):
    with subprocess.Popen(
        [*PROGRAM, *args], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""


def test_piped_output_has_no_colours(tmp_path):
    for args in (
        ("formats",),
        ("formats", "gguf:q4_0"),
        ("inspect", "demo"),
        ("export", "--help"),
        ("plugins",),
    ):
        result = run(*args, fresh=True)
        assert result.code == 0
        assert "\x1b" not in result.out + result.err
