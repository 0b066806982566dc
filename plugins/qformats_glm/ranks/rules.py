"""How each tensor of a GLM is spread over the ranks of tensor parallelism.

Rules as SwissArmyTransformer and GLM-130B:tools/convert_tp.py have them, as arithmetic on rows and columns: one
function names the rows of a rank, and merging reads it the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from qformats.errors import ConfigError, ShapeError, UnsupportedModelError

__all__ = ["Kind", "Sharding", "merged_rows"]


class Kind(StrEnum):
    """What tensor parallelism does with a tensor."""

    REPLICATED = "replicated"
    """Every rank has all of it."""
    ROWS = "column-parallel"
    """Output features are divided: rank i has the i-th range of rows."""
    GATED = "gated"
    """Two stacked halves, gate and up; a rank has a range of rows of each."""
    SEGMENTS = "contiguous query, key, value"
    """Three stacked segments; a rank has a range of rows of each."""
    COLUMNS = "row-parallel"
    """Input features are divided: rank i has the i-th range of columns."""


_TAILS: tuple[tuple[re.Pattern[str], Kind], ...] = tuple(
    (re.compile(rf"(?:^|\.){tail}$"), kind)
    for tail, kind in (
        # A plain linear layer, which SwissArmyTransformer does not divide.
        (r"mixins\.chatglm-final\.lm_head\.weight", Kind.REPLICATED),
        (r"mixins\.mlp\.w2\.\d+\.(?:weight|bias)", Kind.REPLICATED),
        (r"(?:word_embeddings|lm_head|output_layer)\.weight", Kind.ROWS),
        (r"position_embeddings\.weight", Kind.REPLICATED),
        (r"mixins\.mlp\.gate_proj\.\d+\.weight", Kind.ROWS),
        (r"query_key_value\.(?:weight|bias)", Kind.SEGMENTS),
        (r"dense_h_to_4h\.(?:weight|bias)", Kind.GATED),
        (r"(?:(?:self_)?attention\.dense|dense_4h_to_h)\.weight", Kind.COLUMNS),
        (r"(?:(?:self_)?attention\.dense|dense_4h_to_h)\.bias", Kind.REPLICATED),
        (r"\w*layernorm\.(?:weight|bias)", Kind.REPLICATED),
        (r"inv_freq", Kind.REPLICATED),
    )
)
"""Kinds of a model with a gated MLP and contiguous segments; :class:`Sharding` knows the other variants."""

_GATE = re.compile(r"(?:^|\.)mixins\.mlp\.(gate_proj|w2)\.\d+\.weight$")
"""Gate of an MLP in a matrix of its own: as in SwissArmyTransformer's LLaMA, or undivided, as in its ChatGLM2."""
_FUSED = re.compile(r"query_key_value\.(?:weight|bias)$")


@dataclass(frozen=True)
class Sharding:
    """Variant of the rules; the defaults are GLM-130B's.

    Attributes
    ----------
    glu : bool
        Whether ``dense_h_to_4h`` stacks gate and up.
    contiguous : bool
        Whether ``query_key_value`` holds all queries, then all keys, then all values (ChatGLM2 and later) instead of
        the three of one head after another.
    heads : int or None
        Attention heads; ``None`` if not known.
    groups : int or None
        Key and value heads, where there are fewer than `heads`.
    undivided : bool
        Whether a matrix beside divided ones is whole in every rank, so that only one rank can compute with it.
    """

    glu: bool = True
    contiguous: bool = False
    heads: int | None = None
    groups: int | None = None
    undivided: bool = False

    def __post_init__(self) -> None:
        if self.contiguous and self.heads is None:
            raise ConfigError("heads", None, "the number of attention heads, which qkv=contiguous needs")

    @classmethod
    def of(cls, options: Mapping[str, str], heads: int | None = None, names: Iterable[str] = ()) -> Sharding:
        """Variant that options ask for, and the names of tensors tell.

        Parameters
        ----------
        options : mapping of str to str
            ``glu`` (yes, no), ``qkv`` (interleaved, contiguous), ``heads``, ``groups``.
        heads : int, optional
            Attention heads as the model's configuration has them.
        names : iterable of str
            Names of the tensors. A gate in a mixin belongs to the models of SwissArmyTransformer whose attention is
            its own: ``qkv=contiguous``.

        Raises
        ------
        ConfigError
            If a value is none of these, or contradicts the others.
        """
        told = positive(options, "heads")
        if told and heads and told != heads:
            raise ConfigError("heads", told, f"{heads}, as the model says")
        gates = {found[1] for name in names if (found := _GATE.search(name))}
        qkv = options.get("qkv", "contiguous" if gates else "interleaved")
        if qkv not in ("interleaved", "contiguous"):
            raise ConfigError("qkv", qkv, "interleaved or contiguous")
        glu = options.get("glu", "no" if gates else "yes")
        if glu not in ("yes", "no"):
            raise ConfigError("glu", glu, "yes or no")
        if gates and (glu == "yes" or qkv == "interleaved"):
            name, value, right = ("glu", glu, "no") if glu == "yes" else ("qkv", qkv, "contiguous")
            raise ConfigError(name, value, f"{right}, as in all models with mixins.mlp.{min(gates)}")
        groups = positive(options, "groups")
        return cls(glu == "yes", qkv == "contiguous", told or heads, groups, "w2" in gates)

    def kind(self, name: str) -> Kind:
        """Rule for a tensor.

        Raises
        ------
        UnsupportedModelError
            If no rule names it.
        """
        for pattern, kind in _TAILS:
            if pattern.search(name):
                if (kind is Kind.GATED and not self.glu) or (kind is Kind.SEGMENTS and not self.contiguous):
                    return Kind.ROWS
                return kind
        known = [
            "word_embeddings",
            "query_key_value",
            "dense",
            "dense_h_to_4h",
            "dense_4h_to_h",
            "*layernorm",
            "position_embeddings",
            "mixins.mlp.gate_proj",
            "mixins.mlp.w2",
            "lm_head",
        ]
        hint = "how tensor parallelism divides other tensors is not known"
        raise UnsupportedModelError("tensor of a rank folder", name, known, hint)

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks over which the attention heads cannot be spread.

        Raises
        ------
        ConfigError
            If it does not divide them.
        """
        if self.undivided and ranks > 1:
            hint = "SwissArmyTransformer does not divide the gate of ChatGLM2, mixins.mlp.w2"
            raise ConfigError("tensor-parallel", ranks, "1", hint)
        if self.heads is not None and self.heads % ranks:
            raise ConfigError("tensor-parallel", ranks, f"a number that divides the {self.heads} heads")
        if self.contiguous and self.groups is not None and self.groups % ranks:
            allowed = f"a number that divides the {self.groups} key and value heads"
            raise ConfigError(
                "tensor-parallel", ranks, allowed, "Repeated key and value heads are not supported"
            )

    def check_attention(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse a layout of ``query_key_value`` that its rows contradict.

        Queries are as many rows as ``dense`` beside it has columns. Where there are as many keys and values, nothing
        tells the two layouts apart.

        Parameters
        ----------
        shapes : mapping of str to sequence of int
            Shapes of the whole tensors, ``(N, K)`` of a packed one.

        Raises
        ------
        ConfigError
            If another value of ``qkv``, ``heads`` or ``groups`` is needed.
        ShapeError
            If the weight of ``dense`` is missing.
        """
        for name, shape in shapes.items():
            if not _FUSED.search(name):
                continue
            rows, beside = shape[0] if shape else 1, _FUSED.sub("dense.weight", name)
            dense = shapes.get(beside, ())
            if len(dense) != 2:
                expected = f"{beside} beside it, whose columns tell how many of them are queries"
                raise ShapeError(name, f"of {rows} rows", expected)
            if self.contiguous:
                self._check_groups(name, rows, dense[1])
            elif rows != 3 * dense[1]:
                allowed = f"contiguous: {name} has {rows} rows, not 3 for each of the {dense[1]} columns of {beside}"
                raise ConfigError(
                    "qkv", "interleaved", allowed, "give -O qkv=contiguous -O heads=N -O groups=N"
                )

    def _check_groups(self, name: str, rows: int, queries: int) -> None:
        """Compare heads and groups with the rows of queries."""
        assert self.heads is not None
        width, rest = divmod(queries, self.heads)
        groups, more = divmod(rows - queries, 2 * width) if width else (0, 0)
        if rest or more or groups < 1 or self.heads % groups:
            allowed = f"a number of heads for {name}: {queries} of its {rows} rows are queries"
            raise ConfigError(
                "heads",
                self.heads,
                allowed,
                "give -O heads=N, and -O groups=N if there are fewer key and value heads",
            )
        if groups != (self.groups or self.heads):
            allowed = (
                f"{groups}, since {queries} of the {rows} rows of {name} are queries of {self.heads} heads"
            )
            raise ConfigError("groups", self.groups, allowed, f"give -O groups={groups}")

    def rows_of(self, name: str, rows: int, ranks: int, rank: int) -> list[tuple[int, int]]:
        """Ranges of rows of the whole tensor that one rank holds, in its order.

        Parameters
        ----------
        name : str
            Name of the tensor; not one that is divided by columns.
        rows : int
            Rows of the whole tensor.
        ranks, rank : int
            Number of ranks, and which one.

        Raises
        ------
        ShapeError
            If the rows cannot be divided so.
        """
        found = []
        begin = 0
        for length in self._segments(name, rows):
            if length % ranks:
                raise ShapeError(
                    name, f"of {rows} rows", f"segments of rows that {ranks} ranks divide evenly"
                )
            part = length // ranks
            found.append((begin + rank * part, begin + (rank + 1) * part))
            begin += length
        return found

    def _segments(self, name: str, rows: int) -> list[int]:
        """Lengths of the stacked matrices of which each rank has its own part."""
        kind = self.kind(name)
        if kind is Kind.GATED:
            if rows % 2:
                raise ShapeError(
                    name, f"of {rows} rows", "two halves, gate and up (glu=no if there is no gate)"
                )
            return [rows // 2, rows // 2]
        if kind is Kind.SEGMENTS:
            assert self.heads is not None
            groups = self.groups or self.heads
            if rows % (self.heads + 2 * groups):
                wanted = f"rows for {self.heads} query, {groups} key and {groups} value heads"
                raise ShapeError(name, f"of {rows} rows", wanted)
            width = rows // (self.heads + 2 * groups)
            return [self.heads * width, groups * width, groups * width]
        return [rows]


def positive(options: Mapping[str, str], name: str) -> int | None:
    """Whole number of an option, ``None`` if it is not given.

    Raises
    ------
    ConfigError
        If it is not a whole number of 1 or more.
    """
    text = options.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text[:9]) < 10**8 and len(text) < 9):
        raise ConfigError(name, text, "a whole number, 1 or more")
    return int(text)


def merged_rows(sharding: Sharding, name: str, rows: int, ranks: int) -> list[tuple[int, int, int]]:
    """Where the rows of a whole tensor lie, from the first to the last.

    Parameters
    ----------
    sharding : Sharding
        Variant of the rules.
    name : str
        Name of the tensor.
    rows : int
        Rows of the whole tensor.
    ranks : int
        Number of ranks.

    Returns
    -------
    list of (int, int, int)
        Rank, and first and last row (exclusive) in that rank's part.
    """
    placed = []
    for rank in range(ranks):
        at = 0
        for start, stop in sharding.rows_of(name, rows, ranks, rank):
            placed.append((start, rank, at, at + stop - start))
            at += stop - start
    return [(rank, first, last) for _, rank, first, last in sorted(placed)]
