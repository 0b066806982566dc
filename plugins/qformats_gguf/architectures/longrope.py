"""LongRoPE: a factor for each rotary frequency, one set of them for short texts and one for long ones.

GGUF keeps the sets as two tensors, and the factor of attention as a key. llama.cpp chooses the long set if the context
that it allocates is longer than the original one, Transformers if the text is: with a long context, texts shorter than
the original one differ.

Source: ggml-org/llama.cpp:conversion/phi.py, src/llama-model.cpp; transformers:modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from qformats.errors import CheckpointError
from qformats_gguf.architectures.limits import Problem

__all__ = ["CONTEXT", "TENSORS", "attention_factor", "problems", "restored", "tensors"]

TENSORS = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
"""Names in GGUF, and keys of the rotary parameters."""

CONTEXT = "original_max_position_embeddings"
"""Key of the context up to which the short set is meant."""

Factors = npt.NDArray[np.float32]


def problems(rope: Mapping[str, Any], rotated: int) -> list[Problem]:
    """List what is wrong with the sets: each has a positive number for every pair of rotated elements."""
    found = []
    for key in TENSORS.values():
        given = rope.get(key)
        if not isinstance(given, list) or len(given) != rotated // 2 or not all(map(_factor, given)):
            shown = f"{len(given)} entries" if isinstance(given, list) else given
            expected = (f"{rotated // 2} positive numbers",)
            reason = "there is a factor for each rotary frequency"
            found.append(Problem(f"rope_parameters.{key}", shown, expected, reason))
    return found


def _factor(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def attention_factor(rope: Mapping[str, Any], positions: int) -> float:
    """What cos and sin are multiplied by.

    Parameters
    ----------
    rope : mapping
        Rotary parameters with original_max_position_embeddings, and perhaps attention_factor or factor.
    positions : int
        The model's longest text.

    Examples
    --------
    >>> from qformats_gguf.architectures.longrope import attention_factor
    >>> round(attention_factor({"original_max_position_embeddings": 4096}, 131072), 6)
    1.190238
    """
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    original = int(rope["original_max_position_embeddings"])
    factor = rope.get("factor") or positions / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0


def tensors(rope: Mapping[str, Any]) -> dict[str, Factors]:
    """Tensors of a file, float32 ``(rotated / 2,)`` by GGUF name."""
    return {name: np.asarray(rope[key], dtype=np.float32) for name, key in TENSORS.items()}


def restored(
    rope: dict[str, Any], extra: Mapping[str, Factors], rotated: int, positions: int, source: str
) -> dict[str, Any]:
    """Rotary parameters with the sets of a file; the factor of attention stays where it is not the usual one.

    Raises
    ------
    CheckpointError
        If there is only one of the sets, or one has another length, or a factor is not a positive number.
    """
    rope = dict(rope)
    for name, key in TENSORS.items():
        if name not in extra:
            raise CheckpointError(source, f"no {name}", f"both of {' and '.join(TENSORS)}")
        rope[key] = [float(str(value)) for value in np.asarray(extra[name], np.float32).reshape(-1)]
    for problem in problems(rope, rotated):
        raise CheckpointError(source, f"{problem.key}: {problem.found}", problem.supported[0])
    usual = attention_factor({**rope, "attention_factor": None}, positions)
    if np.float32(usual) == np.float32(rope["attention_factor"]):
        del rope["attention_factor"]
    return rope
