"""Folders changed in place, and what Transformers makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
IDS = [1, 7, 40, 3, 25, 11, 60, 2]


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the tensors of a folder of one file."""
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def write_index(folder: Path, where: Mapping[str, str], name: str = f"{WEIGHTS}.index.json") -> None:
    """Write an index of weights."""
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": dict(where)}))


def split(folder: Path, parts: int = 2) -> dict[str, str]:
    """Turn a folder of one file into shards with an index, which is returned."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    where: dict[str, str] = {}
    for number in range(parts):
        file = f"model-{number + 1:05d}-of-{parts:05d}.safetensors"
        own = {name: state[name] for name in list(state)[number::parts]}
        save_file(own, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(own, file)
    write_index(folder, where)
    return where


def transformers_logits(folder: Path) -> np.ndarray:
    """What Transformers computes, whatever it had to fill in or leave out."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return logits(loaded.eval())


def logits(model: Any) -> np.ndarray:
    """Logits of some tokens."""
    with torch.inference_mode():
        return model(torch.tensor([IDS]), use_cache=False).logits[0].float().numpy()


def agree(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Whether logits are the same but for the order of additions."""
    return float(np.abs(found - wanted).max()) <= tolerance * max(1.0, float(np.abs(wanted).max()))
