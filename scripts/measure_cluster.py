"""Work per gigabyte of an export, here and in a Ray cluster on this machine, for docs/clusters.md.

Seconds of processor time are counted, not of the clock: they add up over nodes, and other programs do not change them.

    python scripts/measure_cluster.py [--weights 250] [--format gguf:q4_0 ...]
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path

FORMATS = ("gguf:q8_0", "gguf:q4_0", "gguf:q4_k", "nf4")
COLUMNS = 4096


def make_model(folder: Path, millions: int) -> int:
    """A llama of so many million weights of noise in bfloat16, with the demo's tokenizer; gives its bytes."""
    import numpy as np

    import qformats

    demo = qformats.open("demo").path
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("*.safetensors", "qformats.json"))
    config = json.loads((folder / "config.json").read_text())
    layers = max(1, millions * 10**6 // (COLUMNS * COLUMNS * 5))
    config |= {
        "hidden_size": COLUMNS,
        "intermediate_size": COLUMNS,
        "num_hidden_layers": layers,
        "dtype": "bfloat16",
    }
    config |= {
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    vocabulary, narrow = config["vocab_size"], COLUMNS // 4
    shapes = {"model.embed_tokens.weight": (vocabulary, COLUMNS), "lm_head.weight": (vocabulary, COLUMNS)}
    shapes["model.norm.weight"] = (COLUMNS,)
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{name}_layernorm.weight": (COLUMNS,) for name in ("input", "post_attention")}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (COLUMNS, COLUMNS) for name in "qo"}
        shapes |= {f"{layer}self_attn.{name}_proj.weight": (narrow, COLUMNS) for name in "kv"}
        shapes |= {f"{layer}mlp.{name}_proj.weight": (COLUMNS, COLUMNS) for name in ("gate", "up", "down")}
    header, offset = {}, 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + nbytes]}
        offset += nbytes
    text = json.dumps(header).encode()
    noise = np.random.default_rng(0).standard_normal(1 << 22, np.float32) * 0.02
    block = (noise.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = offset
        while left:
            left -= file.write(block[: min(left, len(block))])
    return offset


def exported(model: Path, place: Path, format: str, engine: str) -> None:
    import qformats

    suffix = ".gguf" if format.startswith("gguf") else ""
    options = {"max-shard-size": "100MB"}
    qformats.export(model, place / f"out{suffix}", format=format, engine=engine, workers=1, options=options)
    shutil.rmtree(place)
    place.mkdir()


def processor_seconds() -> float:
    """Of this process and everything that it has started and that still runs."""
    import psutil

    here = psutil.Process()
    total = sum(here.cpu_times()[:2])
    for process in here.children(recursive=True):
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=250, help="millions")
    parser.add_argument("--format", nargs="+", default=list(FORMATS))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, place = Path(folder, "model"), Path(folder, "out")
        place.mkdir()
        nbytes = make_model(model, chosen.weights)
        print(f"{nbytes / 1e9:.2f} GB in bfloat16, {platform.machine()}, {time.strftime('%Y-%m-%d')}")
        print("| format | engine | processor seconds | per GB |\n| --- | --- | --- | --- |")
        for format in chosen.format:
            # Kernels are compiled, and files are in memory.
            exported(model, place, format, "local")
            before = processor_seconds()
            exported(model, place, format, "local")
            taken = processor_seconds() - before
            print(f"| {format} | local | {taken:.2f} | {taken / nbytes * 1e9:.2f} |", flush=True)
        import ray

        ray.init(num_cpus=2, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
        for format in chosen.format:
            # The workers are there, as they are for all parts but the first.
            exported(model, place, format, "ray")
            before = processor_seconds()
            exported(model, place, format, "ray")
            taken = processor_seconds() - before
            print(f"| {format} | ray | {taken:.2f} | {taken / nbytes * 1e9:.2f} |", flush=True)
        ray.shutdown()


if __name__ == "__main__":
    main()
