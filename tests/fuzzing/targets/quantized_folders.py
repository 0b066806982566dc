"""Folders of each family of formats: their configuration, their fields, and what says how they are quantized."""

from __future__ import annotations

from pathlib import Path

from fuzzing.mutators import values

from qformats_bitsandbytes.quant_state import QuantState

from .gguf_files import read_model
from .target import Target

__all__ = ["FAMILIES", "TARGETS"]

FAMILIES = (
    *(
        "awq",
        "bitsandbytes",
        "compressed-tensors",
        "eetq",
        "fp8",
        "glm",
        "gptq",
        "hqq",
        "mlx",
        "modelopt",
        "mxfp4",
    ),
    *("quanto", "torchao"),
)
"""Those that have seeds: a folder of each way in which they store weights."""


def _quant_state(folder: Path) -> None:
    QuantState.parse((folder / "state.json").read_bytes(), "nf4")


TARGETS = (
    *(
        Target(f"folder-{family}", read_model, weights={".json": 5, ".safetensors": 3}, heavy=True)
        for family in FAMILIES
    ),
    Target("quant-state", _quant_state, file="state.json", change=values.change),
)
