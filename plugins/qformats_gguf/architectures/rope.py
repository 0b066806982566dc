"""Rotary scaling: ``rope_parameters`` of Transformers and ``rope.*`` keys of GGUF.

Under YaRN, llama.cpp multiplies cos and sin by ``attn_factor * mscale(factor)``, with
``mscale(f) = 0.1 ln f + 1``; the key ``rope.scaling.yarn_attn_factor`` that upstream's converter writes is
read by none of these architectures, and so is ``yarn_ext_factor``; ``yarn_beta_fast`` and ``yarn_beta_slow`` are read
by few. An attention factor is therefore written as ``rope.scaling.attn_factor``, and other betas than 32 and 1 are
refused where nothing reads them.

Source: ggml-org/llama.cpp:src/llama-model.cpp, src/llama-context.cpp, ggml/src/ggml-cpu/ops.cpp;
transformers:modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qformats.errors import CheckpointError, ConfigError
from qformats_gguf.architectures import longrope
from qformats_gguf.architectures.limits import Config, Problem
from qformats_gguf.architectures.numbers import config_number, metadata_number
from qformats_gguf.metadata import Keys, Metadata, f32, string, u32

__all__ = [
    "DEFAULT_THETA",
    "by_layer",
    "from_metadata",
    "local",
    "of_global_layers",
    "shortest",
    "standard",
    "stretched",
    "to_metadata",
]

DEFAULT_THETA = 10000.0
"""Assumed by both sides by default."""

_WITH_CONTEXT = ("llama3", "yarn", "longrope")
_NUMBERS = (
    *("rope_theta", "factor", "partial_rotary_factor", "original_max_position_embeddings"),
    *("low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow", "alpha"),
)
_MAYBE_ZERO = ("mscale", "mscale_all_dim", "llama_4_scaling_beta")
"""Zero stands for no such factor."""
_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier"
_TEMPERATURE = "attention.temperature_scale"


def standard(
    config: Config, source: str = "config.json", theta: float = DEFAULT_THETA, *, long: bool = False
) -> dict[str, Any]:
    """Rotary parameters in the form of Transformers 5, from a ``config.json`` of any version.

    Parameters
    ----------
    config : mapping
        With ``rope_parameters``, or ``rope_theta`` and ``rope_scaling`` (`type` or `rope_type`).
    source : str
        File, for messages.
    theta : float
        Base where the configuration says nothing.
    long : bool
        Whether what is called su or yarn is longrope, as in older configurations of Phi-3.

    Returns
    -------
    dict
        rope_type and rope_theta always, and what the type needs. Parameters nested by layer type come
        back as rope_type "per layer".

    Raises
    ------
    ConfigError
        If a parameter is not a positive number.
    """
    # Transformers lets the old key win where both are present.
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"{source}: rope_parameters", given, "an object")
    rope = dict(given)
    if any(isinstance(value, Mapping) for value in rope.values()):
        return {"rope_type": "per layer", "rope_theta": DEFAULT_THETA}
    kind = str(rope.pop("type", None) or "default")
    rope = {key: value for key, value in rope.items() if value is not None}
    rope.setdefault("rope_type", kind)
    if long and rope["rope_type"] in ("su", "yarn"):
        rope["rope_type"] = "longrope"
    rope.setdefault("rope_theta", config.get("rope_theta") or theta)
    if config.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", config["partial_rotary_factor"])
    if rope["rope_type"] in _WITH_CONTEXT:
        outside = config.get("original_max_position_embeddings")
        if outside is not None:
            rope["original_max_position_embeddings"] = outside
        elif config.get("max_position_embeddings") is not None:
            rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    for key in (*_NUMBERS, *_MAYBE_ZERO):
        if key in rope:
            whole, zero = key == "original_max_position_embeddings", key in _MAYBE_ZERO
            # Only the elements that this part of a head comes to are kept.
            largest = {"largest": math.inf} if key == "partial_rotary_factor" else {}
            config_number(rope[key], f"rope_parameters.{key}", source, whole=whole, zero=zero, **largest)
    if rope["rope_type"] == "yarn" and "factor" not in rope and "original_max_position_embeddings" in rope:
        rope["factor"] = config["max_position_embeddings"] / rope["original_max_position_embeddings"]
    return rope


def stretched(rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """A scaling by a fixed `alpha`, which Hunyuan's configurations call dynamic, as the larger base that it means.

    Examples
    --------
    >>> from qformats_gguf.architectures.rope import stretched
    >>> stretched({"rope_type": "dynamic", "alpha": 1000.0, "rope_theta": 10000.0}, 128)["rope_theta"]
    11158839.925...
    """
    if rope["rope_type"] != "dynamic" or not rope.get("alpha"):
        return rope
    theta = rope["rope_theta"] * rope["alpha"] ** (head_dim / (head_dim - 2))
    return {"rope_type": "default", "rope_theta": theta}


_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def of_global_layers(config: Config) -> Config:
    """A configuration whose rotary parameters are those of the layers without a window, as Transformers finds them.

    The older key counts for these layers alone, and parameters that are not given by kind of layer for none.
    """
    nested, scaling = config.get("rope_parameters"), config.get("rope_scaling")
    own = nested.get(_GLOBAL) if isinstance(nested, Mapping) else None
    merged = {**(own or {"rope_type": "default"}), **(scaling if isinstance(scaling, Mapping) else {})}
    return {**config, "rope_parameters": merged, "rope_scaling": None}


def local(config: Config, source: str, theta: float) -> dict[str, Any]:
    """Rotary parameters of the layers with a window, where they have their own."""
    nested = config.get("rope_parameters")
    given = nested.get(_LOCAL) if isinstance(nested, Mapping) else None
    base = config.get("rope_local_base_freq") or theta
    return standard({"rope_parameters": given}, source, base)


def by_layer(parameters: dict[str, Any], local_theta: float) -> dict[str, Any]:
    """Rotary parameters by kind of layer."""
    return {_LOCAL: {"rope_type": "default", "rope_theta": local_theta}, _GLOBAL: parameters}


def to_metadata(
    prefix: str,
    rope: dict[str, Any],
    supported: tuple[str, ...],
    head_dim: int | None = None,
    *,
    yarn: tuple[str, ...] = (),
    positions: int = 0,
) -> tuple[Metadata, list[Problem]]:
    """Metadata for a rotary scaling, and what llama.cpp does not compute of it.

    Parameters
    ----------
    prefix : str
        ``"llama."`` and the like.
    rope : dict
        From `standard`.
    supported : tuple of str
        Types that the architecture computes.
    head_dim : int, optional
        Elements of a head, where the architecture may rotate only the first of them.
    yarn : tuple of str
        What it reads of YaRN beside the factor; see `Row`.
    positions : int
        The model's longest text, where the architecture computes longrope.
    """
    metadata: Metadata = {}
    problems: list[Problem] = []
    kind = rope["rope_type"]
    where = "rope_parameters"
    part = rope.get("partial_rotary_factor", 1.0)
    if head_dim is not None:
        # As Transformers counts them.
        rotated = int(head_dim * part) if part <= 1 else 0
        if rotated and rotated % 2 == 0:
            metadata[prefix + "rope.dimension_count"] = u32(rotated)
        else:
            problems.append(
                Problem(
                    f"{where}.partial_rotary_factor",
                    part,
                    (f"one that gives an even number of the {head_dim} elements of a head",),
                    "llama.cpp rotates pairs of elements",
                )
            )
    elif part != 1.0:
        problems.append(
            Problem(
                f"{where}.partial_rotary_factor",
                part,
                ("1.0",),
                "llama.cpp rotates whole heads in this architecture",
            )
        )
    if kind == "default" and "none" in supported:
        metadata[prefix + "rope.scaling.type"] = string("none")
    elif kind not in supported:
        problems.append(
            Problem(
                f"{where}.rope_type", kind, _named(supported), "llama.cpp would run it without the scaling"
            )
        )
    elif kind in ("linear", "yarn", "llama3"):
        problems += [
            Problem(f"{where}.{key}", None, ("a number",), f"rope_type {kind!r} needs it")
            for key in _needed(kind)
            if key not in rope
        ]
        if problems:
            return metadata, problems
    if kind in supported and kind in ("linear", "yarn"):
        metadata[prefix + "rope.scaling.type"] = string(kind)
        metadata[prefix + "rope.scaling.factor"] = f32(rope["factor"])
    if kind in supported and kind == "yarn":
        context = rope["original_max_position_embeddings"]
        metadata[prefix + "rope.scaling.original_context_length"] = u32(context)
        multiplier = rope.get("mscale_all_dim") if "log_multiplier" in yarn else None
        if multiplier:
            metadata[prefix + _LOG_MULTIPLIER] = f32(multiplier)
        attention = _attention_factor(rope) / _usual_attention(rope["factor"], multiplier)
        if "latent" in yarn and (all_dim := rope.get("mscale_all_dim")):
            # llama.cpp takes mscale for the same, and so derives a factor of 1 for cos and sin.
            metadata[prefix + _LOG_MULTIPLIER] = f32(all_dim / 10)
            reason = "llama.cpp takes mscale for the same as mscale_all_dim here"
            problems += _only(where, "mscale", rope.get("mscale"), all_dim, reason)
            problems += _only(where, "attention_factor", rope.get("attention_factor"), None, reason)
        elif abs(attention - 1) > 1e-9:
            metadata[prefix + "rope.scaling.attn_factor"] = f32(attention)
        for key, usual in (("beta_fast", 32), ("beta_slow", 1)):
            if rope.get(key):
                metadata[f"{prefix}rope.scaling.yarn_{key}"] = f32(rope[key])
                if "betas" not in yarn:
                    problems += _only(where, key, rope[key], usual, "llama.cpp does not read it here")
        if "temperature" in yarn:
            key = "llama_4_scaling_beta"
            if rope.get(key) is None:
                problems.append(Problem(f"{where}.{key}", None, ("a number",), "this model type needs it"))
            else:
                metadata[prefix + _TEMPERATURE] = f32(rope[key])
        problems += _only(where, "truncate", rope.get("truncate", True), True, "llama.cpp always truncates")
        # Known to YaRN's first implementation; Transformers ignores it, llama.cpp does not read it here.
        problems += _only(
            where, "extrapolation_factor", rope.get("extrapolation_factor", 1), 1, "nothing reads it"
        )
    if kind in supported and kind == "longrope":
        found = longrope.problems(rope, int((head_dim or 0) * part))
        problems += found
        original = rope.get(longrope.CONTEXT, positions)
        if positions > original:
            reason = f"llama.cpp takes the long factors in any context beyond it; run short texts with -c {original}"
            problems.append(Problem(f"{where}.{longrope.CONTEXT}", original, (str(positions),), reason))
        attention = 1.0 if found else longrope.attention_factor(rope, positions)
        if attention != 1:
            metadata[prefix + "rope.scaling.attn_factor"] = f32(attention)
    metadata[prefix + "rope.freq_base"] = f32(rope["rope_theta"])
    return metadata, problems


def _named(supported: tuple[str, ...]) -> tuple[str, ...]:
    """Scalings as configurations call them."""
    names = {"none": "default", "alpha": "dynamic with alpha"}
    return tuple(names.get(kind, kind) for kind in supported)


def _usual_attention(factor: float, multiplier: float | None) -> float:
    """What llama.cpp multiplies cos and sin by under YaRN; with the key for it, it takes `mscale` for 1."""
    return mscale(factor) / (mscale(factor, multiplier) if multiplier else 1.0)


def _needed(kind: str) -> tuple[str, ...]:
    if kind == "llama3":
        return "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
    return ("factor", "original_max_position_embeddings") if kind == "yarn" else ("factor",)


def _only(where: str, key: str, found: Any, usual: Any, reason: str) -> list[Problem]:
    return [] if found == usual else [Problem(f"{where}.{key}", found, (str(usual),), reason)]


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's default attention factor: ``0.1 * weight * ln(factor) + 1``, and 1 up to factor 1."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _attention_factor(rope: dict[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    if over and under:
        return mscale(rope["factor"], over) / mscale(rope["factor"], under)
    return mscale(rope["factor"])


def from_metadata(
    prefix: str,
    metadata: Metadata,
    context_length: int,
    supported: tuple[str, ...],
    source: str,
    head_dim: int | None = None,
    *,
    yarn: tuple[str, ...] = (),
    long: bool = False,
) -> tuple[dict[str, Any], set[str], list[Problem]]:
    """Rotary parameters of a GGUF file, except a llama3 scaling (see ``llama3.fit``).

    Returns
    -------
    dict
        ``rope_parameters`` in the form of Transformers 5.
    set of str
        Keys that were understood.
    list of Problem
        What Transformers does not compute.
    """
    known: set[str] = set()

    def get(key: str, default: Any) -> Any:
        known.add(prefix + key)
        # llama.cpp takes a zero for an absent key.
        return metadata_number(metadata, prefix + key, source, zero=True) or default

    problems: list[Problem] = []
    theta = shortest(get("rope.freq_base", DEFAULT_THETA))
    factor = shortest(get("rope.scaling.factor", get("rope.scale_linear", 1.0)))
    # llama.cpp's default type is linear, with factor 1.
    known.add(prefix + "rope.scaling.type")
    kind = Keys(metadata, source).text(prefix + "rope.scaling.type", "linear")
    attention = shortest(get("rope.scaling.attn_factor", 1.0))
    context = get("rope.scaling.original_context_length", context_length)
    upstream_attention = get("rope.scaling.yarn_attn_factor", None)
    betas = {key: get(f"rope.scaling.yarn_{key}", None) for key in ("beta_fast", "beta_slow")}
    multiplier = get(_LOG_MULTIPLIER, None) if "log_multiplier" in yarn else None
    latent = get(_LOG_MULTIPLIER, None) if "latent" in yarn else None
    temperature = get(_TEMPERATURE, None) if "temperature" in yarn else None
    known.update({prefix + "rope.scaling.yarn_ext_factor", prefix + "rope.scaling.finetuned"})

    if long and kind in ("none", "linear", "longrope") and factor == 1:
        original = {"original_max_position_embeddings": int(context)}
        rope: dict[str, Any] = {"rope_type": "longrope", "attention_factor": attention, **original}
    elif kind == "none" or (kind == "linear" and factor == 1):
        rope = {"rope_type": "default"}
    elif kind in ("linear", "yarn") and kind in supported:
        rope = {"rope_type": kind, "factor": factor}
    else:
        problems.append(
            Problem(
                prefix + "rope.scaling.type", kind, supported, "Transformers would run it without the scaling"
            )
        )
        rope = {"rope_type": "default"}
    if rope["rope_type"] == "yarn":
        rope["original_max_position_embeddings"] = int(context)
        rope |= {key: shortest(value) for key, value in betas.items() if value is not None}
        if latent is not None:
            all_dim = float(f"{10 * latent:.6g}")
            rope |= {"mscale": all_dim, "mscale_all_dim": all_dim}
        elif multiplier is not None:
            rope |= {"mscale": 1.0, "mscale_all_dim": shortest(multiplier)}
        if temperature is not None:
            rope["llama_4_scaling_beta"] = shortest(temperature)
        if attention != 1 and latent is None:
            # Stored as a float32 quotient, which holds only seven digits.
            rope["attention_factor"] = float(f"{attention * _usual_attention(factor, multiplier):.7g}")
        elif upstream_attention is not None:
            # Where upstream's converter put Transformers' attention_factor; llama.cpp itself ignores it.
            rope["attention_factor"] = shortest(upstream_attention)
    elif attention != 1 and rope["rope_type"] != "longrope":
        problems.append(
            Problem(
                prefix + "rope.scaling.attn_factor",
                attention,
                ("1.0",),
                "Transformers scales it with YaRN only",
            )
        )
    rope["rope_theta"] = theta
    if head_dim is not None:
        key = prefix + "rope.dimension_count"
        known.add(key)
        rotated = metadata_number(metadata, key, source, whole=True)
        rope["partial_rotary_factor"] = _part(head_dim if rotated is None else rotated, head_dim, key, source)
    return rope, known, problems


def _part(rotated: int, head_dim: int, key: str, source: str) -> float:
    """Share of a head that Transformers counts as so many elements."""
    if rotated > head_dim or rotated % 2:
        expected = f"an even number up to {head_dim}, the size of a head"
        raise CheckpointError(source, f"{key} = {rotated}", expected)
    part = rotated / head_dim
    return part if int(head_dim * part) == rotated else math.nextafter(part, 1)


def shortest(value: Any) -> float:
    """Float with the fewest digits that is the same float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
