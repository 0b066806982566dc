"""Steps of a few tokens on a CPU: torch's operations on so little gain nothing from threads, but wait for them.

With two threads on two cores, a step of a model of 135 million weights took 34 ms instead of 25, and on a busy machine
250, since a thread that has no core keeps the others waiting (AMD EPYC, 2026-11-30). Products with packed weights use
threads of their own, see :mod:`qformats.work.crew`.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from qformats.runtime.bound import Bound

__all__ = ["FEW", "single_threaded_steps", "threads"]

FEW = 8
"""Tokens of a step; for more vectors it is faster to decode a weight once for all of them."""
_ATTENDED = 1 << 20
"""Bytes of keys and values of a layer, from which on attention is worth torch's threads."""

_own = threading.local()


def threads() -> int:
    """Threads that torch has outside of a step."""
    return getattr(_own, "threads", 0) or torch.get_num_threads()


def _begin(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given = kwargs.get("input_ids", args[0] if args else None)
    if not isinstance(given, torch.Tensor) or torch.compiler.is_compiling():
        return
    past = getattr(kwargs.get("past_key_values"), "get_seq_length", int)()
    if given.numel() <= FEW and given.shape[0] * past * _position(model) <= _ATTENDED:
        # After an interruption they are still those of before it.
        _own.threads = threads()
        torch.set_num_threads(1)
    else:
        _restore()


def _end(model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    # What generate does with the logits is little, too.
    if not getattr(_own, "generating", False):
        _restore()


def _restore() -> None:
    before = getattr(_own, "threads", 0)
    if before:
        _own.threads = 0
        torch.set_num_threads(before)


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    outer = getattr(_own, "generating", False)
    _own.generating = True
    try:
        return type(model).generate(model, *args, **kwargs)
    finally:
        _own.generating = outer
        if not outer:
            _restore()


def _position(model: Any) -> int:
    """Bytes of a position's keys and values in one layer, as far as the configuration tells."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0) or 1
    width = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // heads
    return 8 * width * (getattr(config, "num_key_value_heads", None) or heads)


def single_threaded_steps(model: nn.Module) -> None:
    """Have a model on a CPU compute steps of a few tokens with one of torch's threads.

    Parameters
    ----------
    model : torch.nn.Module
        One of Transformers' models, which gets two hooks and a ``generate`` of its own.
    """
    model.register_forward_pre_hook(_begin, with_kwargs=True)
    model.register_forward_hook(_end, always_call=True)
    model.generate = Bound(_generate, model)  # type: ignore[assignment]
