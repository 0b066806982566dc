"""Completion in a real shell: what a key press offers, and what it puts on the command line."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from cli.command import PROGRAM, call, environment

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="no bash on this machine")


@pytest.fixture
def bash(tmp_path):
    """An interactive bash with completion; gives what it shows after some keys, once it is quiet."""
    program = tmp_path / "bin" / "qformats"
    program.parent.mkdir()
    python, _, code = PROGRAM
    program.write_text(f"#!{python}\n{code}\n")
    program.chmod(0o755)
    (tmp_path / "model-folder").mkdir()
    path = f"{program.parent}:{os.environ['PATH']}"
    env = environment(PATH=path, TERM="dumb", PS1="> ", HOME=str(tmp_path), INPUTRC="/dev/null")
    process, terminal = pty.fork()
    if not process:
        os.chdir(tmp_path)
        os.execve(BASH, ["bash", "--norc", "--noprofile", "-i"], env)

    def read(until: str, patience: float = 30) -> str:
        shown, end = "", time.monotonic() + patience
        while not re.search(until, shown):
            assert time.monotonic() < end, shown
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 1 << 16).decode()
        return shown

    def press(keys: str, until: str) -> str:
        os.write(terminal, keys.encode())
        shown = read(until)
        # The line is thrown away.
        os.write(terminal, b"\x15")
        return shown

    read("> ")
    # The output of echo is not what was typed.
    press('bind "set bell-style none"; eval "$(qformats completion bash)"; echo r""eady\r', "ready\r\n")
    yield press
    os.close(terminal)
    os.waitpid(process, 0)


def test_bash_completes_commands_options_formats_and_files(bash):
    bash("qformats exp\t", "qformats export ")
    bash("qformats resh\t", "qformats reshard ")
    listed = bash("qformats export demo --for\t\t", r"--force\s+--format")
    assert "--option" not in listed
    bash("qformats export demo --calib\t", "--calibration ")
    # Bash takes a colon for the end of a word.
    bash("qformats export demo --format gguf:q8\t", "--format gguf:q8_0 ")
    bash("qformats export demo --format=gguf:q8\t", "--format=gguf:q8_0 ")
    bash("qformats generate 'a b c' x --format bitsandbytes:i\t", "--format bitsandbytes:int8 ")
    bash("qformats formats gguf:q4_\t\t", r"q4_0\s+q4_1\s+q4_k")
    bash("qformats export demo --quantizer gp\t", "--quantizer gptq ")
    bash("qformats inspect mod\t", "model-folder/")


def test_it_asks_without_torch():
    code = (
        "import sys; sys.argv = ['qformats']\n"
        "from qformats.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)\n"
    )
    asked = {"COMP_WORDS": "qformats export --format nf4-", "COMP_CWORD": "3"}
    done = subprocess.run(
        [PROGRAM[0], "-c", code],
        env=environment(_QFORMATS_COMPLETE="complete_bash", **asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "nf4-dq\n"


@pytest.mark.parametrize(
    ("shell", "script", "start"),
    [
        ("bash", ".local/share/qformats/completion.bash", ".bashrc"),
        ("zsh", ".local/share/qformats/completion.zsh", ".zshrc"),
        ("fish", ".config/fish/completions/qformats.fish", None),
    ],
)
def test_installing(capsys, monkeypatch, tmp_path, shell, script, start):
    """The script is where the shell finds it; a second time changes nothing, and nothing of the user's is lost."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for variable in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(variable, raising=False)
    if start:
        (tmp_path / start).write_text("alias ll='ls -l'")
    for _ in range(2):
        assert call(capsys, "completion", shell, "--install").code == 0
        assert (tmp_path / script).read_text() == call(capsys, "completion", shell).out
        if start:
            assert (tmp_path / start).read_text() == f"alias ll='ls -l'\nsource '{tmp_path / script}'\n"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    refused = call(capsys, "completion", shell, "--install")
    assert refused.code == 4
    assert "Run qformats completion without --install to print the script" in refused.err


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_are_valid(capsys, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    script = call(capsys, "completion", shell).out
    done = subprocess.run([shell, "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
