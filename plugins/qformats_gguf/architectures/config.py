"""From ``config.json`` to a configuration with every key explicit, and from metadata back to one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

import numpy as np

from qformats.errors import CheckpointError, ConfigError
from qformats.folder import config_class
from qformats.interfaces import Values, evaluate
from qformats_gguf.architectures import llama3, longrope, mixers, rope, windows
from qformats_gguf.architectures.keys import OLD_NAMES, ROTARY, SIZES, understood
from qformats_gguf.architectures.limits import Config, Problem
from qformats_gguf.architectures.metadata_rules import REQUIRED, MetaRule
from qformats_gguf.architectures.models import HFModel
from qformats_gguf.architectures.numbers import config_number, metadata_number, sizes
from qformats_gguf.architectures.schema import Row
from qformats_gguf.architectures.tensor_rules import If
from qformats_gguf.metadata import Keys, Metadata, ValueType

__all__ = ["PREDICTING", "computed", "limits", "normalize", "predicting", "restore"]

PREDICTING = "nextn_predict_layers"

_DERIVED = {"num_key_value_heads", "head_dim", "n_inner"}
"""Keys whose value follows from others where it is null."""
_INTEGERS = (ValueType.U32, ValueType.I32, ValueType.U64, ValueType.I64, ValueType.U16, ValueType.I16)


def normalize(config: Config, model: HFModel, row: Row, source: str) -> dict[str, Any]:
    """Fill in what ``config.json`` leaves to the configuration class.

    Returns
    -------
    dict
        A copy with every key that the row's rules need, and ``rope_parameters`` in the form of
        Transformers 5.

    Raises
    ------
    CheckpointError
        If a size is missing.
    """
    full = deepcopy(dict(config))
    _, theirs = _class(model)
    for alias, key in {**theirs, **model.aliases}.items():
        if alias not in full or key in model.aliases:
            continue
        value = full.pop(alias)
        # The table may know a key by what is another name for it in Transformers, whose other names win.
        full[key] = full.get(key, value) if theirs.get(key) == alias else value
    full |= model.fixed
    for key, old in {**OLD_NAMES, **model.old_names}.items():
        if full.get(key) is None and full.get(old) is not None:
            full[key] = full[old]
    assumed = defaults(row, model)
    for key, default in assumed.items():
        full.setdefault(key, default)
    known = understood(row, model) - {*model.aliases, *model.old_names.values()}
    for key in known & _DERIVED:
        full.setdefault(key, None)
    if model.complete is not None:
        for key in sorted(SIZES & known):
            if full.get(key) is None:
                raise CheckpointError(source, f"no {key!r}", f"a {model.model_type} configuration")
            config_number(full[key], key, source, whole=True)
        model.complete(full)
    written = [rule for rule in row.metadata if rule.write and not rule.computed]
    for rule in written:
        if rule.config not in full and rule.config not in row.derived and not rule.optional:
            raise CheckpointError(source, f"no {rule.config!r}", f"a {model.model_type} configuration")
    if "num_key_value_heads" in known and full["num_key_value_heads"] is None:
        full["num_key_value_heads"] = full["num_attention_heads"]
    if "head_dim" in known and full["head_dim"] is None:
        full["head_dim"] = _size(full, "hidden_size", source) // _size(full, "num_attention_heads", source)
    if "n_inner" in known and full["n_inner"] is None:
        full["n_inner"] = 4 * _size(full, "n_embd", source)
    _derive(full, row.derived, source)
    for rule in written:
        if rule.optional and full.get(rule.config) is None:
            continue
        if rule.make(0).type is ValueType.BOOL:
            Values(full, source).flag(rule.config)
            continue
        config_number(
            full[rule.config],
            rule.config,
            source,
            whole=rule.make(0).type is not ValueType.F32,
            zero=rule.zero,
        )
    for key, default in assumed.items():
        if isinstance(default, int) and not isinstance(default, bool) and full[key] is not None:
            config_number(full[key], key, source, whole=True, zero=True)
    if row.mixers:
        mixers.complete(full, row.mixers, source)
    if row.window:
        windows.complete(full, row.window, source)
    if row.local_rope:
        full["local_rope_parameters"] = rope.local(full, source, row.local_theta or model.theta)
    if row.rope:
        one = rope.of_global_layers(full) if row.local_rope else full
        full["rope_parameters"] = rope.standard(one, source, model.theta, long="longrope" in row.rope)
        if "alpha" in row.rope:
            full["rope_parameters"] = rope.stretched(full["rope_parameters"], full["head_dim"])
        full.pop("rope_scaling", None)
        full.pop("rope_theta", None)
    return full


def defaults(row: Row, model: HFModel) -> dict[str, Any]:
    """What a configuration need not say: defaults of Transformers' class for the keys that the row uses.

    Sizes that no model shares with another are not among them: a configuration without them is broken.
    """
    theirs, _ = _class(model)
    used = understood(row, model) - set(ROTARY) - SIZES
    return {key: value for key, value in theirs.items() if key in used} | dict(model.defaults)


def _constant(value: Any, config: Config) -> Any:
    """What a configuration made from a file says: the same for all, or true ``unless`` another key has a value."""
    return config.get(value["unless"]) != value["is"] if isinstance(value, Mapping) else value


def _derive(config: dict[str, Any], rules: Mapping[str, str], source: str) -> None:
    """Keys that follow from others, in place."""
    for key, expression in rules.items():
        try:
            config[key] = evaluate(expression, **sizes(config))
        except ConfigError as error:
            found = f"no numbers from which {key} follows"
            raise CheckpointError(source, found, f"whole numbers for {expression}") from error


def _class(model: HFModel) -> tuple[dict[str, Any], dict[str, str]]:
    """Defaults of Transformers' class, and other names of its keys."""
    try:
        found = config_class(model.model_type)
    except KeyError:
        # A model whose code is in its folder.
        return {}, {}
    return found.defaults, found.aliases


def _size(config: Config, key: str, source: str) -> int:
    config_number(config[key], key, source, whole=True)
    return int(config[key])


def limits(config: Config, row: Row, model: HFModel) -> list[Problem]:
    """List what llama.cpp would compute differently from Transformers."""
    found = [
        Problem(limit.key, config[limit.key], tuple(map(str, limit.allowed)) or ("null",), limit.reason)
        for limit in row.limits
        if config.get(limit.key) is not None and config[limit.key] not in limit.allowed
    ]
    if row.window:
        found += windows.problems(config)
    if row.local_rope and (kind := config["local_rope_parameters"]["rope_type"]) != "default":
        reason = "llama.cpp scales no rotary embedding of sliding layers"
        found.append(Problem("rope_parameters.sliding_attention.rope_type", kind, ("default",), reason))
    if row.unscaled_windows and windows.slide(config):
        own, theirs = (config[key]["rope_theta"] for key in ("local_rope_parameters", "rope_parameters"))
        where, reason = (
            "rope_parameters.sliding_attention.rope_theta",
            "llama.cpp has one base for all layers",
        )
        found += [] if own == theirs else [Problem(where, own, (str(theirs),), reason)]
    if row.attention_scale:
        key, scale = row.attention_scale[0], _attention_scale(row, config)
        if config[key] != scale:
            found.append(
                Problem(key, config[key], (str(scale),), "llama.cpp scales attention by this number")
            )
    return found + [problem for check in model.checks if (problem := check(config)) is not None]


def _attention_scale(row: Row, config: Config) -> int:
    """What llama.cpp divides attention scores by, squared."""
    if row.attention_scale is not None and config["num_hidden_layers"] == row.attention_scale[1]:
        return int(config["hidden_size"]) // int(config["num_attention_heads"])
    return int(config["head_dim"])


def restore(
    metadata: Metadata,
    row: Row,
    names: Collection[str],
    extra: Mapping[str, np.ndarray],
    source: str,
) -> tuple[dict[str, Any], list[Problem]]:
    """Configuration of the model in a GGUF file, and the keys that it cannot express.

    Parameters
    ----------
    metadata : Metadata
        All of the file's.
    row : Row
        The row of its architecture.
    names : collection of str
        GGUF names of its tensors.
    extra : mapping of str to numpy.ndarray
        Values of those small tensors that stand for configuration (``rope_freqs.weight``).
    source : str
        File, for messages.
    """
    prefix = row.arch + "."
    model = row.models[0]
    config: dict[str, Any] = {"architectures": [model.architectures[0]], "model_type": model.model_type}
    known = {"general.architecture", prefix + PREDICTING}
    for rule in row.metadata:
        key = rule.under(prefix)
        known.add(key)
        if rule.instead and key not in metadata:
            known.add(prefix + rule.instead)
        if rule.config == "vocab_size":
            continue
        value = _read(metadata, key, rule, config, source)
        if rule.computed:
            if value is not None and rule.compared and value != (expected := computed(rule, config)):
                raise CheckpointError(source, f"{key} = {value}", f"{expected}, which is {rule.config}")
            continue
        if config.setdefault(rule.config, value) != value:
            raise CheckpointError(
                source, f"{key} = {value}", f"{config[rule.config]}, the model's {rule.config}"
            )
    further = predicting(metadata, row.arch, source)
    names = _without_further(config, row, further, names, source)
    _derive(config, row.restores, source)
    config["vocab_size"] = _vocabulary(metadata, prefix, source)
    config |= {key: _constant(value, config) for key, value in row.constants.items()}
    # A number that metadata give says more than that there is one.
    for key, flag in _flags(row, names).items():
        if key not in config or bool(config[key]) is not flag:
            config[key] = flag
    config |= _tokens(metadata, config["vocab_size"], row.causal)
    if row.restore is not None:
        row.restore(config)
    problems: list[Problem] = []
    if row.window:
        layers = config["num_hidden_layers"]
        found, understood_here = windows.from_metadata(
            prefix, metadata, layers, row.window, row.window_width, source
        )
        config |= found
        known |= understood_here
    if row.mixers:
        found, understood_here = mixers.from_metadata(
            prefix, metadata, config["num_hidden_layers"], row.mixers, source, further
        )
        config |= found
        known |= understood_here
    if row.attention_scale:
        config[row.attention_scale[0]] = _attention_scale(row, config)
    if row.rope:
        context = config["max_position_embeddings"]
        partly = int(config["head_dim"]) if row.partial_rotary else None
        long = "longrope" in row.rope and any(name in names for name in longrope.TENSORS)
        parameters, understood, problems = rope.from_metadata(
            prefix, metadata, context, row.rope, source, partly, yarn=row.yarn, long=long
        )
        known |= understood
        if long:
            rotated = int(config["head_dim"] * parameters.get("partial_rotary_factor", 1))
            parameters = longrope.restored(parameters, extra, rotated, context, source)
        if "llama3" in row.rope and "rope_freqs.weight" in names:
            parameters = _with_factors(parameters, extra, context, config["head_dim"], source)
        config["rope_parameters"] = parameters
        if row.window:
            key = prefix + "rope.freq_base_swa"
            known.add(key)
            given, usual = metadata_number(metadata, key, source), parameters["rope_theta"]
            theta = (row.local_theta or usual) if given is None else rope.shortest(given)
            if theta != usual and not row.local_theta:
                reason = "only one base for all layers is what both sides compute"
                problems.append(Problem(key, theta, (str(usual),), reason))
            if row.local_rope:
                config["rope_parameters"] = rope.by_layer(parameters, theta)
    if not row.causal and prefix + "attention.causal" not in metadata:
        reason = "without it llama.cpp lets a token see only those before it"
        problems.append(Problem(prefix + "attention.causal", None, ("false",), reason))
    problems += _unknown(metadata, row, known)
    return config, problems


def _without_further(
    config: dict[str, Any], row: Row, further: int, names: Collection[str], source: str
) -> Collection[str]:
    """Names of tensors without those of blocks that predict further tokens, which are no longer counted either."""
    blocks = config[row.blocks] - further
    if blocks < 1:
        count = f"{row.arch}.block_count = {config[row.blocks]}"
        raise CheckpointError(source, count, f"more than the {further} that predict further tokens")
    config[row.blocks] = blocks
    places = {name: re.match(r"blk\.(\d+)\.", name) for name in names}
    return [name for name, at in places.items() if not further or at is None or int(at[1]) < blocks]


def predicting(metadata: Metadata, arch: str, source: str) -> int:
    """How many of a file's last blocks predict further tokens."""
    return metadata_number(metadata, f"{arch}.{PREDICTING}", source, whole=True, zero=True) or 0


def computed(rule: MetaRule, config: Config) -> int:
    """Value of a metadata key that follows from the configuration's other keys."""
    return evaluate(rule.config, **sizes(config))


def _read(metadata: Metadata, key: str, rule: MetaRule, config: Config, source: str) -> Any:
    kind = rule.make(0).type
    if kind is ValueType.BOOL:
        value = Keys(metadata, source).flag(key, None)
        if value is not None:
            return value
    else:
        whole, zero = kind is ValueType.U32, rule.zero or rule.computed
        value = metadata_number(metadata, key, source, whole=whole, zero=zero)
        if value is None and rule.instead:
            value = metadata_number(metadata, key.removesuffix(rule.key) + rule.instead, source, whole=whole)
        if value is not None and not (rule.optional and value == 0):
            return value if whole else rope.shortest(value)
    if rule.computed:
        return None
    if rule.default is REQUIRED:
        raise CheckpointError(source, f"no metadata key {key!r}", "it; llama.cpp needs it too")
    return rule.default(config) if callable(rule.default) else rule.default


def _vocabulary(metadata: Metadata, prefix: str, source: str) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and tokens.type is ValueType.ARRAY:
        return len(tokens.data)
    size = metadata_number(metadata, prefix + "vocab_size", source, whole=True)
    if size is None:
        raise CheckpointError(source, "no 'tokenizer.ggml.tokens'", "the tokens of the vocabulary")
    return int(size)


def _flags(row: Row, names: Collection[str]) -> dict[str, bool | int]:
    """Infer configuration switches from tensors that exist only for one of their values."""
    flags: dict[str, bool | int] = {}
    anywhere = {re.sub(r"^blk\.\d+\.", "blk.{i}.", name) for name in names}
    shared = {
        one.gguf for one in row.tensors for other in row.tensors if one != other and one.gguf == other.gguf
    }
    for rule in row.tensors:
        if rule.gguf in shared:
            continue
        for suffix in rule.suffixes:
            presence = rule.presence(suffix)
            if isinstance(presence, If):
                there = rule.gguf + suffix in anywhere
                if there:
                    flags[presence.key] = presence.value
                elif isinstance(presence.value, bool):
                    flags.setdefault(presence.key, not presence.value)
    return flags


def _tokens(metadata: Metadata, vocab_size: int, causal: bool) -> dict[str, int | None]:
    """Ids of the special tokens; some files store -1 or an id past the vocabulary for "none"."""
    ids: dict[str, int | None] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))[0 if causal else 2 :]:
        value = metadata.get(f"tokenizer.ggml.{key}_token_id")
        there = value is not None and value.type in _INTEGERS and 0 <= value.data < vocab_size
        ids[f"{name}_token_id"] = int(value.data) if value is not None and there else None
    return ids


def _with_factors(
    parameters: dict[str, Any],
    extra: Mapping[str, np.ndarray],
    context: int,
    head_dim: int,
    source: str,
) -> dict[str, Any]:
    if "rope_freqs.weight" not in extra:
        raise ConfigError(
            "extra_tensors",
            sorted(extra),
            "the values of 'rope_freqs.weight' too, since the file has that tensor",
        )
    values = extra["rope_freqs.weight"]
    if values.size != head_dim // 2:
        raise CheckpointError(
            source,
            f"{values.size} values",
            f"{head_dim // 2}, half the size of a head",
            tensor="rope_freqs.weight",
        )
    found = llama3.fit(values, parameters["rope_theta"], context)
    if not found:
        return parameters
    if parameters["rope_type"] != "default":
        raise CheckpointError(
            source,
            f"rope_freqs.weight and a {parameters['rope_type']} scaling",
            "only one of these two rotary scalings",
        )
    return parameters | {"rope_type": "llama3"} | found


def _unknown(metadata: Metadata, row: Row, known: Collection[str]) -> list[Problem]:
    problems = []
    for key, value in metadata.items():
        if not key.startswith(row.arch + ".") or key in known:
            continue
        name = key.removeprefix(row.arch + ".")
        scalar = value.type is not ValueType.ARRAY
        if name in row.neutral and (
            row.neutral[name] is None or (scalar and value.data == row.neutral[name])
        ):
            continue
        allowed = (str(row.neutral[name]),) if name in row.neutral else ("no such key",)
        problems.append(Problem(key, value.data, allowed, "no Transformers configuration can express it"))
    return problems
