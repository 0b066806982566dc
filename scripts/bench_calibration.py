"""Time of a calibration by GPTQ on one GPU or several, of the shapes of Llama 3 8B with random weights.

    python scripts/bench_calibration.py FOLDER                                the whole model, 512 pieces of 2048 tokens
    python scripts/bench_calibration.py FOLDER --layers 4 --samples 64 --sequence-length 1024
    python scripts/bench_calibration.py FOLDER --devices cuda:0 cuda:0,cuda:1   on one, then on two

FOLDER is for the models (16 GB of weights, 5 GB quantized). Prints the time of the calibration, of a block, of the rest
of the export, and the most memory that torch took of the GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from bench_decode import make

import qformats
from qformats.work.progress import Silent


class Watch(Silent):
    """Notes when each step begins."""

    def __init__(self) -> None:
        self.began: list[tuple[float, str]] = []

    def start(self, task: str, total: int) -> None:
        """Note a step."""
        self.began.append((time.perf_counter(), task))

    def seconds(self, *beginnings: str) -> float:
        """Of all steps whose titles begin so."""
        ends = [each[0] for each in self.began[1:]] + [time.perf_counter()]
        return sum(
            end - start
            for (start, title), end in zip(self.began, ends, strict=True)
            if title.startswith(beginnings)
        )


def text(folder: Path, tokens: int) -> Path:
    """Random letters: a token each."""
    path = folder / f"letters-{tokens}.txt"
    if not path.exists():
        letters = torch.randint(97, 123, (tokens,), generator=torch.Generator().manual_seed(0))
        path.write_bytes(bytes(letters.tolist()))
    return path


def main() -> None:
    """Print a line for each choice of devices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--format", default="gptq:4bit-128g")
    parser.add_argument("--devices", nargs="+", default=["cuda"])
    arguments = parser.parse_args()
    source = make(arguments.folder, arguments.layers)
    tokens = arguments.samples * arguments.sequence_length
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Python {platform.python_version()}; "
        f"{arguments.layers} blocks, {arguments.samples} x {arguments.sequence_length} tokens",
        flush=True,
    )
    for device in arguments.devices:
        torch.cuda.reset_peak_memory_stats()
        watch = Watch()
        began = time.perf_counter()
        qformats.export(
            source,
            arguments.folder / "calibrated",
            format=arguments.format,
            quantizer="gptq",
            quantizer_options={
                "device": device,
                "samples": str(arguments.samples),
                "sequence-length": str(arguments.sequence_length),
                "calibration": str(text(arguments.folder, 2 * tokens)),
            },
            progress=watch,
            force=True,
        )
        blocks = watch.seconds("block ")
        found = {
            "device": device,
            "seconds": round(time.perf_counter() - began, 1),
            "blocks": round(blocks, 1),
            "per_block": round(blocks / arguments.layers, 2),
            "writing": round(watch.seconds("writing", "checksums", "checking what"), 1),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 1),
        }
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
