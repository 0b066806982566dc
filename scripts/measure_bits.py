#!/usr/bin/env python3
"""Measure what scales and types are worth: mean KL divergence of the demo model on held-out text, bytes beside it.

measure_bits.py search               plain rounding by each format's own rule, and with a search of scales
measure_bits.py mixes                named mixes and `--mix measured`, whole files; --quantizer gptq calibrates them too

Divergence is that from the bf16 model, over 16 windows of 512 tokens of the held-out text that comes with the package.
"""

import argparse
import logging
import tempfile
import time
import warnings
from importlib.resources import files
from pathlib import Path

import torch

import qformats

WINDOWS, WINDOW, AT_ONCE = 16, 512, 4


class Divergence:
    """Mean KL divergence from the demo model, in nats per token."""

    def __init__(self):
        logging.disable(logging.WARNING)
        text = files("qformats").joinpath("demo", "heldout.txt").read_text(encoding="utf-8")
        ids = qformats.load_tokenizer("demo")(text)["input_ids"]
        self.batches = torch.tensor(ids[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW).split(AT_ONCE)
        model = qformats.load_model("demo", device="cpu", dtype="f32")
        self.expected = [self._logarithms(model, batch) for batch in self.batches]

    @staticmethod
    def _logarithms(model, batch):
        with torch.inference_mode():
            return model(batch, use_cache=False).logits.log_softmax(-1)

    def of(self, model):
        """That of a model."""
        found = [
            (expected.exp() * (expected - self._logarithms(model, batch))).sum(-1).mean()
            for batch, expected in zip(self.batches, self.expected, strict=True)
        ]
        return float(torch.stack(found).mean())


def search(arguments):
    """Blocks alone: the embedding and the head stay as they are."""
    divergence = Divergence()
    print("| format | each format's rule | search=mse | |\n| --- | ---: | ---: | ---: |")
    for format in arguments.formats or (
        *("gptq:4bit-128g", "gptq:4bit-128g-asym", "gptq:3bit-128g", "gptq:2bit-128g", "gptq:2bit-32g"),
        *("gguf:q4_0", "gguf:q4_1", "gguf:q5_0", "gguf:q4_k", "gguf:q3_k", "gguf:q2_k", "gguf:iq4_nl"),
        *("bitsandbytes:nf4", "bitsandbytes:fp4", "bitsandbytes:int8", "glm:int4"),
    ):
        found = []
        for how in ("none", "mse"):
            rules = {"layers.*proj.weight": format, "embed|lm_head|output|token": "dense:f32"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = qformats.load_model(
                    "demo",
                    device="cpu",
                    format=format,
                    quantizer="rtn",
                    quantizer_options={"search": how},
                    tensor_types=rules,
                )
            found.append(divergence.of(model))
        print(
            f"| `{format}` | {found[0]:.5f} | {found[1]:.5f} | {100 * (found[1] / found[0] - 1):+.0f} % |",
            flush=True,
        )


def mixes(arguments):
    """Whole files."""
    divergence = Divergence()
    options = {} if arguments.quantizer == "rtn" else {"samples": str(arguments.samples)}
    print(
        "| format | named: bytes | KL | measured: bytes | KL | | seconds |\n| --- | --: | --: | --: | --: | --: | --: |"
    )
    for format in arguments.formats or ("gguf:q4_0", "gguf:q4_k_m", "gguf:q3_k_m", "gguf:q2_k"):
        row = []
        for mix in ("named", "measured"):
            with tempfile.TemporaryDirectory() as folder:
                began = time.perf_counter()
                report = qformats.export(
                    "demo",
                    Path(folder, "model.gguf"),
                    format=format,
                    quantizer=arguments.quantizer,
                    quantizer_options=options,
                    mix=mix,
                )
                took = time.perf_counter() - began
                row.append(
                    (
                        report.file_nbytes,
                        divergence.of(qformats.load_model(report.target, device="cpu")),
                        took,
                    )
                )
        (before, worse, _), (after, better, took) = row
        assert after <= before
        change = 100 * (better / worse - 1)
        print(
            f"| `{format}` | {before:,} | {worse:.5f} | {after:,} | {better:.5f} | {change:+.0f} % | {took:.0f} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (search, mixes):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("formats", nargs="*")
        command.add_argument("--quantizer", default="rtn")
        command.add_argument("--samples", type=int, default=128)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
