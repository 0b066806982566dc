"""A report to draw: made by formulas and a seeded generator, shaped like a real one."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence

from qformats.comparing.report import (
    BehaviourChange,
    BehaviourResult,
    CompareReport,
    Estimate,
    Finding,
    Histogram,
    IdenticalTensors,
    KLDivergence,
    ModelResult,
    Percentiles,
    ProbabilityChange,
    SpeedResult,
    TaskChange,
    TaskResult,
    TaskUsed,
    TensorError,
    TextUsed,
    TokenChance,
    TokenChange,
    WeightError,
    WeightsResult,
    WindowChange,
)

__all__ = ["HOSTILE", "example", "model", "windows", "without"]

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>\"&'\u202e\x00\ud800"
)
"""A name, a token, a text: what a page must show and never obey."""
TOKENS = 2048
EDGES = tuple(10 ** (exponent / 5) for exponent in range(-50, 11))
KINDS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
    "input_layernorm": (576,),
}
LAYERS = 12
OUTSIDE = {"embed_tokens": (49152, 576), "norm": (576,)}
PARAMETERS = LAYERS * sum(math.prod(s) for s in KINDS.values()) + sum(math.prod(s) for s in OUTSIDE.values())
FORMATS = {
    "gguf:q8_0": (8.5, 0.00085, 0.0045),
    "gguf:q6_k": (6.56, 0.0045, 0.014),
    "gguf:q5_k": (5.5, 0.0117, 0.027),
    "gguf:q4_k": (4.5, 0.041, 0.058),
    "gguf:q4_0": (4.55, 0.092, 0.076),
    "gguf:q2_k": (2.63, 0.78, 0.21),
    "gptq:4bit-128g": (4.2, 0.049, 0.083),
    "bitsandbytes:nf4": (4.57, 0.056, 0.072),
    "glm:int4": (4.03, 0.31, 0.14),
}
"""Bits per weight, mean divergence and relative error."""


def percentiles(values: Sequence[float]) -> Percentiles:
    ordered = sorted(values)
    shares = (0, 0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
    return Percentiles(*(ordered[round((len(ordered) - 1) * share / 100)] for share in shares))


def estimate(values: Sequence[float]) -> Estimate:
    mean = math.fsum(values) / len(values)
    square = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return Estimate(mean, math.sqrt(square / len(values)))


def histogram(values: Sequence[float]) -> Histogram:
    counts = [0] * (len(EDGES) - 1)
    for value in values:
        place = math.floor(5 * math.log10(value)) + 50 if value > 0 else 0
        counts[min(max(place, 0), len(counts) - 1)] += 1
    return Histogram(EDGES, tuple(counts))


def chances(words: Sequence[str], first: float) -> tuple[TokenChance, ...]:
    return tuple(TokenChance(word, first * 0.5**index) for index, word in enumerate(words))


def changes(worst: float, token: str) -> tuple[TokenChange, ...]:
    before = (
        "crescent in our van, we beheld another in our rear.\nIt seemed formed of detached white vapors, rising "
        "and falling something like the spouts of the"
    )
    return tuple(
        TokenChange(
            window=index % 8,
            position=256 + 7 * index,
            before=before[: 160 - 3 * index],
            token=token if index == 0 else " whales;",
            kl=worst * 0.9**index,
            p_base=0.62,
            p_model=0.031,
            top_base=chances((" whales;", " whale", "\n\n", " sea", "  "), 0.62),
            top_model=chances((" sea", token, " whales;", " ship", " water"), 0.44),
        )
        for index in range(20)
    )


def windows(kl: float, log_ratio: float, spread: float, count: int = 8) -> tuple[WindowChange, ...]:
    """As many windows as asked for whose means are these, and whose values differ by about `spread`."""
    steps = [(2 * i - count + 1) / count for i in range(count)]
    return tuple(WindowChange(kl + spread * step, log_ratio - spread * step) for step in steps)


def behaviour(kl: float, noise: random.Random, token: str) -> BehaviourResult:
    spread = 1.9
    values = [math.exp(noise.gauss(0, spread)) for _ in range(TOKENS)]
    values = [kl * TOKENS / math.fsum(values) * value for value in values]
    moved = [noise.gauss(-0.1 * math.sqrt(kl), 0.35 * math.sqrt(kl)) for _ in range(TOKENS)]
    log_ratio = Estimate(0.6 * kl, 0.35 * math.sqrt(kl) / 20)
    perplexity = 18.42 * math.exp(log_ratio.value)
    square = estimate([m * m for m in moved])
    rms = math.sqrt(square.value)
    same = 1 / (1 + 0.9 * math.sqrt(kl))
    change = BehaviourChange(
        perplexity_difference=Estimate(perplexity - 18.42, perplexity * log_ratio.error),
        perplexity_ratio=Estimate(perplexity / 18.42, perplexity / 18.42 * log_ratio.error),
        log_ratio=log_ratio,
        correlation=1 - 0.12 * kl,
        kl=KLDivergence(estimate(values), percentiles(values)),
        probability=ProbabilityChange(
            estimate(moved), Estimate(rms, square.error / (2 * rms)), percentiles(moved)
        ),
        same_top=Estimate(same, math.sqrt(same * (1 - same) / TOKENS)),
        kl_histogram=histogram(values),
        worst=changes(max(values), token),
        windows=windows(kl, log_ratio.value, 0.1 * kl),
    )
    return BehaviourResult(TOKENS, Estimate(perplexity, 0.53), change)


def tensor(
    name: str, layer: int | None, kind: str, shape: tuple[int, ...], format: str, bits: float, off: float
) -> TensorError:
    quantized = len(shape) == 2
    count = math.prod(shape)
    off = off if quantized else 0.0
    error = WeightError(count, off * 0.04 * 6, off * 0.04, 0.04, 1 - off * off / 2)
    stored = bits if quantized else 16
    return TensorError(
        *(name, layer, kind, shape, format if quantized else "bf16", round(count * stored / 8), stored),
        quantized=quantized,
        error=error,
        identical=not quantized,
    )


def weights(format: str, bits: float, off: float, noise: random.Random) -> WeightsResult:
    tensors = []
    for layer in range(LAYERS):
        for kind, shape in KINDS.items():
            rise = 1.35 if kind.endswith("down_proj") and layer in (1, 10) else 1 + 0.12 * layer / LAYERS
            name = f"model.layers.{layer}.{kind}.weight"
            tensors.append(
                tensor(name, layer, kind, shape, format, bits, off * rise * noise.uniform(0.95, 1.05))
            )
    tensors += [tensor(f"model.{k}.weight", None, k, s, format, bits, 0.9 * off) for k, s in OUTSIDE.items()]
    linears = [t for t in tensors if t.quantized]
    error = WeightError(sum(t.error.count for t in linears), off, off * 0.04, 0.04, 1 - off * off / 2)
    return WeightsResult(error, error, sum(t.nbytes for t in linears), error.count, tuple(tensors))


def tasks(kl: float | None) -> dict[str, TaskResult]:
    """Results of a model whose mean divergence is this; of the base without one."""
    lost, change = (0.0, 0.0) if kl is None else (0.02 * kl, 0.6 * kl)
    finding = Finding.WORSE if change > 0.005 else Finding.NO_DIFFERENCE
    right = TaskChange(Estimate(-lost, 0.004), None, round(5153 * lost) + 9, 9, finding)
    ratio = TaskChange(Estimate(19 * change, 0.02), Estimate(change, 0.002), 0, 0, finding)
    return {
        "lambada": TaskResult(
            "left to right",
            "causal",
            Estimate(0.8 - lost, 0.0056),
            0.0,
            7_200,
            5_153,
            None if kl is None else right,
        ),
        "ptb": TaskResult(
            "left to right",
            "causal",
            Estimate(18.96 * math.exp(change), 0.31),
            math.log(18.96) + change,
            120_000,
            461,
            None if kl is None else ratio,
        ),
    }


def model(name: str, format: str, bits: float, kl: float, off: float, token: str = " whales;") -> ModelResult:
    """One model whose mean divergence and relative error are about these."""
    noise = random.Random(format[:12])
    return ModelResult(
        name=name,
        path="demo",
        format=format,
        formats={format: PARAMETERS - 18000, "bf16": 18000},
        container=format.split(":")[0],
        tried=True,
        quantizer="rtn",
        nbytes=round(PARAMETERS * bits / 8),
        parameters=PARAMETERS,
        bits_per_weight=bits,
        weights=weights(format, bits, off, noise),
        behaviour=behaviour(kl, noise, token),
        tasks=tasks(kl),
        speed=SpeedResult(
            "cpu", 0.4 + bits / 20, 180 / bits, 900 / math.sqrt(bits), round(PARAMETERS * bits / 6)
        ),
    )


def example(formats: Sequence[str] = tuple(FORMATS), hostile: bool = False) -> CompareReport:
    """A small Llama in some formats; `hostile` puts markup wherever text may come from a file."""
    strange = HOSTILE if hostile else ""
    base = ModelResult(
        name="demo" + strange,
        path="demo" + strange,
        format="bf16",
        formats={"bf16": PARAMETERS},
        container="folder",
        tried=False,
        quantizer="",
        nbytes=PARAMETERS * 2,
        parameters=PARAMETERS,
        bits_per_weight=16.0,
        behaviour=BehaviourResult(TOKENS, Estimate(18.42, 0.52), None),
        speed=SpeedResult("cpu", 0.9, 11.2, 220.0, PARAMETERS * 3),
        tasks=tasks(None),
    )
    models = [model(f + strange, f + strange, *FORMATS[f], token=strange or " whales;") for f in formats]
    names = tuple(
        t.name for t in (models[0].weights.by_tensor if models and models[0].weights else ()) if t.identical
    )
    identical = [IdenticalTensors(base.name, m.name, 272, names, ()) for m in models]
    machine = {
        "cpu": "AMD EPYC 7543" + strange,
        "threads": "2",
        "gpu": "",
        "system": "Linux 6.1",
        "python": "3.11.2",
        "torch": "2.13.0",
    }
    text = TextUsed("heldout.txt" + strange, 18_560, 4_200, 8, 512, TOKENS)
    notes = ("gptq:4bit-128g was calibrated on calibration.txt." + strange,)
    used = (
        TaskUsed(
            "lambada", "LAMBADA", "accuracy", "lambada.jsonl" + strange, 1_800_000, 0, 5_153, 0, 0, False
        ),
        TaskUsed(
            "ptb",
            "Penn Treebank" + strange,
            "perplexity",
            "ptb",
            450_000,
            82_430,
            0,
            2048,
            256,
            True,
        ),
    )
    return CompareReport(base, tuple(models), text, machine, tuple(identical), notes, "0.1.0", used)


def without(report: CompareReport, *parts: str) -> CompareReport:
    """The same report without ``behaviour`` (nor tasks), ``weights`` or ``speed``."""
    gone: dict[str, object] = dict.fromkeys(parts)
    ran = "behaviour" not in parts
    if not ran:
        gone["tasks"] = {}
    base, *models = (dataclasses.replace(m, **gone) for m in (report.base, *report.models))
    text, tasks = (report.text, report.tasks) if ran else (None, ())
    return dataclasses.replace(report, base=base, models=tuple(models), text=text, tasks=tasks)
