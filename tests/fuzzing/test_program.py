"""The program that fuzzes for as long as one likes, with each of its engines."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import corpus
from fuzzing.engines import usable
from fuzzing.targets.every import TARGETS
from oracles import absent

PROGRAM = Path(__file__).parents[2] / "scripts" / "fuzz.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("engine", ["random", "hypothesis", "atheris"])
def test_engines(engine, tmp_path):
    if engine not in usable():
        absent("atheris has no wheel for this Python or machine")
    done = run(
        "quant-state",
        "--runs",
        300,
        "--engine",
        engine,
        "--faults",
        tmp_path,
        "--corpus",
        tmp_path / "corpus",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(
        r"quant-state: ([\d,]+) executions by (\w+) .*; ([\d,]+) results, ([\d,]+) refusals, 0 faults",
        done.stdout,
    )
    assert told, done.stdout
    assert told[2] == engine
    assert (
        int(told[1].replace(",", "")) == int(told[3].replace(",", "")) + int(told[4].replace(",", "")) >= 300
    )
    if engine == "atheris":
        # It keeps what reached something new.
        assert len(corpus.load(tmp_path / "corpus")) > len(corpus.load(corpus.SEEDS / "quant-state"))


def test_a_kept_input_is_replayed():
    seed = next((corpus.SEEDS / "quant-state").iterdir())
    done = run("quant-state", "--replay", seed)
    assert (done.returncode, done.stdout) == (0, "no fault\n")


def test_targets_are_listed():
    assert run("--list").stdout.split() == [*TARGETS]
