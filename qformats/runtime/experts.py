"""Experts of a mixture, each with its own packed weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qformats.errors import Described, UnsupportedModelError

__all__ = ["QuantExperts", "refuse_strange_experts"]

_USUAL = {
    "has_gate": True,
    "has_bias": False,
    "is_transposed": False,
    "is_concatenated": True,
    "has_post_expert_norm": False,
}
"""Attributes of Transformers' experts whose matrices are those of gated linear units."""
_PARTS = {"gate_up_proj": 2, "down_proj": 1}
"""Their parameters, and how many matrices of an expert are stacked in each."""
_LATER = ("has_post_expert_norm",)
"""Attributes that experts of older versions of Transformers lack."""


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
    strange = [
        f"{attribute} is {found}"
        for attribute, usual in _USUAL.items()
        if (found := getattr(module, attribute, usual if attribute in _LATER else None)) is not usual
    ]
    consists = {parameter: len(names) for parameter, names in labels.items()}
    if consists != _PARTS:
        strange.append(f"the matrices are {consists}")
    if strange:
        what = f"experts {name}, with {100 * share:.0f} % of the model's weights"
        told = Described(f"{type(module).__name__} ({'; '.join(strange)})")
        hint = "Load the model with its experts unquantized"
        raise UnsupportedModelError(
            what, told, ["gated experts without biases, with gate and up stacked"], hint
        )


class QuantExperts(nn.Module):
    """Experts whose matrices are layers of their own, packed or not, in place of parameters that stack them all.

    Parameters
    ----------
    rule : torch.nn.Module
        Transformers' experts, which know the activation. Their parameters are taken away.
    labels : mapping of str to tuple of str
        What each of their parameters consists of: ``{"gate_up_proj": ("gate_proj", "up_proj"), "down_proj":
        ("down_proj",)}``.
    """

    def __init__(self, rule: Any, labels: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.num_experts = int(next(iter(rule.parameters(recurse=False))).shape[0])
        self.into, self.out = labels["gate_up_proj"], labels["down_proj"]
        for number in range(self.num_experts):
            expert = nn.Module()
            for parameter, names in labels.items():
                rows, columns = rule._parameters[parameter].shape[1:]
                for label in names:
                    layer = nn.Linear(columns, rows // len(names), bias=False, device="meta")
                    expert.add_module(label, layer.requires_grad_(False))
            self.add_module(str(number), expert)
        for parameter in labels:
            del rule._parameters[parameter]
        self.rule = rule

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Sum of the chosen experts' outputs for each token.

        Parameters
        ----------
        hidden_states : Tensor
            ``(tokens, hidden size)``.
        top_k_index : Tensor
            int64, ``(tokens, k)``: experts of each token; a number beyond them stands for none.
        top_k_weights : Tensor
            ``(tokens, k)``.
        """
        total = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():  # type: ignore[no-untyped-call]
            if number >= self.num_experts:
                continue
            token, choice = (top_k_index == number).nonzero(as_tuple=True)
            expert = self.get_submodule(str(number))
            state = hidden_states[token]
            inner = torch.cat([expert.get_submodule(label)(state) for label in self.into], -1)
            result = expert.get_submodule(self.out[0])(self.rule._apply_gate(inner))
            weighted = result * top_k_weights[token, choice, None]
            total.index_add_(0, token, weighted.to(total.dtype))
        return total
