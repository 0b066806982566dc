#!/usr/bin/env python3
"""What bounds an export on many cores: storage, kernels, or the export itself; and the same on a GPU.

    python scripts/bench_export_cores.py MODEL WORK                       q4_0 on all cores
    python scripts/bench_export_cores.py MODEL WORK --devices cpu cuda --formats gguf:q4_0 gguf:q4_k

MODEL is a dense folder, WORK a folder for the outputs. Storage: as many threads as cores read every byte of the model
once, and write and sync as many as the output has into one file. Kernels: as many threads round and pack slices of
random weights that are in memory, as many as the model has. Each is measured twice, and the faster time counts: the
model lies in the page cache then.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import qformats
from qformats.exporting.fill import SLICE_WEIGHTS
from qformats.work.progress import Silent

COLUMNS = 4096
PIECE = 8 << 20


class Steps(Silent):
    """Notes when each step begins."""

    def __init__(self) -> None:
        self.began: list[tuple[float, str]] = []

    def start(self, task: str, total: int) -> None:
        """Note a step."""
        self.began.append((time.perf_counter(), task))

    def __str__(self) -> str:
        ends = [each[0] for each in self.began[1:]] + [time.perf_counter()]
        steps = zip(self.began, ends, strict=True)
        return ", ".join(f"{title} {end - start:.2f}" for (start, title), end in steps)


def best(run: Callable[[], object]) -> float:
    """Seconds, the better of two."""
    found = []
    for _ in range(2):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def storage(model: Path, target: Path, nbytes: int, workers: int) -> None:
    """Read and write as many bytes as the export does."""
    pieces = [
        (path, start)
        for path in sorted(model.glob("*.safetensors"))
        for start in range(0, path.stat().st_size, PIECE)
    ]
    # Handles are shared: opening is not what is measured.
    handles = {path: os.open(path, os.O_RDONLY) for path, _ in pieces}
    buffers = [bytearray(PIECE) for _ in range(workers)]
    out = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.posix_fallocate(out, 0, nbytes)

    def work(number: int) -> None:
        for path, start in pieces[number::workers]:
            os.preadv(handles[path], [buffers[number]], start)
        for start in range(number * PIECE, nbytes, workers * PIECE):
            os.pwrite(out, memoryview(buffers[number])[: min(PIECE, nbytes - start)], start)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(workers)))
    os.fsync(out)
    for handle in (*handles.values(), out):
        os.close(handle)
    target.unlink()


def kernels(format: str, weights: int, workers: int) -> None:
    """Round and pack as many weights as the model has."""
    packer = qformats.packer(format)
    slices = [torch.randn(SLICE_WEIGHTS // COLUMNS, COLUMNS).bfloat16() for _ in range(workers)]
    torch.set_num_threads(1)
    with ThreadPoolExecutor(workers) as pool:
        list(
            pool.map(
                lambda number: packer.encode_reference(slices[number % workers]),
                range(weights // SLICE_WEIGHTS),
            )
        )


def main() -> None:
    """Print a line for each format and device."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--formats", nargs="+", default=["gguf:q4_0"])
    parser.add_argument("--devices", nargs="+", default=["cpu"])
    arguments = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    source = qformats.open(arguments.model)
    weights = sum(tensor.numel for tensor in source.tensors.values())
    arguments.work.mkdir(parents=True, exist_ok=True)
    print(f"{weights / 1e9:.2f} G weights, {workers} cores, torch {torch.__version__}")
    for format in arguments.formats:
        suffix = ".gguf" if format.startswith("gguf") else ""
        target = arguments.work / f"out{suffix}"
        bound = 0.0
        for device in arguments.devices:
            options = {"quantizer": "rtn", "quantizer_options": {"device": device}}
            qformats.export("demo", arguments.work / f"warm{suffix}", format=format, force=True, **options)
            told: list[tuple[float, str]] = []
            nbytes = 0
            for _ in range(2):
                steps = Steps()
                report = qformats.export(
                    arguments.model, target, format=format, force=True, progress=steps, **options
                )
                told.append((report.seconds, str(steps)))
                nbytes = report.file_nbytes
            seconds, steps_told = min(told)
            if not bound:
                plain = best(lambda n=nbytes: storage(arguments.model, arguments.work / "plain", n, workers))
                work = best(lambda f=format: kernels(f, weights, workers))
                bound = max(plain, work)
                print(f"{format}: storage {plain:.2f} s, kernels {work:.2f} s")
            print(
                f"{format} on {device}: export {seconds:.2f} s, "
                f"{100 * bound / seconds:.0f} % of the slower ({steps_told})",
                flush=True,
            )


if __name__ == "__main__":
    main()
