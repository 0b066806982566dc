#!/usr/bin/env python3
"""Time every processor kernel, a plain loop, beside the same kernel in hand-written vector IR, which once was here.

One thread. The IR is that of the last revision that had it, taken from git. The two revisions run in two processes,
which take turns, call by call; the best time of each counts. All speeds are GB/s of float32, i.e. 4 bytes per weight,
whatever the kernel reads or writes, into memory that is there already. Results are compared byte by byte (by their
hashes). Caches of compiled code are empty at the start: what the first call on a few rows takes is compiling, and
nothing where a kernel before it has compiled the same code.
"""

import argparse
import hashlib
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

LAST_IN_IR = "1d57a1d"
MODULES = {
    "cpu": "qformats.kernels.cpu",
    "gguf": "qformats_gguf.kernels",
    "recode": "qformats_gguf.recode",
    "glm": "qformats_glm.kernels",
    "gptq": "qformats_gptq.kernels",
    "bnb": "qformats_bitsandbytes.kernels",
}
"""Where this revision has its kernels."""
IR_MODULES = dict(MODULES)
"""Where the other revision has them."""
DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


def _weights(shape, dtype):
    """Weights of a model: normal, one row of them large, one of them tiny."""
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    values[0] *= 1000
    values[-1] *= 1e-9
    if dtype == "bf16":
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(DTYPES[dtype])


def _bytes(*shape):
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def _scales(*shape):
    return np.random.default_rng(2).uniform(1e-4, 1e-2, shape).astype(np.float32)


def cases(modules, rows, columns):
    """By name: a function that makes the arrays, and gives the call to time and what it writes."""
    cpu, gguf, recode, glm, gptq, bnb = (
        importlib.import_module(modules[name]) for name in ("cpu", "gguf", "recode", "glm", "gptq", "bnb")
    )
    shape, found = (rows, columns), {}

    def add(name, prepare, *arguments):
        found[name] = lambda: prepare(*arguments)

    def cast(source, target):
        values, out = _weights(shape, source), np.empty(shape, DTYPES[target])
        return lambda: cpu.cast(values, out), [out]

    def count(source):
        values = _weights(shape, source)
        return lambda: cpu.count_nonfinite(values), []

    for source, target in itertools.permutations(DTYPES, 2):
        add(f"cast {source} to {target}", cast, source, target)
    for source in DTYPES:
        add(f"count_nonfinite {source}", count, source)

    def gguf_quantize(kind, source):
        values = _weights(shape, source)
        out = np.empty((rows, columns // 32 * gguf.TYPES[kind]), np.uint8)
        return lambda: gguf.quantize(kind, values, out), [out]

    def gguf_dequantize(kind, target):
        run, [blocks] = gguf_quantize(kind, "f32")
        run()
        out = np.empty(shape, DTYPES[target])
        return lambda: gguf.dequantize(kind, blocks, out), [out]

    def gguf_recode(kind, packing):
        layout = gguf.LAYOUTS[kind]
        codes = _bytes(*shape) & np.uint8((1 << layout.bits) - 1)
        scale = _bytes(rows, columns // 16).view(np.uint16)
        minimum = scale[::-1].copy() if layout.minimum else None
        blocks = np.empty((rows, columns // 32 * layout.size), np.uint8)
        run = lambda: recode.pack(kind, codes, scale, minimum, blocks)  # noqa: E731
        if packing:
            return run, [blocks]
        run()
        others = [
            np.empty_like(codes),
            np.empty_like(scale),
            np.empty_like(scale) if layout.minimum else None,
        ]
        return lambda: recode.unpack(kind, blocks, *others), [part for part in others if part is not None]

    for kind in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0"):
        for dtype in DTYPES:
            add(f"gguf quantize {kind} of {dtype}", gguf_quantize, kind, dtype)
        for dtype in DTYPES:
            add(f"gguf dequantize {kind} to {dtype}", gguf_dequantize, kind, dtype)
        add(f"gguf pack {kind}", gguf_recode, kind, True)
        add(f"gguf unpack {kind}", gguf_recode, kind, False)

    def glm_quantize(bits, source):
        values, packed = _weights(shape, source), np.empty((rows, columns * bits // 8), np.int8)
        scales = np.empty(rows, np.float16)
        return lambda: glm.quantize(bits, values, packed, scales), [packed, scales]

    def glm_dequantize(bits, target):
        packed, out = _bytes(rows, columns * bits // 8).view(np.int8), np.empty(shape, DTYPES[target])
        scales = _scales(rows)
        return lambda: glm.dequantize(bits, packed, scales, out), [out]

    def glm_pack():
        codes, packed = _bytes(*shape) & np.uint8(15), np.empty((rows, columns // 2), np.int8)
        return lambda: glm.pack(codes, packed), [packed]

    def glm_unpack():
        packed, codes = _bytes(rows, columns // 2).view(np.int8), np.empty(shape, np.uint8)
        return lambda: glm.unpack(packed, codes), [codes]

    for bits, dtype in itertools.product((4, 8), DTYPES):
        add(f"glm quantize {bits} bits of {dtype}", glm_quantize, bits, dtype)
    for bits, dtype in itertools.product((4, 8), DTYPES):
        add(f"glm dequantize {bits} bits to {dtype}", glm_dequantize, bits, dtype)
    add("glm pack 4 bits", glm_pack)
    add("glm unpack 4 bits", glm_unpack)

    def gptq_quantize(bits, symmetric, source):
        values, codes = _weights(shape, source), np.empty(shape, np.uint8)
        scale = np.empty((rows, -(-columns // 128)), np.float16)
        zero = None if symmetric else np.empty(scale.shape, np.uint8)
        outputs = [codes, scale] if symmetric else [codes, scale, zero]
        return lambda: gptq.quantize(bits, values, 128, codes, scale, zero), outputs

    def gptq_pack(bits):
        codes = _bytes(*shape) & np.uint8((1 << bits) - 1)
        words = np.empty((columns * bits // 32, rows), np.int32)
        return lambda: gptq.pack(bits, codes, words), [words]

    def gptq_unpack(bits):
        words, codes = _bytes(columns * bits // 32, 4 * rows).view(np.int32), np.empty(shape, np.uint8)
        return lambda: gptq.unpack(bits, words, codes), [codes]

    def gptq_dequantize(bits):
        words, out = _bytes(columns * bits // 32, 4 * rows).view(np.int32), np.empty(shape, np.float32)
        scale = _scales(rows, -(-columns // 128))
        zero = np.round(scale * 300)
        return lambda: gptq.dequantize(bits, words, scale, zero, 128, out), [out]

    for bits, symmetric, dtype in itertools.product((2, 3, 4, 8), (True, False), DTYPES):
        kind = "symmetric" if symmetric else "asymmetric"
        add(f"gptq quantize {bits} bits {kind} of {dtype}", gptq_quantize, bits, symmetric, dtype)
    for bits in (2, 3, 4, 8):
        add(f"gptq pack {bits} bits", gptq_pack, bits)
        add(f"gptq unpack {bits} bits", gptq_unpack, bits)
        add(f"gptq dequantize {bits} bits", gptq_dequantize, bits)

    def bnb_quantize(kind, source):
        values = _weights(shape, source).reshape(-1)
        packed, absmax = np.empty(values.size // 2, np.uint8), np.empty(values.size // 64, np.float32)
        return lambda: bnb.quantize_4bit(kind, values, packed, absmax, 64), [packed, absmax]

    def bnb_dequantize(kind, target):
        packed, absmax = _bytes(rows * columns // 2), _scales(rows * columns // 64)
        out = np.empty(rows * columns, DTYPES[target])
        return lambda: bnb.dequantize_4bit(kind, packed, absmax, out, 64), [out]

    def int8_quantize(source):
        values, codes, absmax = _weights(shape, source), np.empty(shape, np.int8), np.empty(rows, np.float32)
        return lambda: bnb.quantize_int8(values, codes, absmax), [codes, absmax]

    def int8_dequantize(target):
        codes, scale, out = _bytes(*shape).view(np.int8), _scales(rows), np.empty(shape, DTYPES[target])
        return lambda: bnb.dequantize_int8(codes, scale, out), [out]

    def bnb_pack():
        codes, packed = _bytes(rows * columns) & np.uint8(15), np.empty(rows * columns // 2, np.uint8)
        return lambda: bnb.pack_codes(codes, packed, 0), [packed]

    def bnb_unpack():
        packed, codes = _bytes(rows * columns // 2), np.empty(rows * columns, np.uint8)
        return lambda: bnb.unpack_codes(packed, codes), [codes]

    for kind, dtype in itertools.product(("nf4", "fp4"), DTYPES):
        add(f"bnb quantize {kind} of {dtype}", bnb_quantize, kind, dtype)
        add(f"bnb dequantize {kind} to {dtype}", bnb_dequantize, kind, dtype)
    for dtype in DTYPES:
        add(f"bnb quantize int8 of {dtype}", int8_quantize, dtype)
        add(f"bnb dequantize int8 to {dtype}", int8_dequantize, dtype)
    add("bnb pack 4 bits", bnb_pack)
    add("bnb unpack 4 bits", bnb_unpack)
    return found


def _digest(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()


def serve(rows, columns, modules):
    """Answer requests, a line each: a name makes a case ready, an empty line runs it."""
    small, large = cases(modules, 64, columns), cases(modules, rows, columns)
    print(json.dumps(list(large)), flush=True)
    run = None
    for line in sys.stdin:
        name = line.strip()
        if not name:
            start = time.perf_counter()
            run()
            print(time.perf_counter() - start, flush=True)
            continue
        run, _ = small[name]()
        start = time.perf_counter()
        run()
        cold = time.perf_counter() - start
        run, outputs = large[name]()
        result = run()
        print(json.dumps([cold, [_digest(outputs), repr(result)]]), flush=True)


class Worker:
    """One revision in a process of its own."""

    def __init__(self, tree, cache, arguments, modules):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tree), str(tree / "plugins")]),
            "NUMBA_CACHE_DIR": str(cache),
            "OMP_NUM_THREADS": "1",
        }
        size = ["--rows", str(arguments.rows), "--columns", str(arguments.columns)]
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(modules), *size],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.names = self.answer()

    def answer(self):
        """Read what the worker says."""
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a worker has stopped")
        return json.loads(line)

    def ask(self, name=""):
        """Make a case ready, or run it."""
        print(name, file=self.process.stdin, flush=True)
        return self.answer()


def _tree(revision, folder):
    """Folder of another revision: a path, or one of git."""
    if Path(revision).is_dir():
        return Path(revision).resolve()
    archive = folder / "ir.tar"
    root = Path(__file__).resolve().parents[1]
    subprocess.run(["git", "-C", root, "archive", "-o", archive, revision], check=True)
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "ir", filter="data")
    return folder / "ir"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ir", default=LAST_IN_IR, help="the other revision, or a folder with its files")
    parser.add_argument("--only", default="", help="regular expression that names of kernels match")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.rows, arguments.columns, json.loads(arguments.serve))
        return
    gigabytes = arguments.rows * arguments.columns * 4 / 1e9
    title = f"{arguments.rows} x {arguments.columns}, one thread, GB/s of float32, best of {arguments.rounds}"
    table = Table(title=title)
    for heading in ("kernel", "IR", "plain", "IR / plain", "first call, s: IR", "plain", "bytes"):
        table.add_column(heading, justify="left" if heading == "kernel" else "right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workers = (
            Worker(_tree(arguments.ir, folder), folder / "cache of IR", arguments, IR_MODULES),
            Worker(Path(__file__).resolve().parents[1], folder / "cache", arguments, MODULES),
        )
        cold = [0.0, 0.0]
        different = []
        for kernel in workers[1].names:
            if not re.search(arguments.only, kernel):
                continue
            first, results = zip(*(worker.ask(kernel) for worker in workers), strict=True)
            rounds = [[worker.ask() for worker in workers] for _ in range(arguments.rounds)]
            ir, plain = (min(column) for column in zip(*rounds, strict=True))
            same = results[0] == results[1]
            different += [] if same else [kernel]
            cold = [total + seconds for total, seconds in zip(cold, first, strict=True)]
            speeds = f"{gigabytes / ir:.2f}", f"{gigabytes / plain:.2f}", f"{plain / ir:.2f}"
            table.add_row(kernel, *speeds, *(f"{x:.2f}" for x in first), "equal" if same else "DIFFERENT")
        for worker in workers:
            worker.process.stdin.close()
            worker.process.wait()
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table)
    console.print(f"First calls together: {cold[0]:.1f} s and {cold[1]:.1f} s.")
    if different:
        sys.exit(f"different results: {', '.join(different)}")


if __name__ == "__main__":
    main()
