"""Search the tiles of the fused linear: which shape of programs is fastest, for each format, number of rows, and shape.

    python scripts/tune_gpu.py --formats gguf:q5_0 gguf:q5_1 --rows 1 16 --out tiles.json

Every candidate is compiled first, on all cores, into Triton's cache; then they are timed one by one. Beside the fastest
one stands what :func:`qformats.kernels.tiles.choose_tiles` takes: it is the place for what is found here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch

# The benchmark's own folder.
from bench_gpu import KINDS, SHAPES, copy_bandwidth, seconds, weight_of, weights_of

from qformats.kernels import launch
from qformats.kernels.form import PLANES
from qformats.kernels.tiles import Tiles, choose_tiles, programs, steps_of
from qformats.kernels.triton_decode import quads_of_step


def candidates(count: int, form: Any, wide: bool) -> list[Tiles]:
    """Tiles to try for a weight and so many rows of activations."""
    batch = next(size for size in (8, 16, 32, 64) if count <= size or size == 64)
    device = torch.device("cuda")
    together = quads_of_step(form.bits)
    steps = steps_of(form)
    found = {choose_tiles(count, form, device)}
    rows = (32, 64, 128) if batch < 64 else (64, 128)
    warps = (1, 2, 4) if batch < 32 else (4, 8)
    stages = (2, 3, 4) if len(PLANES[form.bits]) == 1 or wide else (2, 3)
    for height, width, depth in itertools.product(rows, warps, stages):
        if height // width < 16 or height // width > 64:
            continue
        tiles = -(-form.rows // height) * -(-count // batch)
        for waves in (1, 2, 4, 8):
            split = round(waves * programs(device) / 2 / tiles)
            split = max(1, min(split, 8 if batch < 64 else 4, steps * together // 4))
            found.add(Tiles(height, batch, split, depth, width))
    return sorted(found)


def cases(arguments: argparse.Namespace) -> list[tuple[str, int, int, int]]:
    shapes = [SHAPES[place] for place in arguments.shapes]
    return [
        (kind, count, *shape) for kind in arguments.formats for count in arguments.rows for shape in shapes
    ]


def compile_share(arguments: argparse.Namespace) -> None:
    """Compile every candidate of this process's share."""
    number, of = arguments.share
    place = 0
    for kind, count, rows, columns in cases(arguments):
        weight = None
        x = torch.randn(count, columns, device="cuda", dtype=torch.float16)
        form = weight_of(kind, 128, columns).form._replace(rows=rows)
        for tiles in candidates(count, form, arguments.wide):
            place += 1
            if place % of != number:
                continue
            if weight is None:
                weight = weight_of(kind, rows, columns)
            launch.linear(x, weight, None, tiles)
        torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--formats", nargs="*", default=list(KINDS)[:7], choices=list(KINDS), metavar="FORMAT"
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--shapes", type=int, nargs="*", default=[0, 1, 3], help=f"of {SHAPES}")
    parser.add_argument(
        "--wide", action="store_true", help="more loads in flight for codes of two planes, too"
    )
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    parser.add_argument("--out", help="a file for all times, as JSON")
    parser.add_argument("--share", type=int, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.share:
        compile_share(arguments)
        return 0
    start = time.perf_counter()
    own = [sys.executable, *sys.argv]
    shares = [
        subprocess.Popen([*own, "--share", str(number), str(arguments.processes)])
        for number in range(arguments.processes)
    ]
    for share in shares:
        share.wait()
    print(
        f"compiled in {time.perf_counter() - start:.0f} s; copy {copy_bandwidth() / 1e12:.2f} TB/s",
        flush=True,
    )
    results = []
    for kind, count, rows, columns in cases(arguments):
        x = torch.randn(count, columns, device="cuda", dtype=torch.float16)
        dense = [torch.randn(rows, columns, device="cuda", dtype=torch.float16) for _ in range(3)]
        plain = seconds([partial(torch.nn.functional.linear, x, each) for each in dense], 3)
        del dense
        weights = weights_of(kind, rows, columns)
        chosen = choose_tiles(count, weights[0].form, x.device)
        times = {}
        for tiles in candidates(count, weights[0].form, arguments.wide):
            times[tiles] = seconds([partial(launch.linear, x, each, None, tiles) for each in weights], 3)
        ranked = sorted(times, key=lambda tiles: times[tiles])
        best = ranked[0]
        told = ", ".join(f"{tuple(tiles)} {times[tiles] * 1e6:.1f}" for tiles in ranked[:4])
        print(f"{kind} m={count} {rows}x{columns}: cuBLAS {plain * 1e6:.1f}, chosen {tuple(chosen)} "
              f"{times[chosen] * 1e6:.1f} us {plain / times[chosen]:.2f}x, best {plain / times[best]:.2f}x; {told}",
              flush=True)  # fmt: skip
        results.append(
            [kind, count, rows, columns, plain, [[*tiles, spent] for tiles, spent in times.items()]]
        )
        del weights
    if arguments.out:
        with open(arguments.out, "w") as file:
            json.dump(results, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
