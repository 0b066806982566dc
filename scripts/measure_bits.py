#!/usr/bin/env python3
"""Measure what scales and types are worth: mean KL divergence of the demo model on held-out text, bytes beside it.

measure_bits.py search               plain rounding by each format's own rule, and with a search of scales

Divergence is that from the bf16 model, over 16 windows of 512 tokens of the held-out text that comes with the package.
"""

import argparse
import logging
import warnings
from importlib.resources import files

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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for run in (search,):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("formats", nargs="*")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
