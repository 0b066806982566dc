"""Small operations of a model's code, each replaced by one launch while a step is captured.

Nothing is known about model classes: whatever is replaced is tried on random numbers first, and stays as it is if the
results differ. What a model does besides is its own code.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qformats.kernels import step
from qformats.runtime.decoding.cache import StepCache
from qformats.runtime.neighbours import trusted

__all__ = ["ATTENTION", "Unfit", "fused"]

ATTENTION = "qformats_step"
"""Name of the attention of a step, in Transformers' terms. No mask belongs to it: the cache tells what is seen."""
_ROTARY = "apply_rotary_pos_emb"
_KNOWN = frozenset(
    "dropout scaling sliding_window softcap s_aux use_cache position_ids cache_position output_attentions "
    "output_hidden_states return_dict is_causal logits_to_keep num_items_in_batch past_key_values "
    "position_embeddings".split()
)
"""What an attention may be given besides queries, keys and values; anything else could change its result."""
_PLAIN = (type(None), bool, int, float)
_HARMLESS = (None, False, 0, 0.0)
_SHARED = 16
"""Heads of queries that share keys, at most."""


class Unfit(Exception):
    """A model's step cannot be captured; says why."""


_now = threading.local()
"""Cache and places at the front of the step that this thread computes."""


@contextlib.contextmanager
def fused(model: Any, cache: StepCache, pads: Tensor) -> Iterator[None]:
    """Let a model compute steps of one token with fewer launches, for as long as this lasts.

    Parameters
    ----------
    model : torch.nn.Module
        One of Transformers' models.
    cache : StepCache
        That the model is called with.
    pads : Tensor
        int64, ``(batch,)``: places at the front of each sequence that are not seen.
    """
    replaced: list[nn.Module] = []
    found: dict[type, bool] = {}
    configs = {id(module.config): module.config for module in model.modules() if _has_attention(module)}
    before = {key: config._attn_implementation for key, config in configs.items()}
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
    _now.step = cache, pads
    try:
        for config in configs.values():
            config._attn_implementation = ATTENTION
        for module in model.modules():
            forward = _faster(module, model.dtype, found)
            if forward is not None and "forward" not in module.__dict__:
                module.forward = forward
                replaced.append(module)
        with trusted():
            yield
    finally:
        del _now.step
        for module in replaced:
            del module.forward
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _has_attention(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    cache, pads = _now.step
    strange = [
        name
        for name, each in given.items()
        if name not in _KNOWN and not (isinstance(each, _PLAIN) and each in _HARMLESS)
    ]
    # All there is room for: keys as they are kept, or made of what is kept.
    held = key.shape[2] == value.shape[2] == cache.room
    shared = query.shape[1] // key.shape[1]
    if strange or attention_mask is not None or not held or query.shape[2] != 1 or shared > _SHARED:
        raise Unfit(f"the attention of {type(module).__name__} is of a kind of its own")
    if given.get("dropout"):
        raise Unfit("it is being trained")
    window = int(given.get("sliding_window") or 0)
    if _slides(module) and not window:
        raise Unfit(f"the code of {type(module).__name__} does not tell its attention the window")
    found = step.attention(
        query,
        key,
        value,
        pads,
        cache.length,
        scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        window=window,
        cap=given.get("softcap"),
        sinks=given.get("s_aux"),
    )
    return found, None


def _slides(module: Any) -> bool:
    """Whether a layer's attention has a window, as far as the configuration tells."""
    config, place = module.config, getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None or place is None:
        return getattr(config, "sliding_window", None) is not None
    kind = kinds[place]
    if kind not in ("full_attention", "sliding_attention"):
        raise Unfit(f"a layer is of the kind {kind}")
    return bool(kind == "sliding_attention")


# Modules.


def _faster(module: nn.Module, dtype: torch.dtype, tried: dict[type, bool]) -> Callable[..., Any] | None:
    """What computes the same in fewer launches."""
    kind = type(module)
    if kind.__name__.endswith("RMSNorm"):
        return _norm(module)
    if {name for name, _ in module.named_children()} >= {"gate_proj", "up_proj", "down_proj"}:
        return _gated(module, dtype, tried)
    if _ROTARY in getattr(kind.forward, "__globals__", {}):
        return _turning(module)
    return None


def _norm(module: Any) -> Callable[..., Any] | None:
    weight = module._parameters.get("weight")
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weight is None or weight.ndim != 1 or not isinstance(eps, float) or list(module.children()):
        return None
    key = (type(module), weight.dtype, weight.device)
    style = _norms[key] if key in _norms else _norms.setdefault(key, _style(module, weight, eps))
    if style is None:
        return None
    plus_one, late = style

    def forward(x: Tensor) -> Tensor:
        return step.norm(x.contiguous(), weight, eps, plus_one=plus_one, late=late)

    return forward


_norms: dict[tuple[Any, ...], tuple[bool, bool] | None] = {}
"""How the classes of norms round, as tried."""


def _style(module: Any, weight: Tensor, eps: float) -> tuple[bool, bool] | None:
    """Whether one is added to the weight, and whether it multiplies what is rounded; None if neither fits."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(4, len(weight), generator=generator).to(weight.device, weight.dtype)
    own = type(module).forward(module, x)
    if own.shape != x.shape or own.dtype != x.dtype:
        return None
    found = {}
    for style in ((False, True), (True, False), (False, False), (True, True)):
        other = step.norm(x, weight, eps, plus_one=style[0], late=style[1])
        found[style] = float((other.float() - own.float()).abs().max())
    best = min(found, key=lambda each: found[each])
    near = 4 * torch.finfo(x.dtype).eps * float(own.float().abs().max())
    return best if found[best] <= near else None


def _gated(module: Any, dtype: torch.dtype, tried: dict[type, bool]) -> Callable[..., Any] | None:
    if len(list(module.children())) > 4 or not hasattr(module, "act_fn"):
        return None
    kind = _activation(module.act_fn)
    if kind is None:
        return None

    def forward(x: Tensor) -> Tensor:
        down: Tensor = module.down_proj(step.gated(module.gate_proj(x), module.up_proj(x), kind))
        return down

    if type(module) not in tried:
        device = module.down_proj.weight.device
        x = torch.randn(1, 1, module.gate_proj.in_features, generator=torch.Generator().manual_seed(0))
        x = x.to(device, dtype)
        tried[type(module)] = _close(type(module).forward(module, x), forward(x))
    return forward if tried[type(module)] else None


def _activation(act: Any) -> str | None:
    """Name of an activation that the kernel knows."""
    x = torch.linspace(-6, 6, 97)
    try:
        y = act(x)
    except Exception:
        # Whatever it is, it is not one of these.
        return None
    known = {"silu": functional.silu(x), "gelu_tanh": functional.gelu(x, approximate="tanh")}
    return next((name for name, each in known.items() if torch.allclose(each, y, rtol=1e-6, atol=1e-6)), None)


def _turning(module: nn.Module) -> Callable[..., Any] | None:
    """The module's own code, with another function that rotates."""
    own = type(module).forward
    if not isinstance(own, types.FunctionType) or not _usual_rotary(own.__globals__[_ROTARY]):
        return None
    changed = types.FunctionType(
        own.__code__,
        {**own.__globals__, _ROTARY: functools.partial(_rotary, own.__globals__[_ROTARY])},
        own.__name__,
        own.__defaults__,
        own.__closure__,
    )
    changed.__kwdefaults__ = own.__kwdefaults__
    return types.MethodType(changed, module)


def _rotary(
    own: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *rest: Any, **more: Any
) -> Any:
    if rest or more or q.shape[2] != 1 or not q.shape[-1] == k.shape[-1] == cos.shape[-1] == sin.shape[-1]:
        return own(q, k, cos, sin, *rest, **more)
    return step.rotary(q, k, cos, sin)


@functools.cache
def _usual_rotary(function: Any) -> bool:
    """Whether the two halves of a head are turned as coordinates, which is tried."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 1, 8, generator=generator) for heads in (3, 1))
    cos, sin = (torch.randn(2, 1, 8, generator=generator) for _ in range(2))
    try:
        found = function(q, k, cos, sin)
    except Exception:
        # It takes other arguments, or other shapes.
        return False
    if not isinstance(found, tuple) or len(found) != 2:
        return False

    def turned(x: Tensor) -> Tensor:
        low, high = x.chunk(2, -1)
        return x * cos[:, None] + torch.cat((-high, low), -1) * sin[:, None]

    return all(
        a.shape == b.shape and torch.allclose(a, turned(b), rtol=1e-5, atol=1e-6)
        for a, b in zip(found, (q, k), strict=True)
    )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    spread = float((one.float() - other.float()).norm())
    return spread <= 8 * torch.finfo(one.dtype).eps * float(one.float().norm())
