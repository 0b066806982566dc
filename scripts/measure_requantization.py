#!/usr/bin/env python3
"""Measure what the usual route between two quantized formats costs: decode to floats, then quantize again.

Takes the demo model in one quantized format into another one twice: transcoded by qformats, and by way of float32.
Prints, as a Markdown table, the share of weights that change, the error that is added, and perplexity and
Kullback-Leibler divergence to the unquantized model over held-out text.

    python scripts/measure_requantization.py
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, logging

import qformats

WINDOW = 512


def linear(path: Path | str) -> dict[str, torch.Tensor]:
    """Weights of the linear layers of all blocks, float32."""
    model = qformats.open(path)
    return {name: model.read(name) for name in model.tensors if "_proj." in name}


def log_probabilities(weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Of every next token in windows of a text, ``(windows * (WINDOW - 1), vocabulary)``, float32."""
    demo = qformats.open("demo").path
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(demo, dtype=torch.float32)
    model.load_state_dict(weights, strict=False)
    found = []
    with torch.inference_mode():
        for window in tokens.view(-1, WINDOW):
            found.append(torch.log_softmax(model(window[None]).logits[0, :-1], -1))
    return torch.cat(found)


def relative(new: dict[str, torch.Tensor], old: dict[str, torch.Tensor]) -> float:
    """Root of the squared differences relative to the root of the squares, over all weights."""
    change = sum(float((new[name] - old[name]).double().square().sum()) for name in old)
    return math.sqrt(change / sum(float(value.double().square().sum()) for value in old.values()))


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--first", default="glm:int4")
    parser.add_argument("--second", default="gguf:q4_0")
    parser.add_argument("--tokens", type=int, default=8192)
    arguments = parser.parse_args()
    # A text longer than the model's context is cut into windows; the library warns of it.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    demo = qformats.open("demo").path
    load: Any = AutoTokenizer.from_pretrained
    text = (demo / "heldout.txt").read_text(encoding="utf-8")
    count = arguments.tokens // WINDOW * WINDOW
    # From all of the text's parts, not only its beginning.
    every = torch.tensor(load(demo)(text)["input_ids"])
    windows = every[: len(every) // WINDOW * WINDOW].view(-1, WINDOW)
    step = max(1, len(windows) * WINDOW // count)
    tokens = windows[::step][: count // WINDOW].reshape(-1)
    with tempfile.TemporaryDirectory() as folder:
        first, exact, floats, again = (Path(folder) / name for name in ("first", "exact", "floats", "again"))
        qformats.export("demo", first, format=arguments.first)
        qformats.export(first, exact, format=arguments.second, require_exact=True)
        qformats.export(first, floats, format="dense:f32")
        qformats.export(floats, again, format=arguments.second, pure=True)
        original, quantized = linear("demo"), linear(first)
        base = log_probabilities(original, tokens)
        labels = tokens.view(-1, WINDOW)[:, 1:].reshape(-1)
        print(f"| {arguments.first}, then | weights changed | added error | error in all | perplexity | KL |")
        print("| --- | --- | --- | --- | --- | --- |")
        rows = (
            ("unquantized model", original),
            (f"{arguments.first} itself", quantized),
            (f"transcoded to {arguments.second}", linear(exact)),
            (f"by way of float32 to {arguments.second}", linear(again)),
        )
        for label, weights in rows:
            found = log_probabilities(weights, tokens)
            perplexity = math.exp(-float(found.gather(1, labels[:, None]).mean()))
            divergence = float((base.exp() * (base - found)).sum(-1).mean())
            changed = sum(int((weights[n] != quantized[n]).sum()) for n in weights) / sum(
                value.numel() for value in weights.values()
            )
            error = relative(weights, quantized)
            cells = (f"{changed:.1%}", f"{error:.2%}") if weights is not original else ("", "")
            print(
                f"| {label} | {cells[0]} | {cells[1]} | {relative(weights, original):.2%} | {perplexity:.2f} "
                f"| {divergence:.5f} |"
            )


if __name__ == "__main__":
    main()
