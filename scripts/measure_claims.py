#!/usr/bin/env python3
"""Measure on the demo model what is commonly claimed about quantized models, and print it as Markdown tables.

    python scripts/measure_claims.py
    python scripts/measure_claims.py --windows 8 --table bits

bits       quality falls from 16 to 8 to 4 bits, in every family
groups     smaller groups are more accurate and larger
families   GPTQ against GGML formats of about the same bits, over the same linear layers
sizes      the same formats on Llama-2-13B, from its configuration alone
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import qformats
from qformats.comparing import Settings, compare
from qformats.comparing.weights import position
from qformats.exporting import Recipe
from qformats.exporting.footprint import footprint
from qformats.numbers.error import percent
from qformats.sources import outline_model

CALIBRATION = (("samples", "32"), ("sequence-length", "512"))
"""Enough for a model of five million weights: 16,384 tokens."""

BITS = (
    "dense:f16",
    "bitsandbytes:int8",
    "bitsandbytes:nf4",
    "glm:int8",
    "glm:int4",
    "gguf:q8_0",
    "gguf:q4_0",
)
GROUPS = tuple(f"gptq:4bit-{group}g" for group in (32, 128, 1024, -1))
FAMILIES = (
    ("gptq:8bit-128g", "gptq"),
    ("gguf:q8_0", "rtn"),
    ("gptq:4bit-128g", "gptq"),
    ("gptq:4bit-32g", "gptq"),
    ("gguf:q4_0", "rtn"),
    ("gguf:q4_0", "gptq"),
    ("gguf:q4_1", "rtn"),
    ("gguf:q5_0", "rtn"),
    ("gptq:3bit-128g", "gptq"),
    ("gptq:3bit-32g", "gptq"),
)
LLAMA_2_13B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def recipe(format: str, quantizer: str = "rtn") -> Recipe:
    """Quantize the linear layers of the blocks and nothing else, whatever the container's own mix is."""
    plain = None if format.startswith("dense:") else "dense:f16"
    single_file = qformats.packer(format).container != "huggingface"
    return Recipe(
        format,
        quantizer=quantizer,
        pure=True,
        output_type=plain if single_file else None,
        token_embedding_type=plain if single_file else None,
        quantizer_options=CALIBRATION if quantizer != "rtn" else (),
    )


def measured(title: str, recipes: list[Recipe], settings: Settings) -> None:
    """Compare the demo model with itself in several formats, and print a table."""
    report = compare(qformats.open("demo"), [], recipes, settings)
    print(f"\n{title}\n")
    print(
        "| format | quantizer | bits per weight | block error | perplexity | over base | KL, 1/1000 nats | same top |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(f"| {report.base.format} | | 16 | | {report.base.behaviour.perplexity.value:.3f} | | | |")
    for model in report.models:
        linears, against = model.weights.linears, model.behaviour.against
        bits = model.weights.linear_bits_per_weight or model.bits_per_weight
        error = linears if linears.count else model.weights.total
        ratio, kl = against.perplexity_ratio, against.kl.mean
        print(
            f"| {model.format} | {model.quantizer} | {bits:.2f} | {percent(error.relative_rmse)} "
            f"| {model.behaviour.perplexity.value:.3f} | {ratio.value - 1:+.2%} ± {ratio.error:.2%} "
            f"| {kl.value * 1000:.3f} ± {kl.error * 1000:.3f} | {against.same_top.value:.1%} |"
        )
    sys.stdout.flush()


def sizes() -> None:
    """Bytes of Llama-2-13B in several formats."""
    formats = ("dense:f16", *dict.fromkeys((*GROUPS, *(format for format, _ in FAMILIES))))
    print("\nLlama-2-13B, from its configuration\n")
    print("| format | linear layers, GB | bits per weight | whole model, GB |")
    print("| --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(LLAMA_2_13B))
        source = outline_model(folder, {})
        linear = [t for t in source.tensors.values() if len(t.shape) == 2 and position(t.name)[0] is not None]
        weights = sum(tensor.numel for tensor in linear)
        for format in formats:
            found = footprint(source, recipe(format), {})
            used = sum(nbytes for _, kind, nbytes in found.tensors if kind == format)
            if format.startswith("dense:"):
                used = 2 * weights
            print(f"| {format} | {used / 1e9:.3f} | {used * 8 / weights:.3f} | {found.nbytes / 1e9:.2f} |")


def main() -> None:
    """Print all tables, or those asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=32, help="windows of 512 tokens of the held-out text")
    parser.add_argument(
        "--table", action="append", choices=("bits", "groups", "families", "sizes"), help="all by default"
    )
    arguments = parser.parse_args()
    wanted = arguments.table or ("bits", "groups", "families", "sizes")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(text="demo", windows=arguments.windows, logits=Path(folder, "base"), device="cpu")
        if "bits" in wanted:
            measured("16, 8 and 4 bits", [recipe(format) for format in BITS], settings)
        if "groups" in wanted:
            both = [recipe(format, how) for how in ("rtn", "gptq") for format in GROUPS]
            measured("group sizes", both, settings)
        if "families" in wanted:
            measured("GPTQ and GGML formats", [recipe(format, how) for format, how in FAMILIES], settings)
    if "sizes" in wanted:
        sizes()


if __name__ == "__main__":
    main()
