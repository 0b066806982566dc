#!/usr/bin/env python3
"""Compare the export of a large model with a plain program that reads and writes the same bytes once.

Makes a synthetic bf16 llama (2.6 GB by default) in a working folder, reads it once so that it lies in the page cache,
then alternates (a) a plain program: read every input byte once, write and sync as many bytes as the output has, and
(b) `qformats export --format gguf:q4_0`, in fresh processes. With ``--source-format`` the model is first exported to
that format, so that (b) is a transcode. Start-up and first compilation are reported apart: an export
of the demo model, run first, compiles and caches the kernels, and a second run of it tells the start-up.

    python scripts/bench_export.py --work /var/tmp/bench
    python scripts/bench_export.py --work /var/tmp/bench --source-format glm:int4
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

LAYERS, HIDDEN, FFN, HEADS, VOCAB = 25, 2048, 5632, 16, 2048

PLAIN = """
import os, sys, time
source, target, nbytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
began = time.perf_counter()
buffer = bytearray(8 << 20)
names = [os.path.join(source, name) for name in sorted(os.listdir(source))] if os.path.isdir(source) else [source]
for name in names:
    with open(name, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
with open(target, "wb", buffering=0) as file:
    left = nbytes
    while left:
        left -= file.write(memoryview(buffer)[: min(left, len(buffer))])
    os.fsync(file.fileno())
print(time.perf_counter() - began)
"""

DEMO = """
import sys
from qformats import export
print(export("demo", sys.argv[1] + ".warm", format=sys.argv[2], force=True).seconds)
"""

# For programs that `timed` runs: seconds, and the largest anonymous memory in bytes, until it is stopped.
WATCH = """
import threading, time
class Watch:
    def __init__(self):
        self.peak, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        self.began = time.perf_counter()
    def look(self):
        while not self.done.wait(0.01):
            for line in open("/proc/self/status"):
                if line.startswith("RssAnon"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
    def stop(self):
        seconds = time.perf_counter() - self.began
        self.done.set()
        self.thread.join()
        return seconds, self.peak
"""

EXPORT = (
    WATCH
    + """
import json, sys
from qformats import export
warm = "demo"
if sys.argv[4]:
    warm = sys.argv[2] + ".warm-source" + (".gguf" if sys.argv[4].startswith("gguf") else "")
    export("demo", warm, format=sys.argv[4], force=True)
export(warm, sys.argv[2] + ".warm", format=sys.argv[3], force=True)
watch = Watch()
report = export(sys.argv[1], sys.argv[2], format=sys.argv[3], force=True)
seconds, peak = watch.stop()
print(json.dumps({"seconds": seconds, "bytes": report.file_nbytes, "peak": peak}))
"""
)


def make_model(folder: Path) -> None:
    """Write a llama of random bf16 weights in two shards, with the demo model's tokenizer."""
    import torch
    from safetensors.torch import save_file

    import qformats

    demo = qformats.open("demo")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 24, generator=generator).mul_(0.02).to(torch.bfloat16)

    def weight(rows: int, columns: int) -> torch.Tensor:
        shift = int(torch.randint(0, 1 << 20, (1,), generator=generator))
        repeats = -(-(rows * columns + shift) // len(noise))
        return noise.repeat(repeats)[shift : shift + rows * columns].view(rows, columns).clone()

    folder.mkdir(parents=True)
    state: dict[str, torch.Tensor] = {
        "model.embed_tokens.weight": weight(VOCAB, HIDDEN),
        "lm_head.weight": weight(VOCAB, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16),
    }
    shapes = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}
    where: dict[str, str] = {}
    for shard in range(2):
        for layer in range(LAYERS):
            if layer % 2 != shard:
                continue
            for name, shape in shapes.items():
                state[f"model.layers.{layer}.{name}.weight"] = weight(*shape)
            for name in ("input_layernorm", "post_attention_layernorm"):
                state[f"model.layers.{layer}.{name}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        file = f"model-{shard + 1:05d}-of-00002.safetensors"
        save_file(state, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(state, file)
        state = {}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = demo.config | {
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCAB,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in demo.tokenizer_files().items():
        (folder / name).write_bytes(content)


def remove_outputs(target: Path) -> None:
    """Remove what a run has left."""
    for path in target.parent.glob(f"{target.name}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def timed(program: str, *arguments: str) -> tuple[str, float]:
    """Run a program in a fresh interpreter; give its last line and the process's wall time."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip().splitlines()[-1], time.perf_counter() - began


def main() -> None:
    """Run the comparison and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the model and the outputs (4 GB)"
    )
    parser.add_argument("--format", default="gguf:q4_0")
    parser.add_argument("--source-format", default="", help="quantized format of the source (a folder's)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="keep the synthetic model for the next time")
    arguments = parser.parse_args()
    model, target = arguments.work / "synthetic-llama", arguments.work / "out"
    if not model.exists():
        print("making the synthetic model ...")
        make_model(model)
    if arguments.source_format:
        import qformats
        from qformats.registry import registry

        suffix = registry().loader(qformats.packer(arguments.source_format).container).suffix
        name = f"synthetic-{arguments.source_format.replace(':', '-')}{suffix}"
        dense, model = model, arguments.work / name
        qformats.export(dense, model, format=arguments.source_format, force=True)
    nbytes = sum(file.stat().st_size for file in (model.iterdir() if model.is_dir() else [model]))
    _, cold = timed(DEMO, str(target), arguments.format)
    _, start = timed(DEMO, str(target), arguments.format)
    exports, plains, walls = [], [], []
    for _ in range(arguments.runs):
        # Both write a new file: replacing an old one costs memory and time of its own.
        remove_outputs(target)
        line, wall = timed(EXPORT, str(model), str(target), arguments.format, arguments.source_format)
        exports.append(json.loads(line))
        walls.append(wall)
        remove_outputs(target)
        plains.append(float(timed(PLAIN, str(model), str(target) + ".plain", str(exports[-1]["bytes"]))[0]))
    seconds = [run["seconds"] for run in exports]
    ratios = [ours / plain for ours, plain in zip(seconds, plains, strict=True)]
    print(
        f"model: {nbytes / 1e9:.2f} GB {arguments.source_format or 'bf16'}; "
        f"output: {exports[0]['bytes'] / 1e9:.2f} GB {arguments.format}; "
        f"{len(os.sched_getaffinity(0))} cores; {arguments.runs} pairs"
    )
    for name, values in (
        ("plain read + write + sync, s", plains),
        ("export, s", seconds),
        ("ratio", ratios),
        ("export with start-up, s", walls),
    ):
        print(
            f"{name:32} median {statistics.median(values):6.2f}   min {min(values):6.2f}   max {max(values):6.2f}"
        )
    print(
        f"{'start-up + demo export, s':32} {start:6.2f}   (first run, kernels compiled or loaded: {cold:.2f})"
    )
    print(f"{'peak anonymous memory, MB':32} {max(run['peak'] for run in exports) / 1e6:6.0f}")
    remove_outputs(target)
    if not arguments.keep:
        shutil.rmtree(model) if model.is_dir() else model.unlink()
        shutil.rmtree(arguments.work / "synthetic-llama", ignore_errors=True)


if __name__ == "__main__":
    main()
