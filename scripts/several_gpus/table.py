"""The table of what was measured, in Markdown."""

from __future__ import annotations

from typing import Any

__all__ = ["of"]


def of(found: dict[str, Any]) -> str:
    """One table of all parts that are there."""
    rows = [("", "one GPU", "two GPUs")]
    rows += _ranks(found.get("ranks", []))
    rows += _calibration(found.get("calibration", []))
    rows += _placing(found.get("placing", []))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([found["where"], "", lines[0], "| --- | --- | --- |", *lines[1:]])


def _ranks(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    rows = []
    for bits, layers in dict.fromkeys((each["bits"], each["layers"]) for each in found):
        pair = [each for each in found if (each["bits"], each["layers"]) == (bits, layers)]
        one = next((each for each in pair if each["ranks"] == 1), None)
        two = next((each for each in pair if each["ranks"] == 2), None)
        name = f"GLM-130B, {'int4' if bits == 4 else 'float16'}, {layers} layers"

        def row(title: str, key: str, form: str, name: str = name, one: Any = one, two: Any = two) -> None:
            rows.append((f"{name}: {title}", *(_cell(each, key, form) for each in (one, two))))

        row("tokens/s", "tokens_per_second", "{:.1f}")
        row("prompt of 512, tokens/s", "prompt_per_second", "{:,.0f}")
        row("share of a step in NCCL's kernels", "communication_step", "{:.0%}")
        row("share of a prompt in NCCL's kernels", "communication_prompt", "{:.0%}")
        row("weights a card, GB", "weights", "{:.2f}")
        row("planned", "planned_weights", "{:.2f}")
        row("most memory a card while writing, GB", "most", "{:.2f}")
        row("planned", "planned_running", "{:.2f}")
        if one is not None and two is not None:
            row("furthest logit from one GPU's, of the largest", "apart", "{:.1e}")
            row("difference from one GPU's logits, of their norm", "apart_norm", "{:.1e}")
            row("same likeliest token", "same_top", "{:.1%}")
            row("first tokens that are the same, of 65", "same_tokens", "{}")
    return rows


def _calibration(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    if not found:
        return []
    one, two = found[0], found[1] if len(found) > 1 else None

    def row(title: str, key: str, form: str) -> tuple[str, str, str]:
        return f"GPTQ, 8 B, 128 x 2048: {title}", _cell(one, key, form), _cell(two, key, form)

    memory = [
        ", ".join(f"{each:.1f}" for each in part["gigabytes"][: part["devices"]]) if part else ""
        for part in (one, two)
    ]
    faster = f"{one['seconds'] / two['seconds']:.2f}" if two else ""
    return [
        row("seconds", "seconds", "{:.1f}"),
        ("times as fast", "", faster),
        row("seconds a block", "per_block", "{:.2f}"),
        ("most memory of each card, GB", memory[0], memory[1]),
        row("same codes in the first layers", "same_codes_first", "{:.2%}"),
        row("same codes in all", "same_codes", "{:.2%}"),
        row("error of layers, times one GPU's, in the mean", "error_ratio_mean", "{:.4f}"),
        row("least", "error_ratio_least", "{:.4f}"),
        row("most", "error_ratio_most", "{:.4f}"),
    ]


def _placing(found: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    rows = []
    for model, format in dict.fromkeys((each["model"], each["format"]) for each in found):
        pair = [
            next((e for e in found if (e["model"], e["format"], e["cards"]) == (model, format, cards)), None)
            for cards in (1, 2)
        ]
        name = f"placed, {model}, {format}"
        for title, key, form in (
            ("tokens/s", "tokens_per_second", "{:.1f}"),
            ("prompt of 512, tokens/s", "prompt_per_second", "{:,.0f}"),
            ("first tokens that are the same, of 33", "same_tokens", "{}"),
        ):
            rows.append((f"{name}: {title}", *(_cell(each, key, form) for each in pair)))
        held = [" + ".join(f"{card:.1f}" for card in each["weights"]) if each else "" for each in pair]
        rows.append((f"{name}: weights, GB", *held))
    return rows


def _cell(found: dict[str, Any] | None, key: str, form: str) -> str:
    value = None if found is None else found.get(key)
    return "" if value is None else form.format(value)
