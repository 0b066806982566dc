#!/usr/bin/env python3
"""Compare conversions between formats that servers run with a plain program that reads and writes the same bytes once.

Makes a folder in GPTQ of a llama with random codes (2.6 GB by default; 4 bits, groups of 128, zero points of their
own), and converts it into AWQ and into compressed-tensors, every value unchanged. Beside each conversion, in a fresh
process: reading every input byte once, and writing and syncing as many bytes as the output has. Prints times, their
ratio, and the largest anonymous memory of the conversion, which does not grow with the model: `--layers 6` shows it.

    python scripts/bench_serving.py --work /var/tmp/bench
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
from pathlib import Path

from bench_export import PLAIN, WATCH, remove_outputs, timed

HIDDEN, FFN, HEADS, GROUP, VOCAB = 4096, 11008, 32, 128, 2048
TARGETS = ("awq:4bit-128g", "compressed-tensors:w4a16-128g-asym")

CONVERT = (
    WATCH
    + """
import json, sys
import qformats
source, target, format = sys.argv[1:4]
warm = target + ".warm"
qformats.export("demo", warm, format="gptq:4bit-128g-asym", quantizer="rtn", force=True)
qformats.export(warm, warm + "-out", format=format, force=True)
watch, before = Watch(), time.process_time()
report = qformats.export(source, target, format=format, require_exact=True)
seconds, peak = watch.stop()
work = time.process_time() - before
print(json.dumps({"seconds": seconds, "bytes": report.file_nbytes, "peak": peak, "work": work}))
"""
)


def make_folder(folder: Path, layers: int) -> None:
    """Write a llama in GPTQ with random codes and zero points, a file a layer, with the demo model's tokenizer."""
    import torch
    from safetensors.torch import save_file

    import qformats

    demo = qformats.open("demo")
    generator = torch.Generator().manual_seed(0)

    def words(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, (rows, columns), dtype=torch.int32, generator=generator)

    folder.mkdir(parents=True)
    where: dict[str, str] = {}

    def save(state: dict[str, torch.Tensor], number: int) -> None:
        file = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        save_file(state, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(state, file))

    save(
        {
            "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN, generator=generator).half(),
            "lm_head.weight": torch.randn(VOCAB, HIDDEN, generator=generator).half(),
            "model.norm.weight": torch.ones(HIDDEN).half(),
        },
        layers,
    )
    shapes = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN), "mlp.down_proj": (HIDDEN, FFN)}
    for layer in range(layers):
        state: dict[str, torch.Tensor] = {}
        for name, (rows, columns) in shapes.items():
            module = f"model.layers.{layer}.{name}"
            scales = torch.rand(columns // GROUP, rows, generator=generator) * 0.01 + 0.001
            state |= {
                f"{module}.qweight": words(columns // 8, rows),
                f"{module}.qzeros": words(columns // GROUP, rows // 8),
                f"{module}.scales": scales.half(),
                f"{module}.g_idx": torch.arange(columns, dtype=torch.int32) // GROUP,
            }
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{layer}.{name}.weight"] = torch.ones(HIDDEN).half()
        save(state, layer)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config = demo.config | {
        "dtype": "float16",
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HIDDEN // HEADS,
        "vocab_size": VOCAB,
        "quantization_config": {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": GROUP,
            "desc_act": False,
            "sym": False,
            "checkpoint_format": "gptq_v2",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in demo.tokenizer_files().items():
        (folder / name).write_bytes(content)


def main() -> None:
    """Run the comparison and print a line per format."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the model and the outputs (6 GB)"
    )
    parser.add_argument("--layers", type=int, default=25, help="104 MB each")
    parser.add_argument(
        "--format", action="append", help=f"target, several times (default: {', '.join(TARGETS)})"
    )
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the synthetic model for the next time")
    arguments = parser.parse_args()
    model, target = arguments.work / f"synthetic-gptq-{arguments.layers}", arguments.work / "out"
    if not model.exists():
        print("making the synthetic model ...")
        make_folder(model, arguments.layers)
    nbytes = sum(file.stat().st_size for file in model.iterdir())
    print(
        f"model: {nbytes / 1e9:.2f} GB gptq:4bit-128g-asym; {len(os.sched_getaffinity(0))} cores; "
        f"{arguments.runs} pairs each; medians"
    )
    for format in arguments.format or TARGETS:
        exports, plains = [], []
        for _ in range(arguments.runs):
            remove_outputs(target)
            exports.append(json.loads(timed(CONVERT, str(model), str(target), format)[0]))
            remove_outputs(target)
            plains.append(
                float(timed(PLAIN, str(model), str(target) + ".plain", str(exports[-1]["bytes"]))[0])
            )
        ratios = [run["seconds"] / plain for run, plain in zip(exports, plains, strict=True)]
        seconds, work = (statistics.median(run[key] for run in exports) for key in ("seconds", "work"))
        peak = max(run["peak"] for run in exports) / 1e6
        print(
            f"{format:38} convert {seconds:6.2f} s (processor {work:5.1f} s)   "
            f"read + write + sync {statistics.median(plains):6.2f} s   ratio {statistics.median(ratios):5.2f}   "
            f"peak anonymous memory {peak:5.0f} MB"
        )
    remove_outputs(target)
    if not arguments.keep:
        shutil.rmtree(model)


if __name__ == "__main__":
    main()
