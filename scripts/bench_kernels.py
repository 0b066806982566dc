#!/usr/bin/env python3
"""Time the processor kernels of GGUF's block types beside gguf-py and ggml's C code, in one run.

All speeds are GB/s of float32, i.e. 4 bytes per weight, whatever the input or output type is. Contenders take
turns, round by round, and the best round of each counts: other load on the machine hits all of them alike.
Outputs of qformats and ggml are allocated before; gguf-py allocates its own.

Needs the package and its extra ``oracles`` (for libggml-python).
"""

import argparse
import ctypes
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

Timed = dict[str, Callable[[], object]]


def ggml_library():
    """Load libggml-base from its wheel without importing the wheel's Python package."""
    spec = importlib.util.find_spec("libggml")
    if spec is None or spec.origin is None:
        sys.exit("libggml-python is not installed: pip install libggml-python==0.20.2.post1")
    library = ctypes.CDLL(str(Path(spec.origin).parent / "lib64" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    )
    return library


def best_seconds(contenders: Timed, rounds: int) -> dict[str, float]:
    """Run every contender once a round, in turn; give the shortest time of each, in seconds."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def threaded(function, name, source, target, threads):
    """Build a run of `function` over slices of rows in a pool."""
    rows = len(source)
    step = max(1, min(64, rows // (4 * threads)))
    slices = [slice(start, start + step) for start in range(0, rows, step)]
    pool = ThreadPoolExecutor(threads)

    def run():
        for _ in pool.map(lambda rows: function(name, source[rows], target[rows]), slices):
            pass

    return run


def measure(name, weights, rounds, thread_counts, library):
    """Time one type; give cold-start seconds, and the best seconds of each contender for both directions."""
    import gguf

    from qformats.kernels import cpu
    from qformats_gguf import blocks, kernels

    kind = gguf.GGMLQuantizationType[name.upper()]
    rows, columns = weights.shape
    packed = np.empty((rows, columns // blocks.BLOCK * blocks.TYPES[name]), np.uint8)
    reference = np.empty_like(packed)
    values = np.empty_like(weights)
    bf16, f16 = np.empty(weights.shape, np.uint16), np.empty(weights.shape, np.float16)
    cpu.cast(weights, bf16)
    cpu.cast(weights, f16)
    decode = getattr(library, f"dequantize_row_{name}")
    decode.argtypes, decode.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64), None

    start = time.perf_counter()
    kernels.quantize(name, weights[:1], packed[:1])
    kernels.dequantize(name, packed[:1], values[:1])
    cold = time.perf_counter() - start

    def ggml_quantize():
        library.ggml_quantize_chunk(
            int(kind), weights.ctypes.data, reference.ctypes.data, 0, rows, columns, None
        )

    quantizers: Timed = {
        "gguf": lambda: gguf.quants.quantize(weights, kind),
        "ggml C": ggml_quantize,
        "1 thread": lambda: kernels.quantize(name, weights, packed),
        "bf16": lambda: kernels.quantize(name, bf16, packed),
        "f16": lambda: kernels.quantize(name, f16, packed),
    }
    for threads in thread_counts:
        quantizers[f"{threads} threads"] = threaded(kernels.quantize, name, weights, packed, threads)
    encoded = best_seconds(quantizers, rounds)
    kernels.quantize(name, weights, packed)
    if not np.array_equal(packed, reference):
        sys.exit(f"{name}: bytes differ from ggml's")

    decoders: Timed = {
        "gguf": lambda: gguf.quants.dequantize(packed, kind),
        "ggml C": lambda: decode(packed.ctypes.data, values.ctypes.data, values.size),
        "1 thread": lambda: kernels.dequantize(name, packed, values),
        "bf16": lambda: kernels.dequantize(name, packed, bf16),
        "f16": lambda: kernels.dequantize(name, packed, f16),
    }
    for threads in thread_counts:
        decoders[f"{threads} threads"] = threaded(kernels.dequantize, name, packed, values, threads)
    return cold, encoded, best_seconds(decoders, rounds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=11008)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--types", default="q4_0,q4_1,q5_0,q5_1,q8_0", help="comma-separated")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as empty_cache:
        os.environ["NUMBA_CACHE_DIR"] = (
            empty_cache  # Before numba is imported: every compilation is a cold one.
        )
        available = len(os.sched_getaffinity(0))
        thread_counts = sorted({2, available} - {1}) if available > 1 else []
        library = ggml_library()
        shape = (arguments.rows, arguments.columns)
        weights = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
        gigabytes = weights.nbytes / 1e9

        columns = ["gguf", "ggml C", "1 thread", "bf16", "f16", *[f"{n} threads" for n in thread_counts]]
        tables = []
        for title in ("quantize", "dequantize"):
            table = Table(title=f"{title} {shape[0]} x {shape[1]}, GB/s of float32")
            for heading in ("type", *columns, "x gguf", "x ggml C"):
                table.add_column(heading, justify="right")
            tables.append(table)
        compiled = []
        for name in arguments.types.split(","):
            cold, *results = measure(name, weights, arguments.rounds, thread_counts, library)
            compiled.append(f"{name} {cold:.2f}")
            for table, seconds in zip(tables, results, strict=True):
                ratios = [f"{seconds[other] / seconds['1 thread']:.1f}" for other in ("gguf", "ggml C")]
                table.add_row(name, *[f"{gigabytes / seconds[c]:.2f}" for c in columns], *ratios)

    console = Console()
    for table in tables:
        console.print(table)
    console.print("Ratios: 1 thread, float32. Columns bf16 and f16: 1 thread, that input (or output) type.")
    console.print(f"Compiling quantize and dequantize, seconds: {', '.join(compiled)}.")


if __name__ == "__main__":
    main()
