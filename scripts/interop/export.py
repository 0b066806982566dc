#!/usr/bin/env python3
"""Write the demo model in formats of GPTQ and AWQ, and beside each folder what qformats says its weights are.

export.py FOLDER: makes FOLDER/NAME (the export) and FOLDER/NAME.safetensors (float32), text.safetensors (token ids) and
cases.json for each case. Needs qformats.
"""

import json
import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import qformats

CASES = (
    ("symmetric", "gptq:4bit-128g", "rtn", "demo"),
    ("asymmetric", "gptq:4bit-128g-asym", "rtn", "demo"),
    ("asymmetric, weights edited for zero points of 0", "gptq:4bit-128g-asym", "rtn", "positive"),
    ("columns in another order", "gptq:4bit-128g-actorder", "gptq", "demo"),
    ("columns in another order, asymmetric", "gptq:4bit-128g-actorder-asym", "gptq", "demo"),
    ("AWQ", "awq:4bit-128g", "rtn", "demo"),
    ("AWQ, weights edited for zero points of 0", "awq:4bit-32g", "rtn", "positive"),
    ("AWQ, weights scaled by activations", "awq:4bit-128g", "awq", "demo"),
)
WINDOW = 256


def positive(demo: Path, target: Path) -> Path:
    """Copy the demo model with a group without negative weights in every fourth row: such a group's zero point is 0."""
    shutil.copytree(demo, target)
    weights = load_file(target / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("_proj.weight"):
            weight[::4, :128] = weight[::4, :128].abs()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def facts(folder: Path) -> dict[str, object]:
    """Count what makes a folder hard to read: columns in another order, zero points of 0."""
    stored = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    # AWQ knows no order.
    order = [v for k, v in stored.items() if k.endswith(".g_idx")]
    kind = config.get("checkpoint_format", config.get("version"))
    zeros = torch.cat([v.flatten() for k, v in stored.items() if k.endswith(".qzeros")])
    fields = torch.stack([zeros >> shift & 15 for shift in range(0, 32, 4)])
    true = (fields + (kind == "gptq")) % 16
    return {
        "checkpoint_format": kind,
        "modules": sum(name.endswith(".qweight") for name in stored),
        "reordered": sum(not torch.equal(v, torch.arange(len(v)).int() // 128) for v in order),
        "zeros": int((true == 0).sum()),
        "groups": true.numel(),
    }


def main() -> None:
    work = Path(sys.argv[1])
    cases = []
    with as_file(files("qformats").joinpath("demo")) as demo:
        sources = {"demo": demo, "positive": positive(demo, work / "positive")}
        tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
        text = tokenizer.encode((demo / "heldout.txt").read_text(encoding="utf-8"), add_special_tokens=False)
        ids = torch.tensor(text.ids[: 8 * WINDOW]).view(-1, WINDOW)
        save_file({"ids": ids}, work / "text.safetensors")
        for number, (title, format, quantizer, source) in enumerate(CASES):
            folder = work / str(number)
            options = None if quantizer == "rtn" else {"samples": "32"}
            print(f"{format}, {quantizer}: {title}")
            qformats.export(
                sources[source], folder, format=format, quantizer=quantizer, quantizer_options=options
            )
            written = qformats.open(folder)
            save_file({name: written.read(name).clone() for name in written.tensors}, f"{folder}.safetensors")
            cases.append(
                {
                    "folder": folder.name,
                    "title": title,
                    "format": format,
                    "quantizer": quantizer,
                    "source": str(sources[source]),
                    **facts(folder),
                }
            )
        record = {"qformats": qformats.__version__, "torch": torch.__version__, "cases": cases}
        (work / "cases.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
