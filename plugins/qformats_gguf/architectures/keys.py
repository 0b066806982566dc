"""Which keys of a ``config.json`` are understood, which mean nothing, and which are refused.

A key that a row does not know may change what the model computes. It is refused unless its value is neutral or
Transformers' own configuration class does not have it: what that class ignores changes nothing, and configurations
are full of it.
"""

from __future__ import annotations

import re
from typing import Any

from qformats.folder import config_class
from qformats_gguf.architectures.limits import Config, Problem
from qformats_gguf.architectures.mixers import MIXER_KEYS
from qformats_gguf.architectures.models import HFModel
from qformats_gguf.architectures.schema import Row
from qformats_gguf.architectures.tensor_rules import If
from qformats_gguf.architectures.windows import WINDOW_KEYS

__all__ = ["HARMLESS", "OLD_NAMES", "ROTARY", "SIZES", "strangers", "understood"]

OLD_NAMES = {"n_positions": "n_ctx", "max_position_embeddings": "max_sequence_length"}
"""Names that older configurations of the same model types use."""

ROTARY = (
    *("rope_parameters", "rope_scaling", "rope_theta"),
    *("partial_rotary_factor", "original_max_position_embeddings"),
)
"""Keys of a rotary embedding."""

SIZES = {
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("n_embd", "n_layer", "n_head"),
}
"""Keys that every configuration of these models must have."""

HARMLESS: Config = dict.fromkeys(
    (
        # What the model is called and where it comes from. With auto_map there is code in the folder, which
        # Transformers runs only if told to; the classes named in `architectures` are checked.
        *("architectures", "model_type", "name_or_path", "_name_or_path", "_commit_hash", "auto_map"),
        *("transformers_version", "tokenizer_class", "task_specific_params"),
        # How numbers are stored: the loader has read them.
        *("dtype", "torch_dtype", "quantization_config"),
        # What else a call returns, and how it is computed.
        *("output_hidden_states", "output_attentions", "return_dict", "use_return_dict", "torchscript"),
        *("use_cache", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
        *("chunk_size_feed_forward", "pretraining_tp"),
        # Heads other than the one that predicts tokens.
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "classifier_dropout"),
        # Training only.
        *("initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop"),
        *("attn_pdrop", "summary_first_dropout", "gradient_checkpointing"),
        # Which token is which: the tokenizer's conversion reads them, no layer does.
        *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id"),
    )
) | {
    # Cross attention that feeds on another model's states.
    "is_encoder_decoder": False,
    # Not a field of any class, but every class of Transformers applies it.
    "per_layer_config": {},
}
"""Keys that change no logits in any causal language model of Transformers: ``None`` whatever their value,
else as long as they have this one."""


def understood(row: Row, model: HFModel) -> set[str]:
    """Keys whose value is written, checked, or compared with the tensors."""
    keys = {limit.key for limit in row.limits} | row.derived.keys() | row.restores.keys()
    keys |= {row.sparse[1]} if row.sparse else set()
    for expression in (
        *(rule.config for rule in row.metadata),
        *row.derived.values(),
        *row.restores.values(),
    ):
        keys |= _names(expression)
    for tensor in row.tensors:
        keys |= {part.key for part in (tensor.weight, tensor.bias) if isinstance(part, If)}
        keys |= {tensor.experts} if tensor.experts else set()
        count, parts = tensor.groups or ("0", ())
        for dimension in (*tensor.shape, count, *parts, *(tensor.piece.expressions if tensor.piece else ())):
            keys |= _names(dimension)
    keys |= {*model.defaults, *model.fixed, *model.aliases, *model.judged, row.blocks}
    if row.window:
        keys |= WINDOW_KEYS
    if row.mixers:
        keys |= MIXER_KEYS | {"num_key_value_heads"}
    if row.attention_scale:
        keys.add(row.attention_scale[0])
    keys |= {old for new, old in OLD_NAMES.items() if new in keys} | {*model.old_names.values()}
    if row.local_theta:
        keys.add("rope_local_base_freq")
    return keys | set(ROTARY) if row.rope else keys


def _names(expression: str) -> set[str]:
    """Keys in a symbolic dimension."""
    return set(re.findall(r"[A-Za-z_]\w*", expression))


def strangers(config: Config, row: Row, model: HFModel, *, identified: bool) -> list[Problem]:
    """List keys of a configuration that may change the numbers and that the row does not know.

    Parameters
    ----------
    config : mapping
        Contents of ``config.json``.
    row, model : Row, HFModel
        What the model was recognised as.
    identified : bool
        Whether the configuration itself says that it is such a model. If not, there is no class to tell what is
        ignored: every unknown key is a problem.
    """
    neutral = {**HARMLESS, **model.neutral}
    known = understood(row, model)
    problems = []
    unknown = {}
    for key, value in config.items():
        if key in known or value is None:
            continue
        if key not in neutral:
            unknown[key] = value
        elif neutral[key] is not None and value != neutral[key]:
            reason = "the GGUF file cannot say it, so the numbers would differ"
            problems.append(Problem(key, value, (str(neutral[key]),), reason))
    if unknown and not identified:
        reason = "the file does not say whose model_type it is, so the key may change the numbers"
        return problems + [Problem(key, value, ("no such key",), reason) for key, value in unknown.items()]
    theirs = _fields(model.model_type) if unknown else {}
    if theirs is None:
        reason = "the model's code is in its folder, so the key may change the numbers"
        return problems + [Problem(key, value, ("no such key",), reason) for key, value in unknown.items()]
    reason = f"this version of Transformers gives it a meaning for {model.model_type} that is not known here"
    for key, value in unknown.items():
        if key in theirs and value != theirs[key]:
            problems.append(Problem(key, value, (str(theirs[key]),), reason))
    return problems


def _fields(model_type: str) -> dict[str, Any] | None:
    """Keys of Transformers' configuration class with their defaults, other names included; None if it has none."""
    try:
        theirs = config_class(model_type)
    except KeyError:
        return None
    return theirs.defaults | {alias: theirs.defaults.get(name) for alias, name in theirs.aliases.items()}
