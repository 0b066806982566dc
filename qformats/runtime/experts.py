"""Experts of a mixture, each with its own packed weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qformats.errors import Described, UnsupportedModelError
from qformats.kernels.form import DeviceWeight
from qformats.kernels.stacking import chosen_linear, stack
from qformats.runtime.layer import PackedLayer
from qformats.runtime.names import Place

__all__ = ["STACKS", "QuantExperts", "labels_of", "refuse_strange_experts"]

_USUAL = {"has_gate": True, "has_post_expert_norm": False}
"""Attributes of Transformers' experts whose matrices are those of gated linear units."""
_BY_EXPERT = {"num_experts", "act_fn", "gate_up_proj", "down_proj"}
"""Attributes of experts that are given tokens expert by expert, as those of Llama 4 are."""
STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Their parameters, and the matrices of an expert that are stacked in each."""
_SLOTS = 256
"""Pairs of a token and an expert that are multiplied one by one; for more, weights are worth decoding once."""
_LATER = ("has_post_expert_norm",)
"""Attributes that experts of older versions of Transformers lack."""


def labels_of(places: Iterable[Place]) -> dict[str, dict[str, tuple[str, ...]]]:
    """What each parameter that stacks matrices of experts consists of, by module and parameter."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for place in places:
        if place.expert is None or place.is_bias:
            continue
        owner, _, parameter = place.name.rpartition(".")
        labels = found.setdefault(owner, {})
        known = list(labels.get(parameter, ("",) * place.parts))
        known[place.part] = place.label
        labels[parameter] = tuple(known)
    return found


def refuse_strange_experts(
    name: str, module: nn.Module, labels: Mapping[str, tuple[str, ...]], share: float
) -> None:
    """Refuse experts that :class:`QuantExperts` does not compute.

    Parameters
    ----------
    name : str
        Of the module, for messages.
    module : torch.nn.Module
        Transformers' experts.
    labels : mapping of str to tuple of str
        What each of their parameters consists of.
    share : float
        Their part of the model's weights.

    Raises
    ------
    UnsupportedModelError
        Saying what is strange about them.
    """
    if _by_expert(module):
        return
    strange = [
        f"{attribute} is {found}"
        for attribute, usual in _USUAL.items()
        if (found := getattr(module, attribute, usual if attribute in _LATER else None)) is not usual
    ]
    consists = {parameter: len(names) for parameter, names in labels.items()}
    if consists != {parameter: len(names) for parameter, names in STACKS.items()}:
        strange.append(f"the matrices are {consists}")
    if strange:
        what = f"experts {name}, with {100 * share:.0f} % of the model's weights"
        told = Described(f"{type(module).__name__} ({'; '.join(strange)})")
        hint = "Load the model with its experts unquantized"
        raise UnsupportedModelError(what, told, ["gated experts, with gate and up stacked"], hint)


def _by_expert(module: nn.Module) -> bool:
    return not hasattr(module, "has_gate") and all(hasattr(module, name) for name in _BY_EXPERT)


class QuantExperts(nn.Module):
    """Experts whose matrices are layers of their own, packed or not, in place of parameters that stack them all.

    Parameters
    ----------
    rule : torch.nn.Module
        Transformers' experts, which know the activation. Their parameters are taken away.
    labels : mapping of str to tuple of str
        What each of their parameters consists of: ``{"gate_up_proj": ("gate_proj", "up_proj"), "down_proj":
        ("down_proj",)}``. Their biases, if there are any, stay where they are.
    """

    def __init__(self, rule: Any, labels: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.num_experts = int(next(iter(rule.parameters(recurse=False))).shape[0])
        self.into, self.out = labels["gate_up_proj"], labels["down_proj"]
        self.by_expert = _by_expert(rule)
        # Stacks of either kind are turned here, of the others none.
        turned = self.by_expert or rule.is_transposed
        self.alternating = not self.by_expert and not rule.is_concatenated
        for number in range(self.num_experts):
            expert = nn.Module()
            for parameter, names in labels.items():
                rows, columns = rule._parameters[parameter].shape[1:][:: -1 if turned else 1]
                for label in names:
                    layer = nn.Linear(columns, rows // len(names), bias=False, device="meta")
                    expert.add_module(label, layer.requires_grad_(False))
            self.add_module(str(number), expert)
        for parameter in labels:
            del rule._parameters[parameter]
        self.rule = rule
        self._stacks: dict[str, list[DeviceWeight]] | None = None

    def stack(self) -> bool:
        """Let the experts' weights lie together, if they are arranged and of one kind; the answer tells.

        Tokens one by one then cost as many launches as there are matrices in an expert, however many experts they take.
        """
        found = {}
        for label in (*self.into, *self.out):
            modules = [self.get_submodule(f"{number}.{label}") for number in range(self.num_experts)]
            layers = [module for module in modules if isinstance(module, PackedLayer) and module.is_arranged]
            if len(layers) < len(modules):
                return False
            parts = stack([layer.arranged() for layer in layers])
            if parts is None:
                return False
            found[label] = parts
            for layer, part in zip(layers, parts, strict=True):
                layer.rearranged(part)
        self._stacks = found
        return True

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moving takes the weights apart.
        together, self._stacks = self._stacks is not None, None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if together:
            self.stack()
        return self

    def forward(
        self, hidden_states: Tensor, top_k_index: Tensor | None = None, top_k_weights: Tensor | None = None
    ) -> Tensor:
        """Sum of the chosen experts' outputs for each token; of tokens given expert by expert, the output of each.

        Parameters
        ----------
        hidden_states : Tensor
            ``(tokens, hidden size)``.
        top_k_index : Tensor
            int64, ``(tokens, k)``: experts of each token; a number beyond them stands for none.
        top_k_weights : Tensor
            ``(tokens, k)``.
        """
        if top_k_index is None or top_k_weights is None:
            parts = hidden_states.view(self.num_experts, -1, hidden_states.shape[-1])
            done = torch.zeros_like(parts)
            # Tokens that the router has sent elsewhere are rows of zeros, of which an expert makes zeros.
            for number, reached in enumerate(parts.any(-1).cpu()):
                rows = reached.nonzero().flatten().to(parts.device)
                if len(rows):
                    done[number] = done[number].index_copy(0, rows, self._run(number, parts[number, rows]))
            return done.view(-1, hidden_states.shape[-1])
        if (
            self._stacks is not None
            and top_k_index.numel() <= _SLOTS
            and not (torch.is_grad_enabled() and hidden_states.requires_grad)
        ):
            return self._one_by_one(hidden_states, top_k_index, top_k_weights)
        total = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():  # type: ignore[no-untyped-call]
            if number >= self.num_experts:
                continue
            token, choice = (top_k_index == number).nonzero(as_tuple=True)
            result = self._run(number, hidden_states[token])
            weighted = result * top_k_weights[token, choice, None]
            total.index_add_(0, token, weighted.to(total.dtype))
        return total

    def _one_by_one(self, state: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """The same for a few tokens, without asking the device which experts they have chosen."""
        assert self._stacks is not None
        count = index.shape[1]
        given = index.flatten()
        some = given < self.num_experts
        chosen, biases = given.where(some, 0), self.rule._parameters
        parts = [chosen_linear(state, self._stacks[label], chosen, count) for label in self.into]
        joined = torch.stack(parts, -1).flatten(-2) if self.alternating else torch.cat(parts, -1)
        if "gate_up_proj_bias" in biases:
            joined = joined + biases["gate_up_proj_bias"][chosen]
        inner = self.rule._apply_gate(joined)
        result = chosen_linear(inner, self._stacks[self.out[0]], chosen, 1)
        if "down_proj_bias" in biases:
            result = result + biases["down_proj_bias"][chosen]
        weighted = result * (weights.flatten() * some)[:, None]
        total: Tensor = weighted.view(*index.shape, -1).to(state.dtype).sum(1)
        return total

    def _run(self, number: int, state: Tensor) -> Tensor:
        """Output of one expert."""
        expert, biases = self.get_submodule(str(number)), self.rule._parameters
        parts = [expert.get_submodule(label)(state) for label in self.into]
        if self.by_expert:
            gate, up = parts
            inner = up * self.rule.act_fn(gate)
        else:
            joined = torch.stack(parts, -1).flatten(-2) if self.alternating else torch.cat(parts, -1)
            if "gate_up_proj_bias" in biases:
                joined = joined + biases["gate_up_proj_bias"][number]
            inner = self.rule._apply_gate(joined)
        result: Tensor = expert.get_submodule(self.out[0])(inner)
        return result + biases["down_proj_bias"][number] if "down_proj_bias" in biases else result
