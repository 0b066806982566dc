"""What the fuzzers look for they would find: each rule is broken here on purpose."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from pathlib import Path

import pytest
from fuzzing import watch
from fuzzing.runner import sandbox

from qformats.errors import CheckpointError, ConfigError, PluginError


@pytest.fixture
def place():
    with sandbox() as made:
        yield made


def outcome(place, read, cpu=watch.CPU_SECONDS):
    watched = watch.Watch(place, cpu)
    with watched.settled():
        return watched.run(read)


def test_a_result_and_a_refusal_are_no_faults(place):
    assert outcome(place, lambda folder: os.listdir(folder)) is True

    def refuse(folder):
        raise CheckpointError(folder, "is damaged")

    assert outcome(place, refuse) is False


def raising(error):
    def read(folder):
        raise error

    return read


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        pytest.param(KeyError("x"), "exception", id="lookup"),
        pytest.param(MemoryError(), "exception", id="memory"),
        pytest.param(PluginError("plugin", "read", ValueError("x")), "plugin", id="plugin"),
        pytest.param(RecursionError(), "recursion", id="recursion"),
    ],
)
def test_another_error_is_a_fault(place, error, kind):
    assert outcome(place, raising(error)).kind == kind


def test_what_takes_long_is_a_fault(place):
    def busy(folder):
        until = time.process_time() + 1
        while time.process_time() < until:
            pass

    fault = outcome(place, busy, cpu=0.1)
    assert fault.kind == "slow"


def test_much_memory_is_a_fault(place):
    held = []

    def greedy(folder):
        held.append(bytearray(watch.MEMORY * 3))

    fault = outcome(place, greedy)
    assert (fault.kind, fault.place.partition(" ")[0]) == ("exception", "MemoryError")


OUTSIDE = {
    "read beside": lambda folder: (folder / "../secret").read_bytes(),
    "read elsewhere": lambda folder: Path("/etc/passwd").read_bytes(),
    "list": lambda folder: os.listdir("/etc"),
    "write": lambda folder: (folder / "new").write_text("x"),
    "remove": lambda folder: (folder.parent / "secret").unlink(),
    "rename": lambda folder: os.rename(folder.parent / "secret", folder.parents[1] / "free" / "secret"),
    "link": lambda folder: os.symlink("/etc", folder.parent / "link"),
}


@pytest.mark.parametrize("act", OUTSIDE.values(), ids=OUTSIDE.keys())
def test_what_is_outside_is_a_fault(place, act):
    assert outcome(place, act).kind == "outside"


class Calling:
    def __reduce__(self):
        return watch.sprung, ()


RUNNING = {
    "process": lambda folder: subprocess.run(["true"], check=True),
    "shell": lambda folder: os.system("true"),
    "pickle": lambda folder: pickle.loads(pickle.dumps(Calling())),
}


@pytest.mark.parametrize("act", RUNNING.values(), ids=RUNNING.keys())
def test_running_anything_is_a_fault(place, act):
    assert outcome(place, act).kind == "code"


def test_what_our_own_errors_hide_is_a_fault_too(place):
    def read(folder):
        try:
            Path("/etc/passwd").read_bytes()
        finally:
            raise ConfigError("x", 1, "2")

    assert outcome(place, read).kind == "outside"
