#!/usr/bin/env python3
"""Record what the installed Transformers says about the types that have a row in an architecture's table.

Writes qformats/folder/config_classes.json. Run it after the version in constraints.txt has changed, and
after an architecture was added.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import asdict
from functools import lru_cache
from typing import Any

# No two of these lengths, their sums and products are equal, so that a shape tells what it is made of.
SIZES = {
    "vocab_size": 1009,
    "hidden_size": 96,
    "intermediate_size": 211,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 20,
    "max_position_embeddings": 503,
    "pad_token_id": 0,
}
OTHERS = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
EXPERTS = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 7),
    "moe_intermediate_size": 37,
    "shared_expert_intermediate_size": 59,
    "shared_intermediate_size": 59,
    "n_shared_experts": 3,
    "first_k_dense_replace": 1,
    "q_lora_rank": 41,
    "kv_lora_rank": 43,
    "qk_rope_head_dim": 10,
    "qk_nope_head_dim": 14,
    "v_head_dim": 22,
}
LENGTHS = (
    *("vocab_size", "hidden_size", "intermediate_size", "2*intermediate_size", "head_dim", "3*hidden_size"),
    *(
        "num_attention_heads*head_dim",
        "num_key_value_heads*head_dim",
        "max_position_embeddings",
        "4*hidden_size",
    ),
    *("num_attention_heads*head_dim+2*num_key_value_heads*head_dim", "num_attention_heads", "1"),
    *("num_key_value_heads", "num_attention_heads*head_dim+2*head_dim", "2*hidden_size"),
    *("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "shared_intermediate_size", "2*shared_intermediate_size"),
    *(
        "n_shared_experts*moe_intermediate_size",
        "q_lora_rank",
        "kv_lora_rank",
        "kv_lora_rank+qk_rope_head_dim",
    ),
    "num_attention_heads*qk_nope_head_dim+num_attention_heads*qk_rope_head_dim",
    *(
        "num_attention_heads*qk_nope_head_dim+num_attention_heads*v_head_dim",
        "num_attention_heads*v_head_dim",
    ),
)
FIRST = "first_k_dense_replace"
"""Layers from this one on are of another kind."""
OTHER_NAMES = {"gpt2": {"intermediate_size": "n_inner"}}
DERIVED = ("head_dim", "num_key_value_heads", "n_inner")
# Structure may depend on a word; those of these keys are read elsewhere, or are tried by name.
WORDS = ("hidden_act", "activation_function", "hidden_activation", "activation")
# Neither these nor any number with a fraction changes which tensors there are.
NEVER = re.compile(
    r"rope_.*|.*token_id|dtype|.*dropout|.*_pdrop|use_cache|pretraining_tp|.*token_ids|id2label|label2id|architectures"
    r"|return_dict|output_.*|problem_type|name_or_path|transformers_version|chunk_size_feed_forward|is_encoder_decoder"
)


class NoLayoutError(Exception):
    """Names or shapes follow from the configuration in a way that a layout cannot say."""


def types() -> list[str]:
    """Types of models that have a row in an architecture's table and a class in Transformers."""
    from qformats.work.compat import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from qformats_gguf.architectures.rows import ROWS

    found = {model.model_type for row in ROWS.values() for model in row.models}
    return sorted(found & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def tensors(model_type: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model as Transformers builds and saves it."""
    return _tensors(json.dumps({"model_type": model_type, **config}, sort_keys=True))


@lru_cache(maxsize=256)
def _tensors(config: str) -> dict[str, tuple[int, ...]]:
    from pathlib import Path

    from qformats.folder.outline import _built

    parsed = json.loads(config)
    return _built(parsed, Path("config.json"), parsed["model_type"])


def built(model_type: str, config: dict[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """The same, or None where Transformers does not take the configuration."""
    from qformats.errors import CheckpointError

    try:
        return tensors(model_type, config)
    except CheckpointError:
        return None


def layout(model_type: str, names: dict[str, str], defaults: dict[str, Any]) -> dict[str, Any] | None:
    """Tensors before, of, and after the layers, as `expanded` takes them; None where they do not follow so simply."""
    for wide in (True, False):
        sizes = {key: value for key, value in (SIZES | EXPERTS).items() if wide or key != "head_dim"}
        spelled = {
            names.get(key, key): value
            for key, value in sizes.items()
            if key in SIZES or key in defaults or key in names
        }
        try:
            return _layout(model_type, names, defaults, spelled)
        except NoLayoutError:
            continue
    return None


def _layout(
    model_type: str, names: dict[str, str], defaults: dict[str, Any], spelled: dict[str, Any]
) -> dict[str, Any]:
    flags, usual = switches(model_type, spelled, defaults)
    base = spelled | {flag: False for flag in flags}
    conditions: dict[str, str] = {}
    whole: dict[str, tuple[int, ...]] = {}
    plain = tensors(model_type, base)
    for flag in flags:
        other = tensors(model_type, base | {flag: True})
        conditions |= dict.fromkeys(other.keys() - plain.keys(), flag)
        conditions |= dict.fromkeys(plain.keys() - other.keys(), f"!{flag}")
        whole |= other
    whole |= plain
    told = {*defaults, *(names[key] for key in defaults if key in names)}
    own = {key: value for key, value in spelled.items() if key in told}
    lengths = products(names, own | {"head_dim": spelled.get("head_dim", 16)})
    found: dict[str, Any] = {"before": [], "layer": [], "after": []}
    entries: dict[str, tuple[str, list[Any]]] = {}
    seen = False
    for name in _ordered(whole, plain, model_type, base, flags):
        inside = re.fullmatch(r"(.*?\.)(\d+)(\..*)", name)
        seen |= inside is not None
        part = "layer" if inside else "after" if seen else "before"
        spelt = f"{inside[1]}{{0}}{inside[3]}" if inside else name
        count = ""
        repeated = re.fullmatch(r"(.*\.)(\d+)(\..*|)", spelt) if inside else None
        if repeated is not None:
            spelt = f"{repeated[1]}{{1}}{repeated[3]}"
            numbers = {
                int(m[1])
                for each in whole
                if (m := re.fullmatch(_number(spelt, inside[2] if inside else ""), each))
            }
            count = lengths.get(max(numbers) + 1, "")
            if numbers != set(range(max(numbers) + 1)) or not count:
                raise NoLayoutError
        shape = whole[name]
        if not all(length in lengths for length in shape):
            raise NoLayoutError
        where = _layers(spelt, whole, spelled) if inside else ""
        entry = [spelt, [lengths[length] for length in shape], conditions.get(name, "")]
        entry += [count, where] if where else [count] if count else []
        if entries.setdefault(spelt, (part, entry)) != (part, entry):
            raise NoLayoutError
    for part, entry in entries.values():
        found[part].append(entry)
    found["layers"] = names.get("num_hidden_layers", "num_hidden_layers")
    found["derived"] = [key for key in DERIVED if derives(model_type, spelled, key, defaults)]
    found["as usual"] = usual
    _verify(model_type, found, spelled, flags)
    return found


def _layers(template: str, whole: Collection[str], spelled: dict[str, Any]) -> str:
    """Which layers have a tensor, if not all."""
    pattern = re.escape(template).replace(r"\{0\}", r"(\d+)").replace(r"\{1\}", r"\d+")
    found = {int(match[1]) for name in whole if (match := re.fullmatch(pattern, name))}
    first = spelled.get(FIRST, 0)
    every = set(range(SIZES["num_hidden_layers"]))
    if found not in (every, {n for n in every if n < first}, {n for n in every if n >= first}):
        raise NoLayoutError
    return "" if found == every else f"<{FIRST}" if 0 in found else f">={FIRST}"


def _number(template: str, layer: str) -> str:
    return re.escape(template).replace(r"\{0\}", layer).replace(r"\{1\}", r"(\d+)")


def _ordered(
    whole: dict[str, Any], plain: dict[str, Any], model_type: str, base: dict[str, Any], flags: list[str]
) -> list[str]:
    """All names in the class's order: that of the fullest variant, with what only others have behind its like."""
    variants = [list(plain), *(list(tensors(model_type, base | {flag: True})) for flag in flags)]
    fullest = tensors(model_type, base | dict.fromkeys(flags, True))
    order = [name for name in fullest if name in whole]
    for variant in variants:
        for before, name in zip([None, *variant], variant, strict=False):
            if name not in order:
                order.insert(order.index(before) + 1 if before in order else 0, name)
    return order


def products(names: dict[str, str], spelled: dict[str, Any]) -> dict[int, str]:
    """What each length is made of."""
    lengths: dict[int, str] = {}
    for spelt in LENGTHS:
        terms, total = [], 0
        for term in spelt.split("+"):
            factors = [names.get(factor, factor) for factor in term.split("*")]
            if not all(factor.isdigit() or factor in spelled for factor in factors):
                break
            value = 1
            for factor in factors:
                value *= int(factor) if factor.isdigit() else spelled[factor]
            terms.append("*".join(factors))
            total += value
        else:
            # The first says it where hidden_size is the width of all heads.
            lengths.setdefault(total, "+".join(terms))
    return lengths


def switches(
    model_type: str, spelled: dict[str, Any], defaults: dict[str, Any]
) -> tuple[list[str], dict[str, Any]]:
    """Keys that add or remove tensors, and those that have to have their default for a layout to hold."""
    plain = built(model_type, spelled)
    if plain is None:
        raise NoLayoutError
    flags, usual = ["tie_word_embeddings"], {}
    for key, default in defaults.items():
        if key in spelled or key in flags or NEVER.fullmatch(key) or isinstance(default, float):
            continue
        if key in WORDS or isinstance(default, str | dict):
            usual[key] = default
            continue
        if isinstance(default, bool):
            tried: list[Any] = [not default]
        elif isinstance(default, int):
            tried = [default + 1]
        else:
            tried = [True, 7, 0.5, [1] * 4, ["full_attention", "sliding_attention"] * 2]
        others = [
            other for value in tried if (other := built(model_type, spelled | {key: value})) is not None
        ]
        if not others:
            usual[key] = default
        for other in others:
            if other == plain:
                continue
            both = other.keys() & plain.keys()
            if isinstance(default, bool) and all(other[name] == plain[name] for name in both):
                flags.append(key)
            else:
                usual[key] = default
    return flags, usual


def _verify(model_type: str, found: dict[str, Any], spelled: dict[str, Any], flags: list[str]) -> None:
    """Other sizes, and every pair of flags, must give what the class has."""
    from itertools import combinations

    from qformats.folder.shapes import expanded

    # Other sizes, in other proportions.
    changed = {key: value * 2 for key, value in spelled.items() if value not in (0, 4)}
    changed |= {key: OTHERS[kind] for kind in OTHERS for key in spelled if spelled[key] == SIZES[kind]}
    for on in ((), *((flag,) for flag in flags), *combinations(flags, 2)):
        config = {**spelled, **changed, **dict.fromkeys(flags, False), **dict.fromkeys(on, True)}
        expected = built(model_type, config)
        if expected is None or expanded({"model_type": model_type, **config}, found) != expected:
            raise NoLayoutError


def derives(model_type: str, spelled: dict[str, Any], key: str, defaults: dict[str, Any]) -> bool:
    """Whether the class computes the value of a key: of one that is null, or one that it has no default for."""
    if key == "head_dim" and key not in spelled:
        return True
    if key not in spelled or (key == "head_dim" and defaults.get(key) is not None):
        return False
    given = {name: value for name, value in spelled.items() if name != key}
    return built(model_type, {**given, key: None} if key in defaults else given) is not None


def record() -> str:
    """Content of the file."""
    import transformers

    from qformats.folder.config_class import ask, ask_encoders
    from qformats.work.compat import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    classes = {}
    for model_type in types():
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
        "encoders": ask_encoders(),
    }
    text = json.dumps(content, indent=1, allow_nan=False)
    # A list of words on one line.
    text = re.sub(r"\[\s+((?:\"[^\"]*\",?\s+)*)\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    return text + "\n"


if __name__ == "__main__":
    from qformats.folder.config_class import RECORD

    RECORD.write_text(record(), encoding="utf-8")
