#!/usr/bin/env python3
"""Record what the installed Transformers says about the types that have a row in an architecture's table.

Writes qformats/folder/config_classes.json. Run it after the version in constraints.txt has changed.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

TYPES = ("llama", "mistral", "qwen2", "qwen3", "glm", "gpt2")
# No two of these lengths and their products are equal, so that a shape tells what it is made of.
SIZES = {
    "vocab_size": 1009,
    "hidden_size": 96,
    "intermediate_size": 211,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 20,
    "max_position_embeddings": 503,
    "pad_token_id": 0,
}
LENGTHS = (
    *("vocab_size", "hidden_size", "intermediate_size", "2*intermediate_size", "head_dim", "3*hidden_size"),
    *("num_attention_heads*head_dim", "num_key_value_heads*head_dim", "max_position_embeddings"),
)
OTHER_NAMES = {"gpt2": {"intermediate_size": "n_inner"}}
FLAGS = ("attention_bias", "mlp_bias")
DERIVED = ("head_dim", "num_key_value_heads", "n_inner")


def tensors(model_type: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model as Transformers builds it."""
    from pathlib import Path

    from qformats.folder.outline import _built

    return _built({"model_type": model_type, **config}, Path("config.json"), model_type)


def layout(model_type: str, names: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any]:
    """Tensors before, of, and after the layers: name, what its lengths are made of, and the key that it depends on."""
    spelled = {names.get(key, key): value for key, value in SIZES.items()}
    lengths = {}
    for product in LENGTHS:
        factors = [names.get(factor, factor) for factor in product.split("*")]
        value = 1
        for factor in factors:
            value *= int(factor) if factor.isdigit() else spelled[factor]
        assert lengths.setdefault(value, "*".join(factors)) == "*".join(factors)
    off = dict.fromkeys(FLAGS, False)
    plain = tensors(model_type, {**spelled, **off, "tie_word_embeddings": True})
    whole = tensors(model_type, {**spelled, **dict.fromkeys(FLAGS, True), "tie_word_embeddings": False})
    conditions = dict.fromkeys(plain, "")
    for flag in FLAGS:
        with_it = tensors(model_type, {**spelled, **off, flag: True, "tie_word_embeddings": True})
        conditions |= dict.fromkeys(with_it.keys() - plain.keys(), flag)
    found: dict[str, Any] = {"before": [], "layer": [], "after": []}
    seen = False
    for name, shape in whole.items():
        inside = re.fullmatch(r"(.*\.)(\d+)(\..*)", name)
        seen |= inside is not None
        if inside is not None and inside[2] != "0":
            continue
        part = "layer" if inside else "after" if seen else "before"
        spelt = f"{inside[1]}{{}}{inside[3]}" if inside else name
        found[part].append([spelt, [lengths[n] for n in shape], conditions.get(name, "!tie_word_embeddings")])
    found["layers"] = names.get("num_hidden_layers", "num_hidden_layers")
    found["derived"] = [key for key in DERIVED if derives(model_type, spelled, key, defaults)]
    found["as usual"] = {
        key: defaults[key]
        for key in ("hidden_act", "activation_function", "add_cross_attention")
        if key in defaults
    }
    return found


def derives(model_type: str, spelled: dict[str, Any], key: str, defaults: dict[str, Any]) -> bool:
    """Whether the class computes the value of a key: of one that is null, or one that it has no default for."""
    from qformats.errors import CheckpointError

    if key not in spelled or (key == "head_dim" and defaults.get(key) is not None):
        return False
    given = {name: value for name, value in spelled.items() if name != key}
    try:
        tensors(model_type, {**given, key: None} if key in defaults else given)
    except CheckpointError:
        return False
    return True


def record() -> str:
    """Content of the file."""
    import transformers

    from qformats.folder.config_class import ask
    from qformats.work.compat import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = {}
    for model_type in TYPES:
        told = ask(model_type)
        name = str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
        names = {**told.aliases, **OTHER_NAMES.get(model_type, {})}
        classes[model_type] = {
            "model_class": name,
            "ties": dict(getattr(transformers, name)._tied_weights_keys),
            **asdict(told),
            "layout": layout(model_type, names, told.defaults),
        }
    content = {
        "transformers": transformers.__version__,
        "classes": classes,
        "causal_types": sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    # A list of words on one line.
    text = re.sub(r"\[\s+((?:\"[^\"]*\",?\s+)*)\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return text + "\n"


if __name__ == "__main__":
    from qformats.folder.config_class import RECORD

    RECORD.write_text(record(), encoding="utf-8")
