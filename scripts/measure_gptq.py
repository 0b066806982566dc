#!/usr/bin/env python3
"""Measure the GPTQ quantizer: accuracy on the demo model, one large layer on a GPU, and beside AutoGPTQ's algorithm.

measure_gptq.py demo                 KL divergence on held-out text against plain rounding, and the time it takes
measure_gptq.py files [TYPE ...]     whole GGUF files of the demo model, rounded, with an imatrix and by GPTQ, as a
                                     table: KL divergence of the file / of its blocks, embedding and head unquantized
measure_gptq.py groups               the same for groups of 32, 128 and 1024 columns and the whole row, as a table
measure_gptq.py layer                4096 x 11008, Hessian given; on a GPU where there is one
measure_gptq.py check                the kernel of the device against the same steps in torch
measure_gptq.py autogptq FOLDER      layer error against AutoGPTQ's own algorithm; FOLDER is its package `auto_gptq`
"""

import argparse
import itertools
import json
import math
import os
import platform
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import torch

import qformats
from qformats.numbers.dtypes import SIZES
from qformats.registry import registry
from qformats.work.progress import Silent
from qformats_gptq.algorithm import Method, solve
from qformats_gptq.algorithm.hessian import factor

WINDOW = 512


def seconds(device, run):
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def layer(arguments):
    """Time of one layer, from the second moments of its inputs to codes."""
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows, columns = arguments.rows, arguments.columns
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator, device=device) * 0.02
    inputs = torch.randn(2 * columns, columns, generator=generator, device=device)
    inputs += inputs.roll(1, 1) * 0.8 + inputs.roll(7, 1) * 0.5
    inputs *= torch.rand(columns, generator=generator, device=device) * 3 + 0.05
    second = inputs.T @ inputs / len(inputs)
    del inputs
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    print(f"{name}, torch {torch.__version__}; {rows} x {columns}")
    for format in arguments.formats:
        grid = qformats.packer(format).grid
        plain = grid.quantize(weight).dequantize() - weight
        baseline = float(((plain @ second) * plain).sum())
        for label, method in (
            ("GPTQ alone", Method(search=False, rounds=0)),
            ("+ search for ranges", Method(rounds=0)),
            ("+ 4 rounds (default)", Method()),
        ):
            found = []

            def run(method=method, grid=grid, found=found):
                found[:] = [solve(weight, grid, factor(second, 0.01, reorder=True), method)]

            first, again = seconds(device, run), seconds(device, run)
            error = found[0].quantized.dequantize() - weight
            ratio = float(((error @ second) * error).sum()) / baseline
            print(
                f"{format:18} {label:22} {again:7.3f} s (first {first:.2f} s)  error {ratio:.4f} of plain rounding"
            )
        if device.type == "cuda":
            print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


def check(arguments):
    """Codes of the device's kernel beside those of torch on the processor, on layers of odd shapes."""
    from qformats_gptq.algorithm import sweep

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(1)
    for format in (
        "gguf:q4_0",
        "gguf:q4_1",
        "gguf:q8_0",
        "bitsandbytes:nf4",
        "glm:int4",
        "gptq:3bit-32g-asym",
        "gguf:q4_k",
        "gguf:q6_k",
        "gguf:iq4_xs",
    ):
        packer = qformats.packer(format)
        grid = packer.grid
        for rows, columns in ((1, 32), (37, 352), (37, 256), (64, 1024)):
            if packer.veto((rows, columns)):
                continue
            weight = torch.randn(rows, columns, generator=generator) * 0.02
            inputs = torch.randn(4 * columns, columns, generator=generator)
            inputs += inputs.roll(1, 1)
            second = inputs.T @ inputs / len(inputs)
            theirs = solve(weight.to(device), grid, factor(second.to(device), 0.01, reorder=True), Method())
            kernel, sweep._panel_of = sweep._panel_of, lambda _: sweep.panel_of_torch
            ours = solve(weight, grid, factor(second, 0.01, reorder=True), Method())
            sweep._panel_of = kernel
            same = float((theirs.quantized.codes.cpu() == ours.quantized.codes).float().mean())
            print(
                f"{format:18} {rows:4} x {columns:5}  same codes {same:.4f}  loss {theirs.loss / ours.loss:.5f}"
            )
            assert abs(theirs.loss / ours.loss - 1) < 0.02


def demo(arguments):
    """KL divergence of the demo model in several formats, against plain rounding."""
    torch.set_grad_enabled(False)
    model, ids = _model(), _held_out()
    before = _log_probs(model, ids)
    for format, plain in (
        ("gptq:4bit-128g", _absmax(4, 7)),
        ("gptq:3bit-128g", _absmax(3, 3)),
        ("gguf:q4_0", None),
        *((format, None) for format in arguments.formats),
    ):
        rounded = _divergence(model, ids, before, plain or _reference(format))
        weights, took = _calibrated(format, arguments.option)
        chosen = _divergence(model, ids, before, weights)
        ratios = "  ".join(f"{c / r:.3f}" for c, r in zip(chosen, rounded, strict=True))
        print(
            f"{format:18} plain {rounded[0]:.5f}  gptq {chosen[0]:.5f}  ratio {ratios} (first 8192 tokens, spread)  "
            f"{took:.1f} s",
            flush=True,
        )


_FILES = ("q4_0", "iq4_nl", "iq4_xs", "q4_k_s", "q4_k_m", "q3_k_m", "q2_k", "q5_k_m", "q6_k")
_ENDS = {r"token_embd\.weight": "bf16", r"^output\.weight": "bf16"}


def whole_files(arguments):
    """Whole files and blocks alone, 16 windows of the held-out text: by the format's rule, with an imatrix, by GPTQ."""
    torch.set_grad_enabled(False)
    model, ids = _model(), _held_out()[:16]
    before = _log_probs(model, ids)
    weights = {name: value.data.clone() for name, value in model.named_parameters()}
    blocks = [name for name in weights if ".layers." in name]
    options = dict(text.split("=", 1) for text in arguments.option)

    def divergence(path, names):
        written = qformats.open(path)
        for name in names:
            model.get_parameter(name).data = written.read(name).reshape(weights[name].shape)
        after = _log_probs(model, ids)
        for name in names:
            model.get_parameter(name).data = weights[name]
        return float((before.exp() * (before - after)).sum(-1).mean())

    print("| file | bits per weight | rounded | with an imatrix | by GPTQ | seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        path, importance = Path(folder, "demo.gguf"), Path(folder, "imatrix.gguf")
        qformats.imatrix("demo", importance)
        for format in arguments.types or _FILES:
            cells = []
            for given in ({}, {"imatrix": importance}):
                qformats.export("demo", path, format=f"gguf:{format}", force=True, **given)
                cells.append(f"{divergence(path, list(weights)):.5f} / {divergence(path, blocks):.5f}")
            given = {"quantizer": "gptq", "quantizer_options": options, "force": True}
            start = time.perf_counter()
            qformats.export("demo", path, format=f"gguf:{format}", **given)
            took = time.perf_counter() - start
            bits = 8 * sum(tensor.nbytes for tensor in qformats.open(path).tensors.values())
            whole = divergence(path, list(weights))
            # Blocks make up for the errors of the embedding that is in the file: theirs alone are seen without any.
            qformats.export("demo", path, format=f"gguf:{format}", tensor_types=_ENDS, **given)
            cells.append(f"{whole:.5f} / {divergence(path, blocks):.5f}")
            bits /= sum(value.numel() for value in weights.values())
            print(f"| `{format}` | {bits:.2f} | {' | '.join(cells)} | {took:.0f} |", flush=True)


def groups(arguments):
    """Table of group sizes: size and KL divergence of the demo model, and the error of one wide layer."""
    torch.set_grad_enabled(False)
    model, ids = _model(), _held_out()
    before = _log_probs(model, ids)
    rows, columns = 512, 4096
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    inputs = torch.randn(2 * columns, columns, generator=generator)
    inputs += inputs.roll(1, 1) * 0.8 + inputs.roll(7, 1) * 0.5
    second = inputs.T @ inputs / len(inputs)
    hessian, whole = factor(second, 0.01, reorder=True), float(((weight @ second) * weight).sum())
    print("| format | bits per weight | rounded | by GPTQ | output error of a layer of 4096 inputs |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for format in ("gptq:4bit-32g", "gptq:4bit-128g", "gptq:4bit-1024g", "gptq:4bit--1g"):
        packer = qformats.packer(format)
        rounded = _divergence(model, ids, before, _reference(format))[0]
        weights, _ = _calibrated(format, arguments.option)
        stored = sum(_stored_bytes(packer, value.shape) for value in weights.values())
        bits = 8 * stored / sum(value.numel() for value in weights.values())
        chosen = _divergence(model, ids, before, weights)[0]
        error = (solve(weight, packer.grid, hessian, Method()).loss / whole) ** 0.5
        print(f"| `{format}` | {bits:.2f} | {rounded:.5f} | {chosen:.5f} | {error:.3%} |", flush=True)


def _stored_bytes(packer, shape):
    return sum(math.prod(size) * SIZES[dtype] for size, dtype in packer.stored(tuple(shape)).values())


def _reference(format):
    """Rounding by the format's own rule."""
    return lambda weight: qformats.quantize(weight, format).dequantize()


def _calibrated(format, option):
    """Linear weights of the demo model after calibration, and the seconds it takes."""
    source, packer = qformats.open("demo"), qformats.packer(format)
    names = [name for name in source.tensors if name.endswith("_proj.weight")]
    options = dict(text.split("=", 1) for text in option)
    with tempfile.TemporaryDirectory() as work:
        start = time.perf_counter()
        quantizer = registry().quantizer("gptq", options)
        done = quantizer.prepare(source, dict.fromkeys(names, packer), Path(work), Silent())
        took = time.perf_counter() - start
        return {name: done.read(name) for name in names}, took


def _model():
    from transformers import AutoModelForCausalLM

    folder = str(files("qformats").joinpath("demo"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def _held_out():
    """8 x 1024 tokens in windows of 512: the first ones, and as many spread over the text."""
    from tokenizers import Tokenizer

    folder = files("qformats").joinpath("demo")
    tokenizer = Tokenizer.from_str(folder.joinpath("tokenizer.json").read_text(encoding="utf-8"))
    text = folder.joinpath("heldout.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)
    step = (len(ids) - 1024) // 7
    spread = torch.cat([ids[i * step :][:1024] for i in range(8)])
    return torch.cat([ids[:8192], spread]).view(-1, WINDOW)


def _log_probs(model, ids):
    return torch.cat([torch.log_softmax(model(part).logits, -1) for part in ids.split(8)])


def _divergence(model, ids, before, weights):
    """Mean KL divergence of both texts with other weights: a mapping, or a function of the weight."""
    kept = {}
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            kept[module] = module.weight.data
            new = weights(module.weight.data) if callable(weights) else weights[f"{name}.weight"]
            module.weight.data = new
    after = _log_probs(model, ids)
    for module, weight in kept.items():
        module.weight.data = weight
    each = (before.exp() * (before - after)).sum(-1).mean(1)
    half = len(each) // 2
    return float(each[:half].mean()), float(each[half:].mean())


def _absmax(bits, top):
    """Plain symmetric rounding with scale float16(largest magnitude / top) in groups of 128."""

    def run(weight):
        blocks = weight.view(weight.shape[0], -1, 128)
        scale = (blocks.abs().amax(-1, keepdim=True) / top).half().float()
        codes = (blocks / scale).round().clamp(-(1 << bits - 1), (1 << bits - 1) - 1)
        return (codes * scale).view_as(weight)

    return run


def autogptq(arguments):
    """Error of the layer's output against AutoGPTQ's algorithm on the same layer, inputs and settings."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "oracles"))
    import auto_gptq_algorithm as oracle

    theirs = oracle.load(arguments.folder)
    generator = torch.Generator().manual_seed(5)
    rows, columns = 256, 512
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    inputs = (
        torch.randn(2048, columns, generator=generator)
        @ torch.randn(columns, columns, generator=generator)
        / 20
    )
    inputs[:, 7] *= 30
    second = inputs.T @ inputs / len(inputs)

    def loss(values):
        error = values - weight
        return float(((error @ second) * error).sum())

    worst = 0.0
    for bits, group, symmetric, order in itertools.product(
        (2, 3, 4, 8), (-1, 32, 128), (True, False), (False, True)
    ):
        settings = {
            "bits": bits,
            "group_size": group,
            "symmetric": symmetric,
            "order": order,
            "damping": 0.01,
        }
        reference = loss(oracle.quantize(theirs, weight, inputs, **settings))
        variant = f"gptq:{bits}bit-{group}g" + "-actorder" * order + "-asym" * (not symmetric)
        found = solve(
            weight, qformats.packer(variant).grid, factor(second, 0.01, reorder=order), Method(reorder=order)
        )
        ratio = loss(found.quantized.dequantize()) / reference
        worst = max(worst, ratio)
        print(json.dumps({"format": variant, "error_ratio": round(ratio, 4)}))
    print(f"largest ratio {worst:.4f}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("demo")
    one.add_argument("formats", nargs="*", default=[])
    one.add_argument("--option", "-O", action="append", default=[], metavar="NAME=VALUE")
    whole = commands.add_parser("files")
    whole.add_argument("types", nargs="*", default=[], metavar="TYPE")
    whole.add_argument("--option", "-O", action="append", default=[], metavar="NAME=VALUE")
    several = commands.add_parser("groups")
    several.add_argument("--option", "-O", action="append", default=[], metavar="NAME=VALUE")
    two = commands.add_parser("layer")
    two.add_argument("formats", nargs="*", default=["gptq:4bit-128g"])
    two.add_argument("--rows", type=int, default=4096)
    two.add_argument("--columns", type=int, default=11008)
    two.add_argument("--device")
    three = commands.add_parser("check")
    three.add_argument("--device")
    four = commands.add_parser("autogptq")
    four.add_argument("folder")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    runs = {
        "demo": demo,
        "files": whole_files,
        "groups": groups,
        "layer": layer,
        "check": check,
        "autogptq": autogptq,
    }
    runs[arguments.command](arguments)


if __name__ == "__main__":
    main()
