"""A file of the table, read into a :class:`~qformats_gguf.architectures.schema.Row`.

A file holds, besides what :class:`Row` and :class:`HFModel` say under the same names:

``include``
    Sets of tensors from ``common.toml``, in this order; then those of ``[outside]`` and ``[tensors]``, whose names are
    relative to the block. A value is the shape of the weight, or a table with ``shape`` and any of ``bias``, ``weight``
    (both true, false, a key, ``!key`` or ``key=2``), ``when`` (`weight` by another name), ``heads``, ``groups`` (their
    number ``count``, and the rows of each part ``of`` one), ``copy_of``, ``offset``, ``experts``, and ``to``: the name
    in GGUF, which only those need that ``gguf``'s own table of names lacks. With a list ``to``, each part is a tensor
    by itself, and ``heads`` has an item for each, empty where rows stay; ``parts`` says which there are in each if not
    one. ``squeeze`` leaves out a dimension of 1, and ``function`` may be ``-exp``.
    ``parameter`` is the ending in GGUF of a parameter that belongs to no module. Of one tensor GGUF makes several where
    ``split`` gives their names and sizes, ``from`` some row on, along the dimension ``along``, of each of ``groups`` (a
    number) of rows by itself; those that ``swapped`` lists have their last two dimensions exchanged.
    ``joined`` is the name of the whole tensor in older files.
``layers``, ``sparse``, ``mixers``
    Beginnings of names that only ``dense`` or ``sparse`` layers have, and which layers are sparse; that layers of the
    kinds of ``layer_types`` have, and what the other kind than attention is called; or that only layers have which
    are ``predicting`` further tokens.
``bias``
    Which of the biases ``@qkv``, ``@o``, ``@mlp`` and ``@norm`` of these sets there are.
``layer_norm``, ``epsilon``
    Key of the epsilon, where norms subtract the mean; and where they do not, if it is not ``rms_norm_eps``.
``writes``
    Keys of metadata that upstream's converter writes for this architecture and leaves out for others: ``head_dim`` (as
    ``key_length`` and ``value_length``; without it the size of a head must be what llama.cpp derives), ``vocab_size``,
    ``rope.dimension_count``.
``[metadata]``
    Keys beside those that all have. A value is the key of the configuration, or a table with ``config`` and any of
    ``type``, ``default``, ``write``, ``optional``, ``null``, ``zero``, ``compared`` and ``instead``; see
    :class:`MetaRule`.
``[limits]``, ``[constants]``
    Values of keys that llama.cpp computes, and what a configuration made from a file says beside the first of these.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from qformats.interfaces import evaluate
from qformats_gguf.architectures.checks import CHECKS, whole_heads
from qformats_gguf.architectures.derived import COMPLETE, RESTORE
from qformats_gguf.architectures.limits import Config, Limit
from qformats_gguf.architectures.metadata_rules import REQUIRED, MetaRule
from qformats_gguf.architectures.models import HFModel
from qformats_gguf.architectures.numbers import sizes
from qformats_gguf.architectures.pieces import PieceRule
from qformats_gguf.architectures.schema import Mixers, Row
from qformats_gguf.architectures.tensor_rules import Fused, If, TensorRule
from qformats_gguf.metadata import Value, boolean, f32, u32

__all__ = ["read_row"]

_MAKE: Mapping[str, Callable[[Any], Value]] = {"u32": u32, "f32": f32, "bool": boolean}
_FUSED = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps"),
}
"""What llama.cpp also loads as one; of experts, convert_hf_to_gguf.py --fuse-gate-up-exps writes it."""
_CAUSAL = Limit("is_causal", (True,), "llama.cpp runs this architecture as a causal model")
_PLAIN = {
    "silu": ("silu", "swish"),
    "gelu_pytorch_tanh": ("gelu_pytorch_tanh",),
    "relu2": ("relu2",),
}
"""Activations by their name in the table, and what else they are called."""
_NEUTRAL = {"expert_count": 0, "expert_used_count": 0, "tensor_data_layout": None, "pooling_type": None}


def read_row(path: Path) -> Row:
    """Read one file.

    Raises
    ------
    KeyError, ValueError
        If the file does not follow the syntax.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    given = content.pop
    arch = given("arch")
    sets = [_common()[name] for name in given("include", [])]
    biases = given("bias", {})
    block = given("block", "model.layers.{i}.")
    permute, offset = given("permute", False), float(given("norm_offset", 0))
    rules = []
    layers = given("layers", {})
    for found in (*sets, {"outside": given("outside", {}), "tensors": given("tensors", {})}):
        for where, prefix in (("outside", ""), ("tensors", block)):
            for name, value in found.get(where, {}).items():
                kind = next((k for k, parts in layers.items() if name.startswith(tuple(parts))), "")
                for each in _parts(value):
                    rules.append(
                        _tensor(arch, prefix + name, each | {"layers": kind}, biases, permute, offset)
                    )
    writes = given("writes", [])
    causal = given("causal", True)
    limits = [_CAUSAL] if causal else []
    constants = given("constants", {})
    activation = given("activation", "silu")
    if activation:
        key = given("activation_key", "hidden_act")
        called = activation.replace("_pytorch_tanh", " (its tanh approximation)").upper()
        told = "SiLU" if activation == "silu" else called
        limits.insert(0, Limit(key, _PLAIN[activation], f"llama.cpp computes {told}"))
        constants = {key: activation} | constants
    for key, each in given("limits", {}).items():
        limits.append(Limit(key, tuple(each["allowed"]), each["reason"]))
        constants.setdefault(key, each["allowed"][0] if each["allowed"] else None)
    own = [_metadata(key, value) for key, value in given("metadata", {}).items()]
    instead = {rule.key for rule in own}
    epsilon = given("epsilon", "rms_norm_eps"), given("layer_norm", None)
    metadata = [rule for rule in _usual(writes, *epsilon) if rule.key not in instead]
    metadata = [*(metadata if given("usual_metadata", True) else []), *own]
    mixers = Mixers(**given("mixers")) if "mixers" in content else None
    if mixers and not mixers.every:
        # An array tells them, and which layers have attention.
        metadata = [rule for rule in metadata if rule.config != "num_key_value_heads"]
    there = {rule.gguf.removeprefix("blk.{i}.") for rule in rules}
    sized = any(rule.config == "head_dim" for rule in metadata) and "head_dim" not in writes
    models = tuple(_model(name, each, sized) for name, each in given("models").items())
    scale, restore = given("attention_scale", None), given("restore", None)
    row = Row(
        name=path.stem,
        arch=arch,
        models=models,
        prefix=given("prefix", "model."),
        blocks=given("blocks", "num_hidden_layers"),
        tensors=tuple(rules),
        metadata=tuple(metadata),
        fused=tuple(
            Fused("blk.{i}." + name, tuple("blk.{i}." + part for part in parts))
            for name, parts in _FUSED.items()
            if there.issuperset(parts) and name not in there
        ),
        rope=tuple(given("rope", ())),
        yarn=tuple(given("yarn", ())),
        partial_rotary=given("partial_rotary", False),
        limits=tuple(limits),
        constants=constants,
        restore=RESTORE[restore] if restore else None,
        only=given("only", ""),
        neutral=_NEUTRAL | {"attention.causal": causal} | given("neutral", {}),
        junk=tuple(given("junk", (".rotary_emb.inv_freq",))),
        tells=given("tells", ""),
        output_required=given("output", "") == "required",
        window=given("window", 0),
        window_pattern=given("window_pattern", False),
        window_width=given("window_width", 0),
        local_theta=float(given("local_theta", 0)),
        unscaled_windows=given("unscaled_windows", False),
        attention_scale=(scale["key"], scale["blocks"]) if scale else None,
        sparse=next(iter(given("sparse", {}).items()), None),
        mixers=mixers,
        derived=given("derived", {}),
        restores=given("restores", {}),
        tolerated=tuple(given("tolerated", ())),
        causal=causal,
        around=given("around", ""),
        heads=tuple(given("heads", ())),
    )
    if content:
        raise ValueError(f"{path}: unknown keys {', '.join(content)}")
    return row


@lru_cache(maxsize=1)
def _common() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "table" / "common.toml").read_text(encoding="utf-8"))


@lru_cache(maxsize=64)
def _names(arch: str) -> Any:
    """Names of tensors in GGUF, by those in Transformers: what the gguf package knows of the architecture."""
    from gguf import get_tensor_name_map
    from gguf.constants import MODEL_ARCH_NAMES

    found = [number for number, name in MODEL_ARCH_NAMES.items() if name == arch]
    return get_tensor_name_map(found[0], 1) if found else None


def _gguf_name(arch: str, name: str) -> str:
    stem = name.replace("{i}", "0").replace(".{e}", "")
    names = _names(arch)
    found: str | None = None if names is None else names.get_name(stem)
    if found is None:
        raise ValueError(f"{arch}: gguf has no name for {name}; it needs `to`")
    return found.replace("blk.0.", "blk.{i}.") if "{i}" in name else found


def _presence(value: Any) -> bool | If:
    if not isinstance(value, str):
        return bool(value)
    if "=" in value:
        key, _, number = value.partition("=")
        return If(key, int(number))
    return If(value.removeprefix("!"), not value.startswith("!"))


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """What each tensor of GGUF is told, where one on disk becomes several."""
    given = dict(value) if isinstance(value, dict) else {"shape": value}
    if isinstance(given.get("to"), list):
        names = given["to"]
        parts = given.pop("parts", [[number] for number in range(len(names))])
        for to, heads, only in zip(names, given.pop("heads", [""] * len(names)), parts, strict=True):
            yield given | {"to": to, "heads": heads or None, "only": only}
        return
    split = given.pop("split", None)
    if split is None:
        yield given
        return
    axis, swapped, groups = given.pop("along", 0), given.pop("swapped", ()), given.pop("groups", "")
    joined = given.pop("joined", None)
    if joined:
        yield {**given, "to": joined, "when": "_joined"}
        given["when"] = "!_joined"
    start = given.pop("from", "0")
    for to, rows in split.items():
        stop = f"{start} + {rows}"
        yield {**given, "to": to, "piece": PieceRule(axis, start, stop, groups, to in swapped)}
        start = stop


def _tensor(
    arch: str, name: str, given: dict[str, Any], biases: Mapping[str, Any], permute: bool, norm_offset: float
) -> TensorRule:
    shape = tuple(given.pop("shape"))
    bias = given.pop("bias", False)
    if isinstance(bias, str) and bias.startswith("@"):
        bias = biases.get(bias[1:], False)
    gguf = given.pop("to", None) or _gguf_name(arch, name)
    heads = given.pop("heads", None)
    groups = given.pop("groups", None)
    weight = given.pop("weight", given.pop("when", True))
    rule = TensorRule(
        name,
        gguf,
        shape,
        weight=_presence(weight),
        bias=_presence(bias),
        permute=heads if permute else None,
        groups=(groups["count"], tuple(groups["of"])) if groups else None,
        only=tuple(given.pop("only", ())),
        force_f32=len(shape) == 1 or _always_f32(gguf),
        alias_of=given.pop("copy_of", None),
        offset=given.pop("offset", norm_offset if len(shape) == 1 and name.endswith("norm") else 0.0),
        experts=given.pop("experts", None),
        parameter=given.pop("parameter", None),
        layers=given.pop("layers"),
        piece=given.pop("piece", None),
        squeezed=given.pop("squeeze", False),
        negated_exp=given.pop("function", "") == "-exp",
    )
    if given:
        raise ValueError(f"{name}: unknown keys {', '.join(given)}")
    return rule


def _always_f32(gguf: str) -> bool:
    """Whether llama.cpp's converter keeps a matrix of this name in float32 in every file type."""
    plain = ("ffn_gate_inp", "ffn_gate_inp_shexp", "position_embd", "token_types")
    return gguf.endswith("_norm") or gguf.removeprefix("blk.{i}.") in plain


def _metadata(key: str, value: Any) -> MetaRule:
    given = dict(value) if isinstance(value, dict) else {"config": value}
    config = given.pop("config")
    make = _MAKE[given.pop("type", "u32")]
    optional = given.pop("optional", False)
    default = given.pop("default", None if optional else REQUIRED)
    if isinstance(default, str):
        default = _other(default)
    write, zero, compared = given.pop("write", True), given.pop("zero", False), given.pop("compared", True)
    instead, null = given.pop("instead", ""), given.pop("null", None)
    rule = MetaRule(key, make, config, default, write, optional, zero, compared, instead, null)
    if given:
        raise ValueError(f"{key}: unknown keys {', '.join(given)}")
    return rule


def _other(key: str) -> Callable[[Config], Any]:
    if key.isidentifier():
        return lambda config: config[key]
    return lambda config: evaluate(key, **sizes(config))


def _head_dim(config: Config) -> int:
    return int(config["hidden_size"]) // int(config["num_attention_heads"])


def _usual(writes: list[str], epsilon: str, layer_norm: str | None) -> Iterator[MetaRule]:
    yield MetaRule("block_count", u32, "num_hidden_layers")
    yield MetaRule("context_length", u32, "max_position_embeddings")
    yield MetaRule("embedding_length", u32, "hidden_size")
    yield MetaRule("feed_forward_length", u32, "intermediate_size")
    yield MetaRule("attention.head_count", u32, "num_attention_heads")
    yield MetaRule(
        "attention.head_count_kv", u32, "num_key_value_heads", default=_other("num_attention_heads")
    )
    if layer_norm is None:
        yield MetaRule("attention.layer_norm_rms_epsilon", f32, epsilon)
    else:
        yield MetaRule("attention.layer_norm_epsilon", f32, layer_norm)
    for key in ("key_length", "value_length"):
        yield MetaRule(f"attention.{key}", u32, "head_dim", default=_head_dim, write="head_dim" in writes)
    yield MetaRule("vocab_size", u32, "vocab_size", write="vocab_size" in writes)
    if "rope.dimension_count" in writes:
        yield MetaRule("rope.dimension_count", u32, "head_dim", default=_other("head_dim"))


def _model(name: str, given: dict[str, Any], sized: bool) -> HFModel:
    given = dict(given)
    checks = tuple(CHECKS[check] for check in given.pop("checks", ()))
    complete = given.pop("complete", None)
    neutral = given.pop("neutral", {}) | dict.fromkeys(given.pop("ignored", ()))
    found = HFModel(
        name,
        tuple(given.pop("classes")),
        defaults=given.pop("defaults", {}),
        complete=COMPLETE[complete] if complete else None,
        checks=(*checks, whole_heads) if sized else checks,
        judged=tuple(given.pop("judged", ())),
        fixed=given.pop("fixed", {}) | dict.fromkeys(given.pop("derived", ())),
        neutral=neutral,
        aliases=given.pop("aliases", {}),
        old_names=given.pop("old_names", {}),
        theta=float(given.pop("rope_theta", 10000.0)),
        within=given.pop("within", {}),
    )
    if given:
        raise ValueError(f"{name}: unknown keys {', '.join(given)}")
    return found
