#!/usr/bin/env python3
"""Measure how much memory a calibration takes, beside what it may take: `scripts/measure_memory.py` (Linux).

Builds a Llama of random weights (2.6 GB in bfloat16 by default), exports it with the quantizer gptq in a process of its
own, and reads that process' anonymous memory (RssAnon) 50 times a second. The bound is what the process takes after the
demo model, its libraries, and

- the largest block twice, in the dtype that the model runs in;
- five matrices of the widest layer's inputs: two kinds of second moments, and what their factorisation copies;
- the hidden states that stay in memory, see the option `activation-memory`;
- a dozen copies of what is at work: of a batch's widest inputs, or in float32 of the weights rounded at a time.

Fails if the peak is beyond it.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from importlib.resources import files
from pathlib import Path

from qformats.calibration import Settings

MB = 1e6
BATCH, CHUNK = 2048, 1 << 22
"""Tokens that run through a block at a time, and weights that are rounded at a time on a processor."""
INTERVAL = 0.02
"""Seconds between two looks."""


def config(arguments):
    """A Llama, with the demo model's tokenizer: it knows fewer tokens than the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": arguments.hidden,
        "intermediate_size": arguments.intermediate,
        "max_position_embeddings": 2048,
        "num_attention_heads": max(1, arguments.hidden // 64),
        "num_hidden_layers": arguments.layers,
        "num_key_value_heads": max(1, arguments.hidden // 64),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "vocab_size": arguments.vocabulary,
    }


def build(folder, settings):
    """Write the model, a file a block."""
    import torch
    from safetensors.torch import save_file

    wanted = json.dumps(settings, indent=1)
    if (folder / "config.json").is_file() and (folder / "config.json").read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def weight(rows, columns):
        values = torch.randn(rows, columns, generator=generator)
        return values.mul_(columns**-0.5).bfloat16()

    def norm(hidden):
        return torch.ones(hidden, dtype=torch.bfloat16)

    hidden, inner, layers = (
        settings[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    parts = {"outside": {"model.embed_tokens.weight": weight(settings["vocab_size"], hidden)}}
    parts["outside"]["model.norm.weight"] = norm(hidden)
    table = {}
    for block in range(-1, layers):
        name = f"model.layers.{block}"
        part = parts.pop("outside") if block < 0 else {}
        if block >= 0:
            for key in "qkvo":
                part[f"{name}.self_attn.{key}_proj.weight"] = weight(hidden, hidden)
            for key in ("gate", "up"):
                part[f"{name}.mlp.{key}_proj.weight"] = weight(inner, hidden)
            part[f"{name}.mlp.down_proj.weight"] = weight(hidden, inner)
            for key in ("input", "post_attention"):
                part[f"{name}.{key}_layernorm.weight"] = norm(hidden)
        file = f"model-{block + 2:05}-of-{layers + 1:05}.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes(files("qformats").joinpath("demo", name).read_bytes())
    # The last file: a folder that has it is complete.
    (folder / "config.json").write_text(wanted)


CHILD = """
import json, sys
import qformats
from qformats.work.progress import Silent

class Told(Silent):
    def start(self, task, total):
        print(task, flush=True)

def export(model, target, **more):
    options = json.loads(sys.argv[4]) | more
    qformats.export(
        model, target, format=sys.argv[3], quantizer="gptq", quantizer_options=options, progress=Told()
    )

export("demo", sys.argv[2] + "-demo", **{"samples": "1", "sequence-length": "64"})
print("ready", flush=True)
export(*sys.argv[1:3])
"""


def run(model, target, format, options):
    """Anonymous memory of an export, bytes: with the libraries alone, and its peak in each stage."""
    command = [sys.executable, "-c", CHILD, str(model), str(target), format, json.dumps(options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    stage, peaks, libraries = "", {}, 0
    done, began = threading.Event(), time.perf_counter()

    def look():
        while not done.wait(INTERVAL):
            peaks[stage] = max(peaks.get(stage, 0), anonymous(process.pid))

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        for line in process.stdout:
            stage = line.strip()
            if stage == "ready":
                libraries = anonymous(process.pid)
                peaks.clear()
            now, peak = anonymous(process.pid), max(tuple(peaks.values()), default=0)
            print(
                f"{time.perf_counter() - began:7.1f} s {now / MB:6.0f} MB (peak {peak / MB:.0f})  {stage}",
                flush=True,
            )
        code = process.wait()
    finally:
        process.kill()
        done.set()
        watch.join()
    if code:
        sys.exit(f"the export failed ({code})")
    return libraries, peaks


def anonymous(process):
    """Bytes of a process that no file backs; 0 once it has ended."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def parts(settings, options):
    """What the bound consists of beside the libraries: names and bytes."""
    hidden, inner = settings["hidden_size"], settings["intermediate_size"]
    width = 4 if options["compute-dtype"] == "f32" else 2
    tokens = min(BATCH, int(options["samples"]) * int(options["sequence-length"]))
    return {
        "largest block, twice": 2 * width * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden),
        "five matrices of the widest layer": 5 * 4 * max(hidden, inner) ** 2,
        "hidden states": Settings.parse(options).activation_memory,
        "copies of what is at work": 12 * max(width * tokens * inner, 4 * min(CHUNK, hidden * inner)),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(".cache/memory"), help="gets the model, which stays there"
    )
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=5632)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--format", default="gptq:4bit-128g")
    parser.add_argument("--slack", type=float, default=0, help="MB that the peak may lie above the bound")
    parser.add_argument(
        "--option", "-Q", action="append", default=[], metavar="NAME=VALUE", help="of the quantizer"
    )
    arguments = parser.parse_args()
    settings = config(arguments)
    model = arguments.folder / "model"
    build(model, settings)
    options = {
        "samples": "16",
        "sequence-length": "512",
        "activation-memory": "256MB",
        "compute-dtype": "bf16",
    }
    options |= dict(option.split("=", 1) for option in arguments.option)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as work:
        libraries, peaks = run(model, Path(work, "out"), arguments.format, options)
    bound = {"libraries": libraries, **parts(settings, options)}
    for name, nbytes in bound.items():
        print(f"{nbytes / MB:8.0f} MB  {name}")
    stage = max(peaks, key=peaks.get)
    print(f"{sum(bound.values()) / MB:8.0f} MB  bound")
    print(f"{peaks[stage] / MB:8.0f} MB  peak, in {stage}")
    if peaks[stage] > sum(bound.values()) + arguments.slack * MB:
        sys.exit("the peak is beyond the bound")


if __name__ == "__main__":
    main()
