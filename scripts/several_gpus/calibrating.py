"""GPTQ of Llama 3 8B's shapes on one GPU and on two: time, memory, and what differs."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import torch
from bench_calibration import Watch, text

import qformats
from several_gpus.models import LLAMA_8B, SMALL_LLAMA, llama
from several_gpus.timing import device_of

__all__ = ["FORMAT", "measure", "output"]

FORMAT = "gptq:4bit-128g"
SAMPLES, LENGTH = 128, 2048


def output(folder: Path, devices: int) -> Path:
    """Where the result of a calibration is."""
    return folder / f"calibrated-{devices}"


def measure(folder: Path, counts: tuple[int, ...], *, small: bool) -> list[dict[str, Any]]:
    """Calibrate with one process and with two."""
    sizes = SMALL_LLAMA if small else LLAMA_8B
    samples, length = (8, 64) if small else (SAMPLES, LENGTH)
    source = llama(folder, sizes, "dense")
    found: list[dict[str, Any]] = []
    for count in counts:
        target, log = output(folder, count), folder / f"calibrated-{count}.jsonl"
        shutil.rmtree(target, ignore_errors=True)
        log.unlink(missing_ok=True)
        options = {
            "device": ",".join(device_of(number) for number in range(count)),
            "samples": str(samples),
            "sequence-length": str(length),
            "calibration": str(text(folder, 2 * samples * length)),
            "log": str(log),
        }
        watch = Watch()
        with _Memory() as memory:
            began = time.perf_counter()
            qformats.export(
                source, target, format=FORMAT, quantizer="gptq", quantizer_options=options, progress=watch
            )
            took = time.perf_counter() - began
        blocks = watch.seconds("block ")
        found.append(
            {
                "devices": count,
                "seconds": took,
                "blocks": blocks,
                "per_block": blocks / sizes.layers,
                "gigabytes": memory.most,
            }
        )
        print(json.dumps(found[-1]), flush=True)
    if len(found) > 1:
        found[1] |= _compared(folder)
    return found


class _Memory:
    """The most memory in use on each GPU, by whatever process, while a block runs."""

    def __enter__(self) -> _Memory:
        self.most: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if not torch.cuda.is_available():
            return
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not self._stop.wait(0.2):
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            used = [int(line) * 2**20 / 1e9 for line in told.split()]
            self.most = [max(pair) for pair in zip(used, self.most or used, strict=True)]


def _compared(folder: Path) -> dict[str, Any]:
    """Shares of codes that are the same in the first layer and in all, and errors of layers side by side."""
    one, two = (qformats.open(output(folder, count)) for count in (1, 2))
    shares = {}
    for name, tensor in one.tensors.items():
        if tensor.packer.quantizes:
            a, b = (each.tensors[name].read(0, tensor.rows).unpack().codes for each in (one, two))
            shares[name] = float((a == b).float().mean())
    first = [
        share for name, share in shares.items() if ".layers.0.self_attn." in name and "o_proj" not in name
    ]
    errors = []
    for count in (1, 2):
        lines = (folder / f"calibrated-{count}.jsonl").read_text().splitlines()
        errors.append({told["layer"]: told["relative_error"] for told in map(json.loads, lines)})
    ratios = [errors[1][name] / error for name, error in errors[0].items()]
    return {
        "same_codes_first": min(first),
        "same_codes": statistics.mean(shares.values()),
        "error_ratio_mean": sum(errors[1].values()) / sum(errors[0].values()),
        "error_ratio_least": min(ratios),
        "error_ratio_most": max(ratios),
    }
