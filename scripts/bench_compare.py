#!/usr/bin/env python3
"""Compare the weights of two large models, and time that against reading their files once.

Makes a synthetic bf16 llama (2.6 GB) in a working folder and exports it to a second format (as large by default), reads
both once so that they lie in the page cache, then alternates (a) a plain program that reads every byte of both, and (b)
the comparison of their weights, in fresh processes. What (b) imports and compiles is done before its clock starts.

    python scripts/bench_compare.py --work /var/tmp/bench
    python scripts/bench_compare.py --work /var/tmp/bench --format gguf:q4_0
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path

from bench_export import WATCH, make_model, timed

READ = """
import os, sys, time
began = time.perf_counter()
buffer = bytearray(8 << 20)
for source in sys.argv[1:]:
    inside = os.path.isdir(source)
    for name in [os.path.join(source, name) for name in sorted(os.listdir(source))] if inside else [source]:
        with open(name, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
print(time.perf_counter() - began)
"""

COMPARE = (
    WATCH
    + """
import json, sys
import qformats
base, other = qformats.open(sys.argv[1]), qformats.open(sys.argv[2])
qformats.compare("demo", try_=[sys.argv[3]])
watch = Watch()
report = qformats.compare(base, other)
seconds, peak = watch.stop()
total = report.models[0].weights.total
print(json.dumps({"seconds": seconds, "peak": peak, "weights": total.count, "error": total.relative_rmse}))
"""
)


def main() -> None:
    """Run the pairs and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the two models (6 GB)")
    parser.add_argument("--format", default="dense:f16", help="format of the second model")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="keep the models for the next time")
    arguments = parser.parse_args()
    import qformats
    from qformats.registry import registry

    base = arguments.work / "synthetic-llama"
    if not base.exists():
        print("making the synthetic model ...", file=sys.stderr)
        make_model(base)
    suffix = registry().loader(qformats.packer(arguments.format).container).suffix
    other = arguments.work / f"synthetic-{arguments.format.replace(':', '-')}{suffix}"
    if not other.exists():
        qformats.export(base, other, format=arguments.format)
    sizes = [
        sum(file.stat().st_size for file in (model.iterdir() if model.is_dir() else [model]))
        for model in (base, other)
    ]
    models = (str(base), str(other))
    timed(READ, *models)
    reads, runs = [], []
    for _ in range(arguments.runs):
        reads.append(float(timed(READ, *models)[0]))
        runs.append(json.loads(timed(COMPARE, *models, arguments.format)[0]))
    seconds = [run["seconds"] for run in runs]
    ratios = [ours / plain for ours, plain in zip(seconds, reads, strict=True)]
    print(
        f"{sizes[0] / 1e9:.2f} GB bf16 and {sizes[1] / 1e9:.2f} GB {arguments.format}, "
        f"{runs[0]['weights']:,} weights; {len(os.sched_getaffinity(0))} cores; {arguments.runs} pairs"
    )
    for name, values in (
        ("reading both once, s", reads),
        ("comparing them, s", seconds),
        ("ratio", ratios),
    ):
        middle = statistics.median(values)
        print(f"{name:26} median {middle:6.2f}   min {min(values):6.2f}   max {max(values):6.2f}")
    print(f"{'peak anonymous memory, MB':26} {max(run['peak'] for run in runs) / 1e6:6.0f}")
    print(f"{'relative error':26} {runs[0]['error']:.2e}")
    if not arguments.keep:
        for model in (base, other):
            shutil.rmtree(model) if model.is_dir() else model.unlink()


if __name__ == "__main__":
    main()
