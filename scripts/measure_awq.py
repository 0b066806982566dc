#!/usr/bin/env python3
"""Measure the AWQ quantizer: KL divergence of the demo model on held-out text, beside rounding, GPTQ and other tools.

measure_awq.py demo [FORMAT ...]     rounded, by AWQ (scales alone, then ranges, too) and by GPTQ, as a table
measure_awq.py tokens FILE           the calibration text of the above as tokens, for other tools
measure_awq.py autoawq FILE FOLDER   AutoAWQ with these tokens; it writes its own folder
measure_awq.py llmcompressor FILE FOLDER
                                     llm-compressor's AWQModifier with these tokens; it writes its own folder
measure_awq.py folders FOLDER ...    KL divergence of what other tools have written

`autoawq` and `llmcompressor` need no qformats, and run in environments of their own. On 2026-11-30 these were

    autoawq 0.2.9 (pip install --no-deps --no-build-isolation), transformers 4.51.3, accelerate, datasets, zstandard
    llmcompressor 0.14.0.1

each with torch 2.13.0 for CPUs, and with --model the folder of the demo model (qformats/demo). Scales are searched in
float32, and embedding and head stay as they are, with all of them. The text is 16 windows of 512 tokens of the held-out
text that comes with qformats, half of them its beginning, half spread over it.
"""

import argparse
import json
import os
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import torch

WINDOW = 512
FORMATS = (
    "awq:4bit-128g",
    "awq:4bit-32g",
    "gptq:4bit-128g",
    "gptq:3bit-128g",
    "compressed-tensors:w4a16-128g",
    "compressed-tensors:nvfp4",
    "mlx:4bit-64g",
    "gguf:q4_0",
    "gguf:q4_k",
    "bitsandbytes:nf4",
    "glm:int4",
)
"""What `demo` measures."""


class Divergence:
    """Mean KL divergence of the demo model with other weights, nats per token."""

    def __init__(self):
        import qformats

        self.model = qformats.load_model("demo", device="cpu", dtype="f32")
        text = files("qformats").joinpath("demo", "heldout.txt").read_text(encoding="utf-8")
        ids = torch.tensor(qformats.load_tokenizer("demo")(text, add_special_tokens=False)["input_ids"])
        step = (len(ids) - 1024) // 7
        spread = torch.cat([ids[i * step :][:1024] for i in range(8)])
        self.batches = torch.cat([ids[:8192], spread]).view(-1, WINDOW).split(4)
        self.expected = [self._logarithms(batch) for batch in self.batches]

    def _logarithms(self, batch):
        with torch.inference_mode():
            return self.model(batch, use_cache=False).logits.log_softmax(-1)

    def of(self, checkpoint):
        """Divergence with the weights of a checkpoint."""
        kept = {name: value.data for name, value in self.model.named_parameters()}
        for name, value in self.model.named_parameters():
            value.data = checkpoint.read(name).float().reshape(value.shape)
        total = sum(
            float((expected.exp() * (expected - self._logarithms(batch))).sum())
            for expected, batch in zip(self.expected, self.batches, strict=True)
        )
        for name, value in self.model.named_parameters():
            value.data = kept[name]
        return total / sum(batch.numel() for batch in self.batches)


def demo(arguments):
    """One line per format."""
    import qformats
    from qformats.interfaces import ReplacedTensors
    from qformats.registry import registry
    from qformats.work.progress import Silent

    divergence = Divergence()
    source = qformats.open("demo")
    names = [name for name in source.tensors if name.endswith("_proj.weight")]
    given = {"samples": str(arguments.samples), "sequence-length": str(WINDOW)}

    def calibrated(quantizer, packer, **options):
        with tempfile.TemporaryDirectory() as work:
            start = time.perf_counter()
            chosen = registry().quantizer(quantizer, {**given, **options})
            done = chosen.prepare(source, dict.fromkeys(names, packer), Path(work), Silent())
            return f"{divergence.of(done):.5f}", time.perf_counter() - start

    class Rounded(ReplacedTensors):
        def read(self, name):
            values = super().read(name)
            return qformats.quantize(values, packer.name).dequantize() if name in names else values

    print("| format | rounded | AWQ, scales alone | AWQ | by GPTQ | seconds of AWQ |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for format in arguments.formats or FORMATS:
        packer = qformats.packer(format)
        cells = [f"{divergence.of(Rounded(source, {})):.5f}", calibrated("awq", packer, clip="no")[0]]
        found, seconds = calibrated("awq", packer)
        cells.append(found)
        shared = packer.grid.block_rows != 1
        cells.append("-" if shared else calibrated("gptq", packer)[0])
        print(f"| `{format}` | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def tokens(arguments):
    """The pieces of text that quantizers calibrate on."""
    import qformats
    from qformats.calibration import Settings
    from qformats.calibration.text import sample_tokens
    from qformats.work.progress import Silent

    settings = Settings(samples=arguments.samples, sequence_length=WINDOW)
    found = sample_tokens(qformats.open("demo"), settings, Silent())
    arguments.file.write_text(json.dumps(found.tolist()))


def autoawq(arguments):
    """AutoAWQ, version gemm."""
    from awq import AutoAWQForCausalLM
    from transformers import PreTrainedTokenizerFast

    model = AutoAWQForCausalLM.from_pretrained(
        arguments.model, torch_dtype=torch.float32, device_map="cpu", use_cache=False
    )
    # It gets tokens, and does not use it.
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(arguments.model, "tokenizer.json")))
    settings = {"zero_point": True, "q_group_size": arguments.group, "w_bit": 4, "version": "GEMM"}
    pieces = json.loads(arguments.file.read_text())
    start = time.perf_counter()
    model.quantize(
        tokenizer,
        quant_config=settings,
        calib_data=pieces,
        max_calib_samples=len(pieces),
        max_calib_seq_len=WINDOW,
    )
    print(f"{time.perf_counter() - start:.0f} s")
    model.save_quantized(str(arguments.folder))


def llmcompressor(arguments):
    """llm-compressor: its AWQ modifier, and its rounding."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoModelForCausalLM

    if not torch.cuda.is_available():
        # It pins what it keeps, which needs a GPU.
        torch.Tensor.pin_memory = lambda self: self
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    pieces = json.loads(arguments.file.read_text())
    rows = {"input_ids": pieces, "attention_mask": [[1] * len(piece) for piece in pieces]}
    scheme = {
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": False,
                    "strategy": "group",
                    "group_size": arguments.group,
                },
            }
        },
        "ignore": ["lm_head"],
    }
    start = time.perf_counter()
    oneshot(
        model=model,
        dataset=Dataset.from_dict(rows),
        recipe=[AWQModifier(duo_scaling=arguments.duo), QuantizationModifier(**scheme)],
        max_seq_length=WINDOW,
        num_calibration_samples=len(pieces),
        shuffle_calibration_samples=False,
    )
    print(f"{time.perf_counter() - start:.0f} s")
    model.save_pretrained(arguments.folder, save_compressed=True)


def folders(arguments):
    """What others have written, read by qformats."""
    import qformats

    divergence = Divergence()
    for folder in arguments.folders:
        print(f"{folder}: {divergence.of(qformats.open(folder)):.5f}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--duo", default="both", type=lambda word: {"yes": True, "no": False}.get(word, word))
    parser.add_argument("--model", default="qformats/demo")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("demo").add_argument("formats", nargs="*", default=[])
    commands.add_parser("tokens").add_argument("file", type=Path)
    for name in ("autoawq", "llmcompressor"):
        tool = commands.add_parser(name)
        tool.add_argument("file", type=Path)
        tool.add_argument("folder", type=Path)
    commands.add_parser("folders").add_argument("folders", nargs="+")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    runs = {
        "demo": demo,
        "tokens": tokens,
        "autoawq": autoawq,
        "llmcompressor": llmcompressor,
        "folders": folders,
    }
    runs[arguments.command](arguments)


if __name__ == "__main__":
    main()
