"""Names, shapes and row orders of a model's tensors, in both directions."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from qformats.errors import CheckpointError, ConfigError
from qformats.interfaces import evaluate
from qformats_gguf.architectures import further, longrope, multimodal
from qformats_gguf.architectures.limits import Problem
from qformats_gguf.architectures.mapping import TensorMapping
from qformats_gguf.architectures.numbers import sizes
from qformats_gguf.architectures.orders import Permute, Regroup
from qformats_gguf.architectures.pieces import Piece, PieceRule
from qformats_gguf.architectures.schema import Row
from qformats_gguf.architectures.tensor_rules import If, TensorRule

__all__ = ["Names"]


_MOST_TENSORS = 1 << 20
"""61 layers of 384 experts have 70,000."""


@dataclass(frozen=True)
class Names:
    """The tensors of one model under both of their names.

    Attributes
    ----------
    row : Row
        Its row of the table.
    config : dict
        Complete Hugging Face configuration. From metadata: a ``config.json`` for Transformers, except for
        the dtype.
    source : str
        File the model comes from, for messages.
    ignored : tuple of Problem
        What was lost because of ``force=True``; ``str(problem)`` is a warning to show.
    within : bool
        Whether it is the language model in a folder that holds a vision model too.
    predicting : int
        Blocks after the model's own that predict further tokens, of a GGUF file or for one.
    further : frozenset of str
        Tensors of such blocks that a folder has, by names as those of other blocks.
    """

    row: Row
    config: dict[str, Any]
    source: str = ""
    ignored: tuple[Problem, ...] = ()
    within: bool = False
    predicting: int = 0
    further: frozenset[str] = frozenset()

    @property
    def arch(self) -> str:
        """``general.architecture``."""
        return self.row.arch

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return int(self.config[self.row.blocks])

    def map_tensor(self, name: str) -> TensorMapping | None:
        """Map a tensor of the Hugging Face checkpoint.

        Parameters
        ----------
        name : str
            As stored; base-model checkpoints without the leading prefix are understood.

        Returns
        -------
        TensorMapping or None
            None for buffers that old checkpoints contain, and for the copy of a tied weight.

        Raises
        ------
        CheckpointError
            If a model of this configuration has no such tensor.
        """
        if name.endswith(self.row.junk) or (self.within and not multimodal.inside(name)):
            return None
        if self.within:
            name = multimodal.bare(name)
        name = self.row.own(name)
        own = self._in_block(name)
        if (own is not None and own not in self.further) or name.startswith(self.row.heads):
            return None
        name = own or name
        found = self._match(name, "canonical") or self._match(self.row.prefix + name, "canonical")
        if found is None:
            raise self._unexpected(name)
        rule, block, expert, suffix = found
        if not self._has(rule, suffix, block):
            if rule.alias_of is not None:
                return None
            raise self._unexpected(name, rule.presence(suffix))
        return self._mapping(rule, block, suffix, expert)

    def why_left_out(self, name: str) -> str:
        """Why a GGUF file holds no such tensor, where `map_tensor` gives None."""
        if self.within and not multimodal.inside(name):
            return "part of the vision model: the file holds the language model"
        if name.endswith(self.row.junk):
            return "computed by every reader"
        own = self.row.own(multimodal.bare(name) if self.within else name)
        if own.startswith(self.row.heads):
            return "part of a head: the file holds the model that makes embeddings"
        if self._in_block(own) is not None:
            return "part of a layer that predicts further tokens: the file holds the model without it"
        return "the same weight as the token embedding, from which llama.cpp takes it"

    def home_of(self, name: str) -> str | None:
        """Canonical name of the tensor that `name` is a copy of where the configuration ties them."""
        own = self.row.own(multimodal.bare(name) if self.within else name)
        found = self._match(own, "canonical") or self._match(self.row.prefix + own, "canonical")
        if found is None or found[0].alias_of is None:
            return None
        home = found[0].alias_of + found[3]
        return multimodal.wrapped_like(home, name) if self.within else home

    def unmap_tensor(self, name: str) -> TensorMapping:
        """Map a tensor of the GGUF file; the inverse of `map_tensor`. Of a stack, it gives the first matrix.

        Raises
        ------
        CheckpointError
            If the architecture has no such tensor. Those of `extra_tensors` are configuration, not
            tensors: leave them out.
        """
        found = self._match(name, "gguf")
        if found is None or not self._has(found[0], found[3], found[1]):
            raise self._unexpected(name, found[0].presence(found[3]) if found else True)
        rule, block, expert, suffix = found
        return self._mapping(rule, block, suffix, expert)

    def unmap_tensors(self, name: str) -> list[TensorMapping]:
        """Map a tensor of the GGUF file that may hold several, in the order of their rows; see `unmap_tensor`."""
        found = []
        for part in self.row.separate(name):
            first = self.unmap_tensor(part)
            match = self._match(part, "gguf")
            assert match is not None
            rule, block, _, suffix = match
            others = range(1, first.stack)
            found += [first, *(self._mapping(rule, block, suffix, expert) for expert in others)]
        return found

    def expected_tensors(self) -> list[TensorMapping]:
        """Every tensor that a model of this configuration has, block by block."""
        outside = [rule for rule in self.row.tensors if not rule.per_block]
        inside = [rule for rule in self.row.tensors if rule.per_block]
        places = [(rule, 0) for rule in outside]
        places += [(rule, block) for block in range(self._blocks) for rule in inside]
        found = [
            self._mapping(rule, block, suffix, expert)
            for rule, block in places
            for suffix in rule.suffixes
            if self._has(rule, suffix, block)
            for expert in range(int(self.config[rule.experts]) if rule.experts else 1)
        ]
        return [mapping for mapping in found if not self._optional(mapping)]

    def folder_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """Shape of every tensor of a folder by its name; None if it has others besides, or absurdly many."""
        experts = sum(int(self.config[rule.experts]) if rule.experts else 1 for rule in self.row.tensors)
        if self.within or self.row.heads or experts * self.block_count > _MOST_TENSORS:
            return None
        return {mapping.canonical: mapping.shape for mapping in self.expected_tensors()}

    def missing(self, names: Collection[str]) -> list[TensorMapping]:
        """List the tensors that the model needs and that `names` (of either kind) lacks.

        Raises
        ------
        CheckpointError
            If there are more blocks than names: listing them would be useless.
        """
        there = {part for name in names for part in self.row.separate(name)}
        if self.within:
            there = {multimodal.bare(name) for name in there}
        if self.block_count > len(there):
            raise CheckpointError(
                self.source, f"only {len(there)} tensors", f"enough for {self.block_count} blocks"
            )
        there |= {own for name in there if (own := further.in_block(name, self.block_count, self.config))}
        there |= {self.row.prefix + name for name in there} | {self.row.own(name) for name in there}
        return [t for t in self.expected_tensors() if t.canonical not in there and t.gguf not in there]

    def require(self, names: Collection[str]) -> None:
        """Raise `CheckpointError`, naming what `missing` finds."""
        absent = self.missing(names)
        if absent:
            expected, there = self.expected_tensors(), set(names)
            from_gguf = any(tensor.gguf in there for tensor in expected)
            others = f" (and {len(absent) - 1} others)" if len(absent) > 1 else ""
            raise CheckpointError(
                self.source,
                f"missing{others}",
                f"the {len(expected)} tensors of a {self.arch} model with {self.block_count} blocks",
                tensor=absent[0].gguf if from_gguf else absent[0].canonical,
                hint="the download may be incomplete",
            )

    def check_shape(self, mapping: TensorMapping, shape: tuple[int, ...], name: str) -> None:
        """Raise `CheckpointError` if the tensor `name` does not have the shape that the configuration gives."""
        if shape != mapping.shape:
            raise CheckpointError(
                self.source,
                f"shape {shape}",
                f"{mapping.shape}, from the sizes in the configuration",
                tensor=name,
                hint="the weights and the configuration belong to different models",
            )

    def is_extra(self, name: str) -> bool:
        """Whether a GGUF tensor is one of those that `extra_tensors` makes: configuration, not weights."""
        longrope_too = name in longrope.TENSORS and "longrope" in self.row.rope
        return longrope_too or (name == "rope_freqs.weight" and "llama3" in self.row.rope)

    def is_further(self, name: str) -> bool:
        """Whether a GGUF tensor belongs to a block that predicts further tokens, which no class of Transformers has."""
        found = re.match(r"blk\.(\d+)\.", name)
        return found is not None and 0 <= int(found[1]) - self.block_count < self.predicting

    def _in_block(self, name: str) -> str | None:
        """Name of a tensor of a block after the last one; None for other tensors."""
        own = multimodal.bare(name) if self.within else name
        return further.in_block(own, self.block_count, self.config)

    @property
    def _blocks(self) -> int:
        """Blocks of a file made from this model."""
        return self.block_count + (self.predicting if self.further else 0)

    def _optional(self, mapping: TensorMapping) -> bool:
        """Whether a block that predicts further tokens is without this tensor."""
        _, nextn, last = mapping.gguf.partition(".nextn.")
        return bool(nextn) and mapping.canonical not in self.further and not last.startswith(further.REQUIRED)

    def _stacks(self) -> list[tuple[int, ...]]:
        """Shapes of the GGUF tensors that hold a matrix of each expert."""
        found = [
            self._mapping(rule, block, suffix).stored_shape
            for rule in self.row.tensors
            if rule.gguf.endswith("_exps")
            for block in range(self._blocks)
            for suffix in rule.suffixes
            if self._has(rule, suffix, block)
        ]
        return [shape for shape in found if len(shape) == 3]

    def _match(self, name: str, side: str) -> tuple[TensorRule, int, int, str] | None:
        """Rule, block, expert and ending of the GGUF name of a name; one that holds, if there are several."""
        first = None
        for rule, pattern in _patterns(self.row, side):
            match = pattern.fullmatch(name)
            if match:
                expert = int(match["expert"]) if rule.experts and side == "canonical" else 0
                suffix = match["suffix"] if rule.parameter is None else rule.parameter
                found = rule, int(match["block"]) if rule.per_block else 0, expert, suffix
                if self._has(rule, suffix, found[1]):
                    return found
                first = first or found
        return first

    def _has(self, rule: TensorRule, suffix: str, block: int) -> bool:
        if rule.layers and rule.layers not in self.row.kinds(block, self.config):
            return False
        presence = rule.presence(suffix)
        return presence.holds(self.config) if isinstance(presence, If) else presence

    def _mapping(self, rule: TensorRule, block: int, suffix: str, expert: int = 0) -> TensorMapping:
        canonical = rule.canonical.replace("{i}", str(block)).replace("{e}", str(expert))
        canonical += suffix if rule.parameter is None else ""
        gguf = rule.gguf.replace("{i}", str(block)) + suffix
        if rule.per_block and block >= self._blocks:
            raise CheckpointError(
                self.source, f"block {block}", f"blocks 0 to {self.block_count - 1}", tensor=canonical
            )
        stack = int(self.config[rule.experts]) if rule.experts else 0
        if expert >= max(stack, 1):
            raise CheckpointError(
                self.source, f"expert {expert}", f"experts 0 to {stack - 1}", tensor=canonical
            )
        permute: Permute | Regroup | None = None
        if rule.permute:
            permute = Permute(int(self.config[rule.permute]))
        dims = rule.shape[:1] if suffix == ".bias" and rule.parameter is None else rule.shape
        numbers = sizes(self.config)
        try:
            shape = tuple(evaluate(dim, **numbers) for dim in dims)
            if rule.groups:
                count, parts = rule.groups
                rows = tuple(evaluate(part, **numbers) for part in parts)
                heads = permute.heads if permute else 0
                permute = Regroup(evaluate(count, **numbers), rows, rule.only, heads)
            piece = _piece(rule.piece, numbers)
        except ConfigError as error:
            found = f"no number that the shape of {canonical} depends on"
            expected = f"whole numbers for {' and '.join(dims)}"
            raise CheckpointError(self.source, found, expected) from error
        plain = rule.force_f32 or suffix == ".bias"
        offset = rule.offset if suffix == ".weight" else 0.0
        bias = suffix == ".bias" and rule.parameter is None
        squeezed, negated_exp = rule.squeezed and not bias, rule.negated_exp and not bias
        return TensorMapping(
            canonical, gguf, shape, permute, plain, offset, stack, piece, squeezed, negated_exp
        )

    def _unexpected(self, name: str, presence: bool | If = True) -> CheckpointError:
        expected = f"only tensors of a {self.arch} model"
        if isinstance(presence, If):
            expected += f" with {presence.key} = {not presence.value}"
        return CheckpointError(self.source, "unknown", expected, tensor=name)


@cache
def _patterns(row: Row, side: str) -> list[tuple[TensorRule, re.Pattern[str]]]:
    """Rules with the pattern of their names on one side."""
    number = r"(?P<%s>0|[1-9]\d*)"
    found = []
    for rule in row.tensors:
        template = re.escape(getattr(rule, side)).replace(r"\{i\}", number % "block")
        template = template.replace(r"\{e\}", number % "expert")
        if rule.parameter is None:
            template += r"(?P<suffix>\.weight|\.bias)"
        elif side == "gguf":
            template += re.escape(rule.parameter)
        found.append((rule, re.compile(template)))
    return found


def _piece(rule: PieceRule | None, numbers: Mapping[str, int]) -> Piece | None:
    if rule is None:
        return None
    start, stop, groups = (
        evaluate(each, **numbers) if each else 0 for each in (rule.start, rule.stop, rule.groups)
    )
    return Piece(rule.axis, start, stop, groups, rule.swapped)
