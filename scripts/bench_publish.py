#!/usr/bin/env python3
"""Compare one run that writes many formats with separate exports to the same formats.

Makes a synthetic bf16 llama (410 MB by default) in a working folder, then alternates both in fresh processes, each of
which first exports the demo model so that kernels are compiled. Reports wall time, the most anonymous memory, and how
often the weights were read through the source's loader.

    python scripts/bench_publish.py --work /var/tmp/bench
    python scripts/bench_publish.py --work /var/tmp/bench --source-format gguf:q8_0
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import bench_export

FORMATS = ["gguf:q4_k_m", "gguf:q5_k_m", "gguf:q8_0", "gptq:4bit-128g", "bitsandbytes:nf4", "glm:int4"]

PROGRAM = (
    bench_export.WATCH
    + """
import json, os, shutil, sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
import qformats
how, model, folder, formats = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4].split(",")
qformats.publish("demo", folder / "warm", formats=formats, quantizer="rtn")
rows = Counter()
def counting(tensor):
    def load(start, stop):
        rows[tensor.name] += stop - start
        return tensor.load(start, stop)
    return replace(tensor, load=load)
source = qformats.open(model).reading_through(counting)
watch = Watch()
if how == "one":
    qformats.publish(source, folder / "one", formats=formats, quantizer="rtn")
else:
    for i, format in enumerate(formats):
        suffix = ".gguf" if format.startswith("gguf") else ""
        (folder / "many").mkdir(exist_ok=True)
        qformats.export(source, folder / "many" / f"{i}{suffix}", format=format, quantizer="rtn")
seconds, peak = watch.stop()
tensors = source.in_own_names.values()
reads = sum(rows[t.name] * t.nbytes // max(1, t.rows) for t in tensors) / sum(t.nbytes for t in tensors)
print(json.dumps({"seconds": seconds, "peak": peak, "reads": reads}))
for name in ("warm", "one", "many"):
    shutil.rmtree(folder / name, ignore_errors=True)
"""
)


def main() -> None:
    """Run the comparison and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and the outputs")
    parser.add_argument("--format", action="append", help="repeatable; six usual ones by default")
    parser.add_argument("--source-format", default="", help="quantized format of the source")
    parser.add_argument("--layers", type=int, default=4, help="of the synthetic model, 103 MB each")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    formats = arguments.format or FORMATS
    bench_export.LAYERS = arguments.layers
    model = arguments.work / f"synthetic-llama-{arguments.layers}"
    if not model.exists():
        bench_export.make_model(model)
    if arguments.source_format:
        import qformats
        from qformats.registry import registry

        suffix = registry().loader(qformats.packer(arguments.source_format).container).suffix
        dense, model = model, model.with_name(model.name + arguments.source_format.replace(":", "-") + suffix)
        if not model.exists():
            qformats.export(dense, model, format=arguments.source_format)
    found: dict[str, list[dict[str, float]]] = {"one": [], "many": []}
    for _ in range(arguments.runs):
        for how, results in found.items():
            line, _ = bench_export.timed(PROGRAM, how, str(model), str(arguments.work), ",".join(formats))
            results.append(json.loads(line))
    print(f"{len(os.sched_getaffinity(0))} cores; {', '.join(formats)}; {arguments.runs} runs, medians")
    for how, name in (("one", "one run"), ("many", "separate exports")):
        seconds, peak, reads = (
            statistics.median(result[key] for result in found[how]) for key in ("seconds", "peak", "reads")
        )
        print(
            f"{name:18} {seconds:6.1f} s   anonymous memory {peak / 1e6:6.0f} MB   source read {reads:.2f} times"
        )


if __name__ == "__main__":
    main()
