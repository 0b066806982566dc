"""A model of some thousand weights: the demo's architecture and tokenizer, and random numbers."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from qformats.testing.weights import normal

__all__ = ["HIDDEN", "tiny_model"]

HIDDEN = 64
"""Columns of most weights, by default."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def tiny_model(folder: str | Path, hidden: int = HIDDEN) -> Path:
    """Write a llama of one block as a Hugging Face folder of float32.

    Parameters
    ----------
    folder : path-like
        Created with its parents.
    hidden : int
        Columns of most weights, a multiple of 64.

    Returns
    -------
    Path
        `folder`.

    Examples
    --------
    >>> import qformats, tempfile
    >>> from qformats.testing import tiny_model
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     model = qformats.open(tiny_model(scratch + "/model"))
    ...     model.architecture, model.tensors["model.layers.0.mlp.down_proj.weight"].shape
    ('llama', (64, 128))
    """
    from safetensors.torch import save_file

    folder, demo = Path(folder), files("qformats").joinpath("demo")
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        folder.joinpath(name).write_bytes(demo.joinpath(name).read_bytes())
    config = json.loads(demo.joinpath("config.json").read_bytes())
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": hidden // 2}
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 1}
    config |= {**heads, **sizes, "dtype": "float32"}
    folder.joinpath("config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    block = "model.layers.0."
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        f"{block}self_attn.q_proj.weight": (hidden, hidden),
        f"{block}self_attn.k_proj.weight": (hidden // 2, hidden),
        f"{block}self_attn.v_proj.weight": (hidden // 2, hidden),
        f"{block}self_attn.o_proj.weight": (hidden, hidden),
        f"{block}mlp.gate_proj.weight": (2 * hidden, hidden),
        f"{block}mlp.up_proj.weight": (2 * hidden, hidden),
        f"{block}mlp.down_proj.weight": (hidden, 2 * hidden),
        f"{block}input_layernorm.weight": (hidden,),
        f"{block}post_attention_layernorm.weight": (hidden,),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (config["vocab_size"], hidden),
    }
    tensors = {name: normal(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
