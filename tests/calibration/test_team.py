"""A calibration by two processes: each has half of the text and half of the rows."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import qformats
from qformats.calibration import Layer, Moments, Rounded
from qformats.calibration.team import Team
from qformats.errors import ConfigError, WorkerError
from qformats.work.progress import Silent

OPTIONS = {"samples": "8", "sequence-length": "128"}
FIRST = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]


def calibrated(target: Path, format: str, device: str) -> tuple[qformats.Checkpoint, dict[str, float]]:
    """The demo model, and the relative error of each of its layers."""
    log = target.with_suffix(".jsonl")
    options = OPTIONS | {"device": device, "log": str(log)}
    qformats.export("demo", target, format=format, quantizer="gptq", quantizer_options=options)
    errors = [json.loads(line) for line in log.read_text().splitlines()]
    assert {each["tokens"] for each in errors} == {8 * 128}
    return qformats.open(target), {each["layer"]: each["relative_error"] for each in errors}


@pytest.mark.parametrize(
    "format",
    [
        # Canonical rows are sent to the other process;
        "gptq:4bit-64g",
        # packed ones, where scales are stored in two parts;
        "gguf:q4_k",
        # whole layers, where a number belongs to all rows.
        "compressed-tensors:nvfp4",
    ],
)
def test_two_processes_give_what_one_does(format: str, tmp_path: Path) -> None:
    suffix = ".gguf" if format.startswith("gguf") else ""
    one, errors = calibrated(tmp_path / f"one{suffix}", format, "cpu")
    two, errors_of_two = calibrated(tmp_path / f"two{suffix}", format, "cpu,cpu")
    assert errors.keys() == errors_of_two.keys()
    for name in FIRST:
        # Nothing but the order of sums differs yet.
        before, after = (each.tensors[name].read(0, each.tensors[name].rows).unpack() for each in (one, two))
        assert float((before.codes == after.codes).float().mean()) > 0.99
    # Whatever differs spreads: rounding makes up for the errors of the layers before.
    for name, error in errors.items():
        assert errors_of_two[name] == pytest.approx(error, rel=0.1), name
    assert sum(errors_of_two.values()) == pytest.approx(sum(errors.values()), rel=0.03)


def test_shares_are_all_of_it() -> None:
    for size in (1, 2, 3, 7):
        for count in (7, 8, 100):
            ends = [Team(rank, size).share(count) for rank in range(size)]
            assert ends[0][0] == 0
            assert ends[-1][1] == count
            assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))


def plainly(layers: list[Layer], moments: Moments, tell: object) -> object:
    """A quantizer that other processes could import, if they could import this file."""
    for layer in layers:
        assert layer.packer.grid is not None
        yield Rounded(layer.packer.grid.quantize(layer.weight), 0.0, 1.0, 0.0)


@pytest.mark.parametrize("kind", ["closure", "module", "samples", "scaled"])
def test_what_cannot_be_shared_is_refused(kind: str, tmp_path: Path) -> None:
    from qformats.calibration import Settings, calibrate

    name = "model.layers.0.mlp.up_proj.weight"
    settings = Settings(samples=1 if kind == "samples" else 4, sequence_length=16, device="cpu,cpu")
    quantize = (lambda *given: plainly(*given)) if kind == "closure" else partial(plainly)
    said = {
        "closure": "cannot be sent to other processes",
        "module": "cannot be imported there",
        "samples": "samples: found 1",
        "scaled": "scales columns",
    }
    with pytest.raises((ConfigError, WorkerError), match=said[kind]):
        calibrate(
            qformats.open("demo"),
            {name: qformats.packer("gguf:q4_0")},
            tmp_path,
            settings,
            quantize,
            identity={},
            drift=False,
            progress=Silent(),
            scale=(lambda shared: None) if kind == "scaled" else None,
        )


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(each) for each in listed]


def gone(pid: int, within: float) -> bool:
    """Whether a process ends in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def blocks(place: Path) -> int:
    """Blocks that are finished."""
    return len([*place.glob(".*/**/block-*.safetensors")])


VICTIMS = ["first", "second", "leader"]


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_process_that_is_killed_ends_the_others(victim: str, tmp_path: Path) -> None:
    """In the middle of the work: within seconds, and the next run goes on with what is finished."""
    target = tmp_path / "out.gguf"
    command = [sys.executable, "-m", "qformats", "export", "demo", "-o", str(target), "--format", "gguf:q4_0"]
    command += ["--quantizer", "gptq", "--samples", "16", "-Q", "sequence-length=64", "--device", "cpu,cpu"]
    leader = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 200
        while not blocks(tmp_path):
            assert leader.poll() is None, leader.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        members = children(leader.pid)
        assert len(members) == 2
        number = VICTIMS.index(victim)
        os.kill((*members, leader.pid)[number], signal.SIGKILL)
        _, said = leader.communicate(timeout=30)
    finally:
        leader.kill()
    assert all(gone(member, 10) for member in members), "a process goes on alone"
    assert not target.exists()
    if victim != "leader":
        assert leader.returncode not in (0, -signal.SIGKILL)
        assert said.splitlines()[-1].startswith(
            f"qformats: process {number + 1} of 2 (cpu): was killed by signal 9. The others were ended, too. "
        )
        assert "Traceback" not in said
    # A block is kept, whoever was killed.
    assert blocks(tmp_path)
    if victim == "second":
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert "going on with an interrupted calibration: " in done.stderr
        assert target.exists()


class Deadly:
    """Ends the second process when it receives this."""

    def __reduce__(self) -> tuple[object, ...]:
        line = "import os, signal, sys; sys.argv[2] == '1' and os.kill(os.getpid(), signal.SIGKILL)"
        return exec, (line,)


def test_one_that_dies_before_they_meet(tmp_path: Path) -> None:
    """The others would wait for it for as long as they wait for anything."""
    from qformats.calibration import Settings, calibrate

    settings = Settings(samples=4, sequence_length=16, device="cpu,cpu")
    formats = {"model.layers.0.mlp.up_proj.weight": qformats.packer("gguf:q4_0")}
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"^process 2 of 2 \(cpu\): was killed by signal 9\. ") as caught:
        calibrate(
            qformats.open("demo"),
            formats,
            tmp_path,
            settings,
            Deadly(),
            identity={},
            drift=False,
            progress=Silent(),
        )
    assert caught.value.lost
    assert time.monotonic() - began < 60


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_two_processes_share_a_gpu(tmp_path: Path) -> None:
    devices = "cuda:0,cuda:1" if torch.cuda.device_count() > 1 else "cuda:0,cuda:0"
    _, errors = calibrated(tmp_path / "one", "gptq:4bit-64g", "cuda:0")
    _, shared = calibrated(tmp_path / "two", "gptq:4bit-64g", devices)
    for name, error in errors.items():
        assert shared[name] == pytest.approx(error, rel=0.1), name
