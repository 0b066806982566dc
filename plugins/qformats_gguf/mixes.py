"""Mixes: which tensor of a file gets which type, as llama.cpp's quantizer chooses it for ``q4_k_m`` and the like.

Layers are counted as they lie in a file: attention values and the network's last matrix of some layers get more bits
than the rest. Nothing here depends on the weights.

Source: ggml-org/llama.cpp:src/llama-quant.cpp (``llama_tensor_get_type_impl``), as of v0.5.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qformats_gguf.types import by_name

__all__ = ["MIXES", "Facts", "Mix", "alternatives", "choose", "facts"]


@dataclass(frozen=True)
class Mix:
    """A named choice.

    Attributes
    ----------
    name : str
        As in ``--type``.
    base : str
        Type of most tensors.
    file_type : int
        ``general.file_type`` of such a file.
    summary : str
        What it mixes.
    weighted : bool
        Whether llama.cpp makes such files only with an importance matrix.
    """

    name: str
    base: str
    file_type: int
    summary: str = ""
    weighted: bool = False


_SHORT: Mapping[str, str] = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""Types that are no mix of llama.cpp's, and the mixes that they are short for there."""
_LISTED = (
    Mix("q2_k", "q2_k", 10),
    Mix("q2_k_s", "q2_k", 21, "q2_k, and more bits for some matrices", weighted=True),
    Mix("q3_k_s", "q3_k", 11, "q3_k, and q6_k for the output layer"),
    Mix("q3_k_m", "q3_k", 12, "q3_k, and more bits for some matrices"),
    Mix("q3_k_l", "q3_k", 13, "q3_k, and more bits for some matrices"),
    Mix("q4_k_s", "q4_k", 14, "q4_k, and more bits for some matrices"),
    Mix("q4_k_m", "q4_k", 15, "q4_k, and more bits for some matrices"),
    Mix("q5_k_s", "q5_k", 16, "q5_k, and q6_k for the output layer"),
    Mix("q5_k_m", "q5_k", 17, "q5_k, and more bits for some matrices"),
    Mix("mxfp4_moe", "mxfp4", 38, "experts in mxfp4, and everything else in q8_0"),
)
MIXES: Mapping[str, Mix] = {mix.name: mix for mix in _LISTED}
"""Mixes whose name is not that of a type, and ``q2_k``, which is both. Types are mixes too."""

_VALUES = re.compile(r"attn_(?:v|qkv|kv_b)\.weight")
_LAYER = re.compile(r"blk\.(\d+)\.")
_EXPERTS_WITH_MORE = ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs")
"""Mixes that raise ``attn_output`` of a model of eight experts."""
_GROUPED = 4
"""Query heads for each key and value head from which the values' matrix is small enough to be raised."""
_EIGHT = 8
_STACKED = 3
"""Dimensions of the matrices of all experts, stacked."""


def facts(architecture: str, tensors: Mapping[str, Sequence[int]], *, importance: bool = False) -> Facts:
    """Read layers, experts and heads off the tensors of a file."""
    layers = 1 + max((_layer(name) for name in tensors), default=-1)
    experts = next(
        (shape[0] for name, shape in tensors.items() if "_exps." in name and len(shape) == _STACKED), 0
    )
    keys = next((shape[0] for name, shape in tensors.items() if name.endswith("attn_k.weight")), 0)
    queries = next((shape[0] for name, shape in tensors.items() if name.endswith("attn_q.weight")), 0)
    fused = next((shape[0] for name, shape in tensors.items() if name.endswith("attn_qkv.weight")), 0)
    if fused:
        # The output projection has a column for each row of queries.
        queries = next((s[-1] for name, s in tensors.items() if name.endswith("attn_output.weight")), 0)
        keys = (fused - queries) // 2
    grouped = queries // keys if keys > 0 else 1
    return Facts(architecture, layers, experts, grouped, importance)


@dataclass(frozen=True)
class Facts:
    """What the choice depends on besides names.

    Attributes
    ----------
    architecture : str
        ``general.architecture``.
    layers, experts : int
        Of the model.
    grouped : int
        Query heads for each key and value head.
    importance : bool
        Whether an importance matrix is given.
    """

    architecture: str
    layers: int
    experts: int = 0
    grouped: int = 1
    importance: bool = False

    @property
    def seventy(self) -> bool:
        """Whether llama.cpp takes it for a model of 70 B weights, by its layers."""
        return self.layers == 80 and (
            (self.architecture == "llama" and self.grouped > 1) or self.architecture in ("qwen2", "deci")
        )


def choose(
    mix: str, tensors: Mapping[str, Sequence[int]], tied: bool, facts: Facts
) -> dict[str, tuple[str, str]]:
    """Types that differ from the mix's usual one, and why; those that rows do not fit are replaced later.

    Parameters
    ----------
    mix : str
        Name of the mix, or of a type.
    tensors : mapping of str to sequence of int
        GGUF name and shape (rows first) of each tensor that is quantized.
    tied : bool
        Whether the embedding is the output layer too.
    facts : Facts
        About the model.

    Returns
    -------
    dict of str to (str, str)
        Type and reason, by name.

    Examples
    --------
    >>> from qformats_gguf.mixes import Facts, choose
    >>> shapes = {"token_embd.weight": (96, 256), "blk.0.attn_v.weight": (64, 256), "output.weight": (96, 256)}
    >>> choose("q4_k_s", shapes, False, Facts("llama", layers=1))["blk.0.attn_v.weight"]
    ('q5_k', 'attention values')
    """
    mix = _SHORT.get(mix, mix)
    base = MIXES[mix].base if mix in MIXES else mix
    output = "token_embd.weight" if tied else "output.weight"
    names = [name for name in sorted(tensors, key=_place) if name not in (output, "token_embd.weight")]
    found = {}
    values = [name for name in names if _VALUES.search(name)]
    downs = [name for name in names if "ffn_down" in name]
    if mix == "mxfp4_moe":
        # Only experts, whose matrices are stacked, are small in such files.
        found = {name: ("q8_0", "not of an expert") for name in tensors if len(tensors[name]) < _STACKED}
    else:
        for index, name in enumerate(values):
            found[name] = _of_values(mix, base, index, len(values), facts), "attention values"
        for index, name in enumerate(downs):
            number = _layer(name) if facts.experts > 1 else index
            found[name] = _of_downs(mix, base, number, facts), "last matrix of the network"
        for name in names:
            if "attn_output.weight" in name:
                found[name] = _of_outputs(mix, base, facts), "attention output"
            elif "attn_k.weight" in name and facts.experts == _EIGHT:
                found[name] = "q8_0", "attention keys of eight experts"
        if mix in ("tq1_0", "tq2_0"):
            found["token_embd.weight"] = "q4_k", "token embedding"
        if mix == "nvfp4":
            # A factor belongs to what a matrix gives; rows that are looked up have none.
            found["token_embd.weight"] = "q8_0", "token embedding"
    if output in tensors:
        fits = tensors[output][-1] % by_name(base).block_size == 0
        high = not fits or facts.architecture == "falcon" or mix in ("q8_0", "mxfp4_moe")
        found[output] = "q8_0" if high else "q6_k", "tied output layer" if tied else "output layer"
    return {name: chosen for name, chosen in found.items() if name in tensors and chosen[0] != base}


_LADDER = ("q2_k", "q3_k", "iq4_xs", "q4_k", "q5_k", "q6_k", "q8_0")
_SMALL_LADDER = ("iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
"""Types for rows that do not divide into blocks of 256."""


def alternatives(shape: Sequence[int]) -> tuple[str, ...]:
    """Types that a measured mix chooses from: llama.cpp multiplies by all of them, and looks rows up in all of them.

    Parameters
    ----------
    shape : sequence of int
        Of the tensor, rows first.
    """
    return _SMALL_LADDER if shape[-1] % by_name("q4_k").block_size else _LADDER


def _place(name: str) -> tuple[int, str]:
    """Order in a file that llama.cpp quantizes."""
    return _layer(name), name


def _layer(name: str) -> int:
    match = _LAYER.match(name)
    return int(match[1]) if match else -1


def _more(index: int, count: int) -> bool:
    """Whether a layer gets more bits: the first and last eighth, and every third between."""
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2


def _of_values(mix: str, base: str, index: int, count: int, facts: Facts) -> str:
    grouped, kind = facts.grouped >= _GROUPED, base
    if mix == "q2_k":
        kind = "q4_k" if grouped else "q3_k"
    elif mix == "q2_k_s" and grouped:
        kind = "q4_k"
    elif mix == "q3_k_m":
        kind = "q5_k" if index < 2 else "q4_k"
    elif mix == "q3_k_l" or (mix in ("iq4_nl", "iq4_xs") and grouped):
        kind = "q5_k"
    elif mix in ("q4_k_m", "q5_k_m") and _more(index, count):
        kind = "q6_k"
    elif mix == "q4_k_s" and index < 4:
        kind = "q5_k"
    if facts.seventy and kind in ("q3_k", "q4_k"):
        kind = "q5_k"
    return "q8_0" if facts.experts == _EIGHT else kind


def _of_downs(mix: str, base: str, index: int, facts: Facts) -> str:
    count, falcon = facts.layers, facts.architecture == "falcon"
    first = index < count // 8
    if mix == "q2_k":
        return "q3_k"
    if mix == "q2_k_s":
        return "q4_k" if first else base
    if mix == "q3_k_m":
        if index < count // 16:
            return "q5_k"
        return "q4_k" if not falcon or _more(index, count) else base
    if mix == "q3_k_l":
        return "q4_k" if falcon else "q5_k"
    if mix == "q4_k_m" and falcon:
        return "q6_k" if index < count // 16 else "q5_k" if _more(index, count) else base
    if mix in ("q4_k_m", "q5_k_m"):
        return "q6_k" if _more(index, count) else base
    if mix in ("iq4_nl", "iq4_xs"):
        return "q5_k" if first and not facts.importance else base
    if mix == "q4_k_s":
        return "q5_k" if first and not falcon else base
    if mix in ("q4_0", "q5_0") and facts.importance:
        return f"{mix[:2]}_1" if first else base
    return base


def _of_outputs(mix: str, base: str, facts: Facts) -> str:
    if facts.architecture == "falcon":
        return "q4_k" if mix == "q3_k_l" else base
    if facts.experts == _EIGHT:
        return "q5_k" if mix in _EXPERTS_WITH_MORE else base
    return {"q2_k": "q3_k", "q3_k_m": "q4_k", "q3_k_l": "q5_k"}.get(mix, base)
