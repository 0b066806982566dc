#!/usr/bin/env python3
"""Time the processor kernels of the bitsandbytes formats beside bitsandbytes itself, in one run, on one thread.

All speeds are GB/s of float32, i.e. 4 bytes per weight. The two programs take turns, and the ratio is the median of
the ratios of neighbouring runs: other load on the machine hits both alike. bitsandbytes allocates its outputs, so
qformats does too, except in the last column.

Needs the package and its extra ``oracles``.
"""

import argparse
import importlib.metadata
import logging
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

Run = Callable[[], object]


def seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def contenders(rows: int, columns: int) -> dict[str, tuple[Run, Run, Run]]:
    """By operation: bitsandbytes, qformats, and qformats into memory that is there already."""
    import torch
    from bitsandbytes import functional

    from qformats_bitsandbytes import kernels, nested

    torch.set_num_threads(1)
    weights = np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32) * np.float32(0.02)
    flat, dense = weights.reshape(-1), torch.from_numpy(weights)
    half = dense.half()
    count, blocks = flat.size, flat.size // 64
    values = np.empty(count, np.float32)

    def codes():
        return np.empty(count // 2, np.uint8), np.empty(blocks, np.float32)

    found = {}
    for kind in ("nf4", "fp4"):
        packed, absmax = codes()
        kernels.quantize_4bit(kind, flat, packed, absmax, 64)
        stored, state = functional.quantize_4bit(dense, quant_type=kind)
        double = functional.quantize_4bit(dense, quant_type=kind, compress_statistics=True)
        scales = nested.double_quantize(torch.from_numpy(absmax))

        def decode(out, absmax, kind=kind, packed=packed):
            kernels.dequantize_4bit(kind, packed, absmax, out, 64)

        found[f"quantize {kind}"] = (
            lambda kind=kind: functional.quantize_4bit(dense, quant_type=kind),
            lambda kind=kind: kernels.quantize_4bit(kind, flat, *codes(), 64),
            lambda kind=kind, to=(packed, absmax): kernels.quantize_4bit(kind, flat, *to, 64),
        )
        found[f"dequantize {kind}"] = (
            lambda stored=stored, state=state: functional.dequantize_4bit(stored, state),
            lambda decode=decode, absmax=absmax: decode(np.empty(count, np.float32), absmax),
            lambda decode=decode, absmax=absmax: decode(values, absmax),
        )
        found[f"dequantize {kind}-dq"] = (
            lambda double=double: functional.dequantize_4bit(*double),
            lambda decode=decode, s=scales: decode(np.empty(count, np.float32), s.decode().numpy()),
            lambda decode=decode, s=scales: decode(values, s.decode().numpy()),
        )
    rows_codes, maxima = np.empty(weights.shape, np.int8), np.empty(rows, np.float32)
    found["quantize int8 (of float16)"] = (
        lambda: functional.int8_vectorwise_quant(half),
        lambda: kernels.quantize_int8(
            half.numpy(), np.empty(weights.shape, np.int8), np.empty(rows, np.float32)
        ),
        lambda: kernels.quantize_int8(half.numpy(), rows_codes, maxima),
    )
    kernels.quantize_int8(half.numpy(), rows_codes, maxima)
    steps, matrix = maxima / np.float32(127), values.reshape(weights.shape)
    stored_rows, stored_maxima = torch.from_numpy(rows_codes), torch.from_numpy(maxima)
    found["dequantize int8"] = (
        lambda: functional.int8_vectorwise_dequant(stored_rows, stored_maxima),
        lambda: kernels.dequantize_int8(rows_codes, steps, np.empty(weights.shape, np.float32)),
        lambda: kernels.dequantize_int8(rows_codes, steps, matrix),
    )
    found["copy"] = (dense.clone, weights.copy, lambda: np.copyto(matrix, weights))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = (
        "1"  # Before torch is imported: its compiled code takes its threads from here.
    )
    logging.disable(logging.WARNING)
    gigabytes = arguments.rows * arguments.columns * 4 / 1e9
    version = importlib.metadata.version("bitsandbytes")
    table = Table(title=f"{arguments.rows} x {arguments.columns}, one thread, GB/s of float32, medians")
    for heading in ("", f"bitsandbytes {version}", "qformats", "times", "into given memory"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, runs in contenders(arguments.rows, arguments.columns).items():
        for run in runs:
            run()
        rounds = [[seconds(run) for run in runs] for _ in range(arguments.rounds)]
        theirs, ours, given = (gigabytes / statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(a / b for a, b, _ in rounds)
        table.add_row(name, f"{theirs:.2f}", f"{ours:.2f}", f"{ratio:.1f}", f"{given:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
