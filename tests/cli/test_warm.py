"""A copy of a warm process is the program in every respect that tests look at."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from cli.command import environment, run, start
from cli.warm import Copy, same_imports


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", "demo", "--json"),
        ("export", "demo", "-f", "gguf:q8_0", "-o", "out.gguf"),
        ("export", "demo", "-f", "no:format", "-o", "out.gguf"),
        ("inspect", "nothing-here"),
    ],
)
def test_it_says_and_does_the_same(args, tmp_path):
    done, files = [], []
    for fresh in (False, True):
        place = tmp_path / str(fresh)
        place.mkdir()
        result = run(*args, cwd=place, fresh=fresh)
        # The time that it took is in the summary.
        lines = [line for line in result.out.splitlines() if not line.startswith("time ")]
        done.append((result.code, lines, result.err))
        files.append({file.name: file.read_bytes() for file in place.iterdir()})
    assert done[0] == done[1]
    assert files[0] == files[1]


def test_signals_end_it_as_they_end_a_new_process(tmp_path):
    for number in (signal.SIGKILL, signal.SIGINT):
        with start("generate", "demo", "Once", "-n", "9999", cwd=tmp_path) as process:
            assert isinstance(process, Copy)
            assert process.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)
            assert process.stdout.read(1)
            assert os.readlink(f"/proc/{process.pid}/cwd") == str(tmp_path)
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            # As `subprocess` does: not all who use it close what they have read.
            assert process.stdout.closed
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert ("interrupted" in err) == (number != signal.SIGKILL)


def test_one_that_hangs_is_killed():
    with pytest.raises(subprocess.TimeoutExpired):
        run("generate", "demo", "Once", "-n", "9999", timeout=0.2)


def test_its_environment_is_its_own(tmp_path):
    """What a test gives reaches the copy; what may change an import leads to a new process."""
    state = str(tmp_path / "state")
    assert same_imports(environment(XDG_STATE_HOME=state))
    assert run("export", "demo", "-f", "q8_0", "-o", tmp_path / "x.gguf", XDG_STATE_HOME=state).code == 0
    # It held the key with which interrupted exports are known again.
    assert (tmp_path / "state" / "qformats" / "resume-key").is_file()
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "HF_HOME", "NO_COLOR", "QFORMATS_PLUGINS"):
        assert not same_imports(environment(**{name: "other"}))
    assert same_imports(environment(AWS_ENDPOINT_URL="http://127.0.0.1", QFORMATS_SCRATCH=str(tmp_path)))
