#!/usr/bin/env python3
"""Time what a user calls, beside gguf-py, in one run, on one thread: quantize and pack, unpack, dequantize.

All speeds are GB/s of float32, i.e. 4 bytes per weight, whatever the type of the weight. Both programs take turns; the
speed is that of the fastest round, the ratio the median of the ratios of neighbouring rounds: other load on the machine
hits both alike. Both allocate what they return, except in the column "into", where ``dequantize(out=)`` writes into
memory that is there already. gguf-py has no canonical form: its dequantize is what unpack is compared with.

The bytes and the values are compared before anything is timed. Needs the package and gguf.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

Run = Callable[[], object]


def seconds(run: Run) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def contenders(name: str, weight) -> tuple[dict[str, Run], dict[str, Run]]:
    """gguf-py and qformats for one type, by operation: to bytes, and back."""
    import gguf
    import torch

    import qformats

    kind, format = gguf.GGMLQuantizationType[name.upper()], f"gguf:{name}"
    source = weight.view(torch.uint16).numpy() if weight.dtype == torch.bfloat16 else weight.numpy()

    def widened():
        # numpy has no bfloat16: gguf-py's own scripts widen it with torch.
        return weight.float().numpy() if weight.dtype == torch.bfloat16 else source

    def encode():
        return qformats.pack(qformats.quantize(weight, format), format)

    expected, packed = gguf.quants.quantize(widened(), kind), encode()
    values = torch.from_numpy(gguf.quants.dequantize(expected, kind))
    if packed.fields["blocks"].numpy().tobytes() != expected.tobytes():
        sys.exit(f"{name}: bytes differ from gguf-py's")
    if not torch.equal(qformats.dequantize(packed), values):
        sys.exit(f"{name}: values differ from gguf-py's")
    out = torch.empty_like(values)
    return (
        {"gguf-py": lambda: gguf.quants.quantize(widened(), kind), "quantize and pack": encode},
        {
            "gguf-py": lambda: gguf.quants.dequantize(expected, kind),
            "unpack": lambda: qformats.unpack(packed),
            "dequantize": lambda: qformats.dequantize(packed),
            "into": lambda: qformats.dequantize(packed, out=out),
        },
    )


def measured(runs: dict[str, Run], rounds: int, gigabytes: float) -> list[str]:
    """Speed of gguf-py, then speed and ratio of each of the others."""
    for run in runs.values():
        run()
    found = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds(run))
    first, *others = found
    cells = [f"{gigabytes / min(found[first]):.2f}"]
    for name in others:
        ratio = statistics.median(a / b for a, b in zip(found[first], found[name], strict=True))
        cells += [f"{gigabytes / min(found[name]):.2f}", f"{ratio:.1f}"]
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="4096x4096,4096x14336", help="comma-separated")
    parser.add_argument("--types", default="q4_0,q4_1,q5_0,q5_1,q8_0", help="comma-separated")
    parser.add_argument("--dtypes", default="f32,f16,bf16", help="of the weights, comma-separated")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    # Before torch is imported: its compiled code takes its threads from here.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from rich.console import Console
    from rich.table import Table

    torch.set_num_threads(1)
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    for shape in arguments.shapes.split(","):
        rows, columns = map(int, shape.split("x"))
        weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 0.02
        gigabytes = weight.numel() * 4 / 1e9
        encoding = Table(title=f"{rows} x {columns}, quantize and pack, GB/s of float32, one thread")
        decoding = Table(title=f"{rows} x {columns}, unpack and dequantize, GB/s of float32, one thread")
        for heading in ("type", "of", "gguf-py", "qformats", "times"):
            encoding.add_column(heading, justify="right")
        for heading in ("type", "gguf-py", "unpack", "times", "dequantize", "times", "into", "times"):
            decoding.add_column(heading, justify="right")
        for name in arguments.types.split(","):
            for number, dtype in enumerate(arguments.dtypes.split(",")):
                encode, decode = contenders(name, weight.to(dtypes[dtype]))
                encoding.add_row(name, dtype, *measured(encode, arguments.rounds, gigabytes))
                # The bytes know nothing of the dtype that they were made from.
                if not number:
                    decoding.add_row(name, *measured(decode, arguments.rounds, gigabytes))
        for table in (encoding, decoding):
            Console().print(table)


if __name__ == "__main__":
    main()
