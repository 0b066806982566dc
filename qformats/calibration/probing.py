"""Which layers of a block can have their input columns scaled, found by trying: no names of architectures are needed.

Something in front of a layer (a norm, the rows of another linear layer) is divided by factors, powers of two that
differ from column to column. The layers whose inputs then come divided by just these factors are multiplied by them. If
the block then computes what it did, the fold is right; if it does not, because an activation lies between, or something
else reads the same numbers, it is none. Powers of two make the comparison one of equal numbers, save where a model adds
1 to its norms.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qformats.calibration.experts import expert_of
from qformats.calibration.folds import Fold, Part

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Heads", "Probe", "heads_of"]

_SAME = 1e-5
"""How much of the change that an open fold makes may be left once it is closed: the rounding of float32."""
_POWERS = (-2, -1, 1, 2)
"""Exponents of the factors that are tried; none is 0, so that every column is."""

Heads = Sequence[tuple[int, int, int]]
"""Sizes that attention may have: heads of queries, heads of values, width of a value."""


class Probe:
    """One block, in float32, on a few tokens.

    Parameters
    ----------
    module : torch.nn.Module
        The block, loaded; its parameters are changed and restored.
    linears : collection of str
        Its linear layers, by their names within it.
    states : Tensor
        float32, hidden states before it.
    arguments : mapping
        What else it is called with.
    heads : sequence of (int, int, int)
        Sizes that its attention may have.
    """

    def __init__(
        self,
        module: Any,
        linears: Mapping[str, Any],
        states: Tensor,
        arguments: Mapping[str, Any],
        heads: Heads,
    ) -> None:
        self._module, self._linears = module, linears
        self._states, self._arguments, self._heads = states, arguments, heads
        self._parameters = dict(module.named_parameters())
        self._owners = {name: module.get_submodule(name.rpartition(".")[0]) for name in self._parameters}
        self._base, self._inputs = self._run()

    # Running.

    def _run(self) -> tuple[list[Tensor], dict[str, list[tuple[Tensor, bool]]]]:
        """Results of the block, and every matrix's inputs with whether its columns are its last dimension."""
        from qformats.calibration.multiplied import Multiplied

        products = Multiplied(self._parameters)
        with products:
            given = self._module(self._states.clone(), **self._arguments)
        return list(_tensors(given)), products.found

    def _view(self, name: str) -> Tensor:
        """A parameter as its vector, or its matrix ``[out, in]``."""
        values: Tensor = self._parameters[name].data
        return values.t() if type(self._owners[name]).__name__ == "Conv1D" and values.ndim == 2 else values

    def _factors(self, count: int) -> Tensor:
        import torch

        generator = torch.Generator().manual_seed(count)
        picked = torch.randint(0, len(_POWERS), (count,), generator=generator)
        return torch.tensor(_POWERS, dtype=torch.float32)[picked].exp2().to(self._states.device)

    # Trying.

    def find(self, wanted: Iterable[str]) -> list[Fold]:
        """Folds of layers, in the order in which data reaches these.

        Parameters
        ----------
        wanted : iterable of str
            Linear layers whose columns are to be scaled, by their names within the block.
        """
        wanted = set(wanted)
        folds: list[Fold] = []
        for name in self._vectors():
            fold = self._of_norm(name)
            if fold is not None and wanted & set(fold.layers):
                folds.append(fold)
        covered = {layer for fold in folds for layer in fold.layers}
        order = [owner for owner in map(_owner, self._inputs) if owner in self._linears]
        done: set[tuple[str, str]] = set()
        for layer in order:
            expert = expert_of(layer)
            kind = (expert[0], expert[2]) if expert else (layer, "")
            if layer in covered or kind in done or layer not in wanted:
                continue
            fold = self._of_linear(layer, order)
            # One that reached no token may still show what its like do.
            if fold is not None or not expert:
                done.add(kind)
            if fold is not None:
                together = self._of_experts(fold, wanted) if expert else [fold]
                folds += together
                covered |= {name for each in together for name in each.layers}
        place = {layer: number for number, layer in enumerate(order)}
        return sorted(folds, key=lambda fold: min(place.get(layer, len(order)) for layer in fold.layers))

    def holds(self, folds: Sequence[Fold]) -> bool:
        """Whether all of these folds, closed together, leave what the block computes as it is."""
        if not folds:
            return False
        known = all(part.name in self._parameters for fold in folds for part in fold.parts)
        if not known or not all(
            len(part.index) == self._view(part.name).shape[part.dim] for fold in folds for part in fold.parts
        ):
            return False
        opened = [part for fold in folds for part in fold.parts if part.divides]
        factors = {part: self._factors(fold.count) for fold in folds for part in fold.parts}
        with _Changed(self, [(part, factors[part]) for part in opened]):
            change = self._differences(self._run()[0])
        with _Changed(self, [(part, factors[part]) for fold in folds for part in fold.parts]):
            return self._closed(change, self._run()[0])

    def _vectors(self) -> Iterator[str]:
        """Modules with a weight for each element, and perhaps a bias, and no more."""
        for name, module in self._module.named_modules():
            own = {key: value for key, value in module._parameters.items() if value is not None}
            if own.keys() <= {"weight", "bias"} and "weight" in own and own["weight"].ndim == 1:
                yield name

    def _of_norm(self, name: str) -> Fold | None:
        import torch

        weight = self._parameters[f"{name}.weight"]
        index = torch.arange(len(weight))
        for shift in (0.0, 1.0):
            parts = [Part(f"{name}.weight", 0, index, divides=True, shift=shift)]
            if f"{name}.bias" in self._parameters:
                parts.append(Part(f"{name}.bias", 0, index, divides=True))
            fold = self._tried(name, parts, index, len(weight))
            if fold is not None:
                return fold
        return None

    def _of_linear(self, layer: str, order: Sequence[str]) -> Fold | None:
        """A fold of a layer and one before it, the nearest that allows it."""
        import torch

        columns = self._view(f"{layer}.weight").shape[1]
        for before in reversed(order[: order.index(layer)]):
            rows = self._view(f"{before}.weight").shape[0]
            for taken, index in _mappings(rows, columns, self._heads):
                where = torch.full((rows,), -1, dtype=torch.int64)
                where[taken] = torch.arange(len(taken))
                parts = [Part(f"{before}.weight", 0, where, divides=True)]
                if f"{before}.bias" in self._parameters:
                    parts.append(Part(f"{before}.bias", 0, where, divides=True))
                fold = self._tried(before, parts, index, len(taken))
                if fold is not None and layer in fold.layers:
                    return fold
        return None

    def _of_experts(self, fold: Fold, wanted: Iterable[str]) -> list[Fold]:
        """The fold of every expert, as that of one: all compute the same."""
        layer, *more = fold.layers
        own = expert_of(layer)
        before = expert_of(fold.before)
        if more or own is None or before is None or own[:2] != before[:2]:
            return [fold]
        found = []
        for other in wanted:
            expert = expert_of(other)
            if expert is None or (expert[0], expert[2]) != (own[0], own[2]):
                continue
            names = {layer: other, fold.before: f"{expert[0]}.{expert[1]}.{before[2]}"}
            parts = [
                Part(f"{names[_owner(part.name)]}.weight", part.dim, part.index, divides=part.divides)
                for part in fold.parts
            ]
            found.append(Fold(names[fold.before], (other,), tuple(parts), fold.index, fold.count))
        return found if self.holds(found) else []

    def _tried(self, before: str, opened: Sequence[Part], index: Tensor, count: int) -> Fold | None:
        """The fold that these parts open, if there are matrices that close it."""
        factors = self._factors(count)
        along = factors[index.to(factors.device)]
        closing: dict[str, Part] = {}
        change: Tensor | None = None
        while True:
            with _Changed(self, [(part, factors) for part in (*opened, *closing.values())]):
                results, inputs = self._run()
            if change is None:
                change = self._differences(results)
            more = self._reached(inputs, along, closing)
            if more is None:
                return None
            if not more:
                break
            # Behind a router that is not closed yet, experts get other tokens.
            closing |= {name: Part(name, 1, index) for name in more}
        if not closing or not self._closed(change, results):
            return None
        if expert_of(before) is None:
            self._add_experts(closing, index)
        if not all(self._view(name).shape[1] == len(index) for name in closing):
            return None
        layers = tuple(map(_owner, closing))
        return Fold(before, layers, (*opened, *closing.values()), index, count)

    def _reached(
        self, inputs: Mapping[str, list[tuple[Tensor, bool]]], along: Tensor, known: Mapping[str, Part]
    ) -> list[str] | None:
        """Matrices whose inputs are those of before divided by the factors; None if one is no plain matrix."""
        found = []
        for name, given in inputs.items():
            before = self._inputs.get(name, [])
            if name in known or not before or before[0][0].shape[-1] != len(along):
                continue
            if len(before) != len(given) or any(
                one[0].shape != two[0].shape or not _same(one[0] / along, two[0])
                for one, two in zip(before, given, strict=True)
            ):
                continue
            if not any(bool(one[0].any()) for one in before):
                continue
            if self._parameters[name].ndim != 2 or not all(last for _, last in given):
                return None
            found.append(name)
        return found

    def _add_experts(self, closing: dict[str, Part], index: Tensor) -> None:
        """Matrices of experts that none of these tokens reach, where those of others are among the layers."""
        alike = {(e[0], e[2]) for name in closing if (e := expert_of(_owner(name)))}
        for local in self._linears:
            expert = expert_of(local)
            if expert and (expert[0], expert[2]) in alike:
                closing.setdefault(f"{local}.weight", Part(f"{local}.weight", 1, index))

    def _differences(self, results: Sequence[Tensor]) -> Tensor:
        import torch

        if [one.shape for one in results] != [one.shape for one in self._base]:
            return torch.tensor(torch.inf)
        each = [(a - b).norm() for a, b in zip(results, self._base, strict=True)]
        found: Tensor = torch.stack(each).norm()
        return found

    def _closed(self, change: Tensor, results: Sequence[Tensor]) -> bool:
        """Whether a closed fold left the results alone, which the open one changed."""
        left = self._differences(results)
        return bool(change > 0) and bool(change.isfinite()) and bool(left <= _SAME * change)


class _Changed:
    """Parameters with factors in them, as long as it is entered."""

    def __init__(self, probe: Probe, changes: Sequence[tuple[Part, Tensor]]) -> None:
        self._probe, self._changes = probe, changes
        self._before: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        for part, factors in self._changes:
            view = self._probe._view(part.name)
            self._before.setdefault(part.name, view.clone())
            view.copy_(part.of(view, factors))

    def __exit__(self, *_: object) -> None:
        for name, values in self._before.items():
            self._probe._view(name).copy_(values)


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _same(wanted: Tensor, found: Tensor) -> bool:
    return bool((wanted - found).norm() <= 1e-5 * wanted.norm())


def _tensors(given: Any) -> Iterator[Tensor]:
    """All float tensors among the results of a block."""
    import torch

    if isinstance(given, torch.Tensor):
        if given.is_floating_point():
            yield given.float()
    elif isinstance(given, (tuple, list)):
        for each in given:
            yield from _tensors(each)
    elif isinstance(given, dict):
        yield from _tensors(tuple(given.values()))


def _mappings(rows: int, columns: int, heads: Heads) -> Iterator[tuple[Tensor, Tensor]]:
    """Ways in which columns of a layer may be rows of another: the rows, and which of them each column is."""
    import torch

    each = torch.arange(columns)
    if rows == columns:
        yield each, each
    if rows == 2 * columns:
        yield each + columns, each
        yield each, each
        yield 2 * each + 1, each
        yield 2 * each, each
    for queries, values, width in heads:
        if queries * width != columns or queries % values:
            continue
        index = each // width // (queries // values) * width + each % width
        count = values * width
        if rows == count and values < queries:
            yield torch.arange(count), index
        if rows > count:
            # Joined with queries and keys, whose rows come first.
            yield torch.arange(rows - count, rows), index
        for groups in {values, queries}:
            if rows % groups or rows // groups <= width or groups != values:
                continue
            # The last rows of each group of heads.
            inner = torch.arange(groups).unsqueeze(1) * (rows // groups)
            yield (inner + torch.arange(rows // groups - width, rows // groups)).flatten(), index


def heads_of(config: Mapping[str, Any], module: Any) -> Heads:
    """Sizes that the attention of a block may have, from its configuration and from its modules."""
    found: dict[tuple[int, int, int], None] = {}
    places = [config] + [vars(each) for each in module.modules() if "config" in vars(each)]
    queries = _numbers(places, "num_attention_heads", "num_heads", "n_head", "n_heads", "num_local_heads")
    values = _numbers(
        places, "num_key_value_heads", "num_kv_heads", "n_head_kv", "num_key_value_groups_heads"
    )
    widths = _numbers(places, "head_dim", "v_head_dim", "global_head_dim")
    hidden = _numbers(places, "hidden_size", "n_embd", "d_model")
    for count in queries:
        sizes = {*widths, *(each // count for each in hidden if each % count == 0)}
        for few, width in itertools.product({*values, count, 1}, sorted(sizes)):
            if count % few == 0 and width:
                found[count, few, width] = None
    return sorted(found, reverse=True)


def _numbers(places: Sequence[Mapping[str, Any]], *names: str) -> list[int]:
    found = {
        place[name]
        for place in places
        for name in names
        if isinstance(place.get(name), int) and not isinstance(place.get(name), bool) and place[name] > 0
    }
    return sorted(found)
