"""Folders whose last block predicts further tokens, as they are published: Transformers' classes do not save it."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["FURTHER", "build"]

FURTHER = ("deepseek_v3", "glm4_moe", "glm4_moe_lite", "qwen3_next")


def build(name: str, folder: Path) -> Path:
    """Write the model `name` with a block more, which is like its last one, and what is around it."""
    import torch
    from safetensors.torch import load_file, save_file

    from models import architectures

    architectures.build(name, folder)
    config, tensors = (
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
    )
    blocks, hidden, vocabulary = (config[key] for key in ("num_hidden_layers", "hidden_size", "vocab_size"))
    last = f"model.layers.{blocks - 1}."
    own = "mtp." if name == "qwen3_next" else f"model.layers.{blocks}."
    within = "mtp.layers.0." if name == "qwen3_next" else own
    around = {"eh_proj": (hidden, 2 * hidden), "enorm": (hidden,), "hnorm": (hidden,)}
    around |= {"embed_tokens": (vocabulary, hidden), "shared_head.head": (vocabulary, hidden)}
    around |= {"shared_head.norm": (hidden,)}
    if name == "qwen3_next":
        around = {"fc": (hidden, 2 * hidden), "norm": (hidden,)}
        around |= {"pre_fc_norm_embedding": (hidden,), "pre_fc_norm_hidden": (hidden,)}
    else:
        config["num_nextn_predict_layers"] = 1
    generator = torch.Generator().manual_seed(7)
    more = {f"{own}{part}.weight": torch.randn(shape, generator=generator) for part, shape in around.items()}
    more |= {
        key.replace(last, within): value.clone() for key, value in tensors.items() if key.startswith(last)
    }
    save_file(tensors | more, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder
