#!/usr/bin/env python3
"""Time quantizing to K-quants, iq4_nl and iq4_xs beside ggml's C code, in one run, on one thread.

Speeds are GB/s of float32. Both take turns; the speed is that of the fastest round, the ratio the median of the ratios
of neighbouring rounds. Processor time is measured, not the clock's: other load on the machine hits both alike. Bytes
are compared before anything is timed. ``ggml`` is the library that libggml-python ships. The column ``search`` times
the kernel alone, to codes and scales in memory that is there already; ``to bytes`` is what exports call.

Run from the repository, with ``tests`` and ``plugins`` on PYTHONPATH. Needs what the tests need.
"""

import argparse
import os
import statistics
import sys
import time


def seconds(run):
    start = time.thread_time()
    run()
    return time.thread_time() - start


def kernel_of(name, weight, importance):
    """Call of the search alone."""
    import numpy as np

    from qformats_gguf.superblocks.layout import LAYOUTS
    from qformats_gguf.superblocks.search import search

    kind = LAYOUTS[name]
    source = weight.numpy().reshape(-1, kind.block)
    given = None if importance is None else importance.numpy().reshape(1, -1, kind.block)
    codes, halves = np.empty(source.shape, np.uint8), np.empty((len(source), 1 + kind.minimum), np.uint16)
    scales, minima = (np.empty((len(source), kind.scales), np.int8) for _ in range(2))
    return lambda: search(kind, source, given, codes, halves, scales, minima)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default="q2_k,q3_k,q4_k,q5_k,q6_k,iq4_nl,iq4_xs", help="comma-separated")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    # Before torch is imported: its compiled code takes its threads from here.
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from oracles import ggml
    from rich.console import Console
    from rich.table import Table

    import qformats

    torch.set_num_threads(1)
    shape = (arguments.rows, arguments.columns)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * 0.02
    importance = torch.randn(shape[1], generator=generator).square()
    gigabytes = weight.numel() * 4 / 1e9
    table = Table(title=f"{shape[0]} x {shape[1]}, one thread, GB/s of float32, best of {arguments.rounds}")
    for heading in ("type", "importances", "ggml", "search", "times", "to bytes", "times"):
        table.add_column(heading, justify="right")
    for name in arguments.types.split(","):
        packer = qformats.packer(f"gguf:{name}")
        for given in (None, importance):
            weights = None if given is None else given.numpy()

            def ours(packer=packer, given=given):
                if given is None:
                    return packer.encode_reference(weight)
                return packer.pack(packer.grid.quantize(weight, given))

            def theirs(name=name, weights=weights):
                return ggml.quantize(name, weight.numpy(), weights)

            if ours().fields["blocks"].numpy().tobytes() != theirs().tobytes():
                sys.exit(f"{name}: bytes differ from ggml's")
            runs = (theirs, kernel_of(name, weight, given), ours)
            rounds = [[seconds(run) for run in runs] for _ in range(arguments.rounds)]
            cells = [f"{gigabytes / min(each[0] for each in rounds):.3f}"]
            for place in (1, 2):
                ratio = statistics.median(each[0] / each[place] for each in rounds)
                cells += [f"{gigabytes / min(each[place] for each in rounds):.3f}", f"{ratio:.1f}"]
            table.add_row(name, "no" if given is None else "yes", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
