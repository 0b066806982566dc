"""Compare products of packed weights with one vector on a CPU: the kernel, decoding first, and the dense weight.

Each figure is billions of weights a second, on as many threads as torch has, from the median of several runs that
alternate between the ways. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import qformats
from qformats.runtime.linear import QuantLinear
from qformats.runtime.pieces import multiplied
from qformats.runtime.products import product

FORMATS = [f"gguf:{name}" for name in "q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k".split()]


def seconds(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median of each way."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 3):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            # The first runs compile, and fill caches.
            if number >= 3:
                found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", nargs="+", default=FORMATS)
    parser.add_argument("--shapes", nargs="+", default=["1536x768", "4096x4096"], help="rows x columns")
    parser.add_argument("--vectors", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    asked = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {asked.vectors} vectors")
    print(f"{'format':<24}{'shape':>12}{'kernel':>10}{'decoding':>10}{'dense':>10}")
    for shape in asked.shapes:
        rows, columns = map(int, shape.split("x"))
        weight, x = torch.randn(rows, columns), torch.randn(asked.vectors, columns)
        for format in asked.formats:
            packed = qformats.pack(qformats.quantize(weight, format), format)
            layer, dense = QuantLinear.from_packed(packed), packed.dequantize()
            with torch.inference_mode():
                ways = {
                    "kernel": lambda layer=layer, x=x: product(x, layer),
                    "decoding": lambda packed=packed, x=x: multiplied(x, packed),
                    "dense": lambda dense=dense, x=x: torch.nn.functional.linear(x, dense),
                }
                times = seconds(ways, asked.repeats)
            speeds = "".join(
                f"{rows * columns * asked.vectors / each / 1e9:>10.2f}" for each in times.values()
            )
            print(f"{format:<24}{shape:>12}{speeds}")


if __name__ == "__main__":
    main()
