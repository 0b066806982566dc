"""Speed of the shared GPU kernels against a copy, cuBLAS and bitsandbytes, in one table.

    python scripts/bench_gpu.py                    everything, about three minutes
    python scripts/bench_gpu.py --only linear
    python scripts/bench_gpu.py --only crossing --rows 32 64 96 128 192 256
    python scripts/bench_gpu.py --only humming     beside Humming, where humming-kernels is installed

Times are medians of CUDA graph replays that rotate through more memory than the L2 cache holds, in microseconds a call.
Ratios are of one run: fractions of the bandwidth that a device-to-device copy reaches (bytes read and written), and
times faster than `torch.nn.functional.linear` on float16 weights (cuBLAS), or than bitsandbytes where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qformats.kernels import launch, ops
from qformats.kernels.device import arrange
from qformats.kernels.form import DeviceWeight
from qformats.numbers import E2M1, NestedScales, QuantizedTensor
from qformats.numbers.float8 import E4M3

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008), (28672, 8192)]
# fmt: off
NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]
# fmt: on
IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
# name: bits, group (0: a row), scale, mode; then columns of an outer scale, where scales are in two levels
KINDS: dict[str, tuple[int, int, torch.dtype, str] | tuple[int, int, torch.dtype, str, int]] = {
    "gptq:4bit-128g": (4, 128, torch.float16, "affine"),
    "gguf:q4_0": (4, 32, torch.float16, "affine"),
    "bitsandbytes:nf4": (4, 64, torch.float32, "table"),
    "gguf:q4_1": (4, 32, torch.float16, "minimum"),
    "gguf:q5_0": (5, 32, torch.float16, "affine"),
    "gguf:q5_1": (5, 32, torch.float16, "minimum"),
    "gguf:q8_0": (8, 32, torch.float16, "affine"),
    "gptq:2bit-128g": (2, 128, torch.float16, "affine"),
    "gptq:3bit-128g": (3, 128, torch.float16, "affine"),
    "gptq:4bit-128g-asym": (4, 128, torch.float16, "zeros"),
    "gptq:8bit-128g": (8, 128, torch.float16, "affine"),
    "bitsandbytes:int8": (8, 0, torch.float32, "affine"),
    "glm:int4": (4, 0, torch.float16, "affine"),
    "glm:int8": (8, 0, torch.float16, "affine"),
    "gguf:q2_k": (2, 16, torch.float16, "minimum", 256),
    "gguf:q3_k": (3, 16, torch.float16, "affine", 256),
    "gguf:q4_k": (4, 32, torch.float16, "minimum", 256),
    "gguf:q5_k": (5, 32, torch.float16, "minimum", 256),
    "gguf:q6_k": (6, 16, torch.float16, "affine", 256),
    "gguf:iq4_xs": (4, 32, torch.float16, "table", 256),
    "fp8:block": (8, 128, torch.float32, "float"),
    "gguf:mxfp4": (4, 32, torch.float32, "powers"),
    "modelopt:nvfp4": (4, 16, torch.float32, "floats"),
}
ROTATED = 120e6
"""Bytes that a measurement rotates through, more than twice the L2 cache."""


class Nested(QuantizedTensor):
    """With scales that are products."""

    given: tuple[NestedScales, ...] = ()

    @property
    def nested_scales(self) -> tuple[NestedScales, ...]:
        """What the scales are products of."""
        return self.given


def weight_of(kind: str, rows: int, columns: int) -> DeviceWeight:
    bits, group, scale_dtype, mode, *outer = KINDS[kind]
    group = group or columns
    shape = (rows, -(-columns // group))
    codes = torch.randint(0, 1 << bits, (rows, columns), device="cuda", dtype=torch.uint8)
    zero: Tensor | int = 1 << (bits - 1)
    minimum = table = None
    scale = (torch.rand(shape, device="cuda") * 0.01 + 0.001).to(scale_dtype)
    if mode == "zeros":
        zero = torch.randint(0, 1 << bits, shape, device="cuda", dtype=torch.int32)
    elif mode == "minimum":
        zero, minimum = 0, (torch.randn(shape, device="cuda") * 0.05).to(scale_dtype)
    elif mode == "table":
        zero, table = 0, torch.tensor(IQ4 if outer else NF4, device="cuda", dtype=torch.float32)
    nested = []
    if mode == "float":
        zero, table = 0, torch.tensor(E4M3, device="cuda")
        codes = torch.randint(0, len(E4M3), (rows, columns), device="cuda", dtype=torch.uint8)
    elif mode in ("powers", "floats"):
        zero, table = 0, torch.tensor(E2M1, device="cuda", dtype=torch.float32)
        codes %= len(E2M1)
        scale = torch.exp2(torch.randint(-12, -6, shape, device="cuda").float())
    if mode == "floats":
        inner = (torch.rand(shape, device="cuda") * 400 + 1).to(torch.float8_e4m3fn).float()
        nested.append(NestedScales(torch.full((rows, 1), 1.1e-5, device="cuda"), inner, inner[0], "f32"))
        scale = nested[0].values()
    if outer:
        for _ in range(1 + (minimum is not None)):
            large = (torch.rand(rows, columns // outer[0], device="cuda") * 1e-3).half().float()
            whole = torch.randint(1, 64, shape, device="cuda").float()
            nested.append(NestedScales(large, whole, torch.arange(64.0, device="cuda")))
        scale, minimum = nested[0].values(), None if minimum is None else nested[1].values()
    made = Nested(codes, scale, (1, group), zero, minimum, table)
    # The class of canonical tensors is frozen.
    object.__setattr__(made, "given", tuple(nested))
    return arrange(made, bits)


def weights_of(kind: str, rows: int, columns: int) -> list[DeviceWeight]:
    first = weight_of(kind, rows, columns)
    return [first, *(weight_of(kind, rows, columns) for _ in range(max(1, int(ROTATED / first.nbytes))))]


def seconds(calls: list[Callable[[], object]], replays: int = 7) -> float:
    """Median time of a call; `calls` follow each other in a graph, at least forty of them."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    count = -(-40 // len(calls)) * len(calls)
    with torch.cuda.graph(graph):
        kept = [calls[place % len(calls)]() for place in range(count)]
    del kept
    times = []
    for replay in range(replays + 1):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        if replay:
            times.append(start.elapsed_time(stop) / count * 1e-3)
    return sorted(times)[len(times) // 2]


def copy_bandwidth() -> float:
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds([lambda: target.copy_(source)])


def bitsandbytes() -> Any:
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    import bitsandbytes.functional

    return bitsandbytes.functional


def line(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells: str) -> None:
    print()
    line(*cells)
    line(*("---" for _ in cells))


def nf4_peer(rows: int, columns: int) -> Iterator[tuple[Tensor, Any]]:
    functional = bitsandbytes()
    for _ in range(max(2, int(ROTATED / (rows * columns * 0.5625)) + 1)):
        yield functional.quantize_4bit(
            torch.randn(rows, columns, device="cuda", dtype=torch.float16), blocksize=64, quant_type="nf4"
        )


def dequantizing(bandwidth: float, kinds: list[str]) -> None:
    header("dequantize to float16", "N x K", "us", "of copy bandwidth", "bitsandbytes us", "times faster")
    for rows, columns in (SHAPES[0], SHAPES[1], SHAPES[3]):
        for kind in kinds:
            weights = weights_of(kind, rows, columns)
            spent = seconds([partial(launch.dequantize, w, torch.float16) for w in weights])
            moved = weights[0].nbytes + 2 * rows * columns
            theirs: list[object] = ["", ""]
            if kind == "bitsandbytes:nf4" and bitsandbytes() is not None:
                functional, packed = bitsandbytes(), list(nf4_peer(rows, columns))
                peer = seconds([partial(functional.dequantize_4bit, *p) for p in packed])
                theirs = [f"{peer * 1e6:.1f}", f"{peer / spent:.2f}"]
            line(
                kind, f"{rows} x {columns}", f"{spent * 1e6:.1f}", f"{moved / spent / bandwidth:.3f}", *theirs
            )


def products(bandwidth: float, counts: list[int], kinds: list[str]) -> None:
    header(
        "linear",
        "m",
        "N x K",
        "us",
        "cuBLAS us",
        "times cuBLAS",
        "of copy bandwidth",
        "error",
        "times bitsandbytes",
    )
    for count in counts:
        for rows, columns in SHAPES:
            x = torch.randn(count, columns, device="cuda", dtype=torch.float16)
            copies = max(2, int(ROTATED / (2 * rows * columns)) + 1)
            dense = [torch.randn(rows, columns, device="cuda", dtype=torch.float16) for _ in range(copies)]
            plain = seconds([partial(torch.nn.functional.linear, x, d) for d in dense])
            del dense
            chosen = kinds if count in (1, 16) or len(kinds) < len(KINDS) else kinds[:3]
            for kind in chosen:
                weights = weights_of(kind, rows, columns)
                spent = seconds([partial(ops.linear, x, w) for w in weights])
                expected = x.double() @ ops.dequantize(weights[0], torch.float32).double().T
                error = float((ops.linear(x, weights[0]).double() - expected).norm() / expected.norm())
                del expected
                peer = ""
                if kind == "bitsandbytes:nf4" and count == 1 and bitsandbytes() is not None:
                    functional = bitsandbytes()
                    packed = [(p.t(), state) for p, state in nf4_peer(rows, columns)]
                    theirs = seconds([partial(functional.gemv_4bit, x, p[0], state=p[1]) for p in packed])
                    peer = f"{theirs / spent:.2f}"
                line(
                    kind,
                    count,
                    f"{rows} x {columns}",
                    f"{spent * 1e6:.1f}",
                    f"{plain * 1e6:.1f}",
                    f"{plain / spent:.2f}",
                    f"{weights[0].nbytes / spent / bandwidth:.2f}",
                    f"{error:.0e}",
                    peer,
                )
                del weights


def crossing(counts: list[int], kinds: list[str]) -> None:
    """Where decoding before the product becomes faster than decoding inside it."""
    header("format", "N x K", "m", "inside us", "before us", "inside, times before")
    for rows, columns in (SHAPES[0], SHAPES[1], SHAPES[3]):
        for kind in kinds:
            weights = weights_of(kind, rows, columns)
            for count in counts:
                x = torch.randn(count, columns, device="cuda", dtype=torch.float16)
                inside = seconds([partial(launch.linear, x, weight, None) for weight in weights], 3)
                before = seconds([partial(_decoded_first, x, weight) for weight in weights], 3)
                cells = (f"{each * 1e6:.1f}" for each in (inside, before))
                line(kind, f"{rows} x {columns}", count, *cells, f"{before / inside:.2f}")
            del weights


def _decoded_first(x: Tensor, weight: DeviceWeight) -> Tensor:
    return torch.nn.functional.linear(x, launch.dequantize(weight, x.dtype))


def beside_humming(counts: list[int], kinds: list[str]) -> None:
    """What users call, of both kernels; Humming compiles its own first."""
    from qformats.kernels.humming import HummingLinear, unfit

    header(
        "format",
        "m",
        "N x K",
        "cuBLAS us",
        "shared us",
        "Humming us",
        "shared, times Humming",
        "Humming's error",
    )
    for rows, columns in SHAPES:
        copies = max(2, int(ROTATED / (2 * rows * columns)) + 1)
        dense = [torch.randn(rows, columns, device="cuda", dtype=torch.float16) for _ in range(copies)]
        cases = [torch.randn(count, columns, device="cuda", dtype=torch.float16) for count in counts]
        plain = [seconds([partial(torch.nn.functional.linear, x, d) for d in dense]) for x in cases]
        del dense
        for kind in kinds:
            weights = weights_of(kind, rows, columns)
            if unfit(weights[0], torch.float16) is not None:
                continue
            theirs = [HummingLinear(weight) for weight in weights]
            for x, cublas in zip(cases, plain, strict=True):
                ours = seconds([partial(ops.linear, x, weight) for weight in weights])
                peer = seconds([partial(each, x) for each in theirs])
                expected = x.double() @ ops.dequantize(weights[0], torch.float32).double().T
                error = float((theirs[0](x).double() - expected).norm() / expected.norm())
                line(
                    kind,
                    len(x),
                    f"{rows} x {columns}",
                    *(f"{each * 1e6:.1f}" for each in (cublas, ours, peer)),
                    f"{peer / ours:.2f}",
                    f"{error:.0e}",
                )
            del weights, theirs


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=["dequantize", "linear", "humming", "crossing"])
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[1, 16, 64, 512, 4096], help="rows of activations, m"
    )
    parser.add_argument("--formats", nargs="*", default=list(KINDS), choices=list(KINDS), metavar="FORMAT")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu: there is no CUDA device", file=sys.stderr)
        return 1
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    import triton

    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__}, "
          f"Python {platform.python_version()}; copy {bandwidth / 1e12:.2f} TB/s")  # fmt: skip
    if arguments.only in (None, "dequantize"):
        dequantizing(bandwidth, arguments.formats)
    if arguments.only == "crossing":
        crossing(arguments.rows, arguments.formats)
    if arguments.only == "humming":
        beside_humming(arguments.rows, arguments.formats)
    if arguments.only in (None, "linear"):
        products(bandwidth, arguments.rows, arguments.formats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
