"""Many rows of activations by Humming, vLLM's matrix product for quantized weights (PyPI: ``humming-kernels``).

Where dozens of rows are multiplied, decoding and multiplying must overlap, which takes the asynchronous tensor cores
and bulk copies of the newest devices. Humming does that in CUDA C++, compiled when it is first used. It is optional:
its layout is another one, so a weight that both kernels multiply with is held twice.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qformats.errors import BackendUnavailableError
from qformats.kernels.device import codes_of
from qformats.kernels.form import AFFINE, DeviceWeight

__all__ = ["HummingLinear", "is_worth", "unfit", "warn_of"]

_ROWS = 33
"""Rows of activations from which on Humming is faster in every format it has."""
_LONG_ROWS = 9
"""The same for codes of two planes, whose decode takes the shared kernel longer."""
_TILE = 64
"""Rows and columns of a weight must be multiples of it."""


def is_worth(weight: DeviceWeight, count: int) -> bool:
    """Whether so many rows of activations are faster with Humming than with the shared kernels, where it is fit.

    Measured on one H200 with ``scripts/bench_gpu.py --only humming``; see docs/kernels.md.
    """
    return count >= (_LONG_ROWS if weight.form.bits == 5 else _ROWS)


def unfit(weight: DeviceWeight, dtype: torch.dtype) -> str | None:
    """Why Humming would not multiply with the same numbers, in words that follow "because"; None if it would.

    Parameters
    ----------
    weight : DeviceWeight
        In the device layout; an order of columns does not matter.
    dtype : torch.dtype
        Of the activations.
    """
    form = weight.form
    if dtype != torch.float16:
        return f"it would round float16 scales to {str(dtype).removeprefix('torch.')}, as the activations are"
    if form.mode != AFFINE or form.factored:
        return "its codes have one scale a group and nothing else: no table, no minimum, no scale of scales"
    if form.rows % _TILE or form.columns % _TILE:
        return f"{form.rows} x {form.columns} is not a multiple of {_TILE} both ways"
    group = form.group if form.group < form.columns else 0
    if group and (group < 16 or group & (group - 1)):
        return f"groups of {group} columns are not a power of two from 16 on"
    if weight.scale.dtype != torch.float16 and not torch.equal(weight.scale.half().float(), weight.scale):
        return "float16 cannot hold its scales"
    shift = weight.shift
    least, most = (form.zero, form.zero) if shift is None else (int(shift.min()), int(shift.max()))
    if least < 0 or most >= 1 << form.bits:
        return f"zero points from {least} to {most} are not codes of {form.bits} bits"
    return None


class HummingLinear:
    """``x @ W.T + bias`` for many rows of float16 activations.

    Parameters
    ----------
    weight : DeviceWeight
        On a CUDA device; :func:`unfit` must give None for it and float16. It is copied into Humming's layout.

    Raises
    ------
    BackendUnavailableError
        If Humming cannot compile its kernels.
    """

    def __init__(self, weight: DeviceWeight) -> None:
        form = weight.form
        self._rows = form.rows
        device = weight.scale.device
        group = form.group if form.group < form.columns else 0
        zeros = self._zeros(weight, group)
        with torch.cuda.device(device), torch.device(device), torch.inference_mode(False):
            self._layer = _told(lambda: _layer(weight, group, zeros))

    @staticmethod
    def _zeros(weight: DeviceWeight, group: int) -> Tensor | None:
        """Zero points ``(N, groups)``; None where all are in the middle, which Humming takes for granted."""
        form = weight.form
        if weight.shift is not None:
            return weight.shift.t().to(torch.uint8)
        if form.zero == 1 << (form.bits - 1):
            return None
        groups = form.columns // group if group else 1
        return torch.full((form.rows, groups), form.zero, dtype=torch.uint8, device=weight.scale.device)

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(..., K)`` to ``(..., N)``, columns in device order; kernels are compiled at the first call."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        with torch.cuda.device(x.device):
            out: Tensor = _told(lambda: self._layer(rows, tuning_config=self._tuning()))
        if bias is not None:
            out += bias
        return out.view(*x.shape[:-1], self._rows)

    def _tuning(self) -> str:
        """Humming's own choices, without those for fewer rows than it is asked for, which would be compiled in vain."""
        if not hasattr(self, "_chosen"):
            import json

            from humming.tune import get_heuristics_config

            # From more than so many rows on, up to so many, and what to do.
            choices = get_heuristics_config(layer_config=self._layer.humming_config)
            (_, *first), *rest = [each for each in choices if each[1] >= _LONG_ROWS]
            # They must begin with 0.
            self._chosen: str = json.dumps([[0, *first], *rest])
        return self._chosen


def _layer(weight: DeviceWeight, group: int, zeros: Tensor | None) -> Any:
    from humming import ops
    from humming.layer import HummingLayer

    form = weight.form
    config = {"dtype": f"uint{form.bits}", "group_size": group, "has_zero_point": zeros is not None}
    layer = HummingLayer(form.rows, form.columns, weight_config=config, torch_dtype=torch.float16)
    codes = codes_of(weight).to(torch.uint8)
    tensors = {
        "weight": ops.pack_weight(codes, form.bits),
        "weight_scale": weight.scale.t().contiguous().to(torch.float16),
    }
    if zeros is not None:
        # Packed along the rows.
        tensors["zero_point"] = ops.pack_weight(zeros.t().contiguous(), form.bits).t().contiguous()
    layer.load_from_tensors(tensors)
    layer.transform()
    return layer


def _told(run: Callable[[], Any]) -> Any:
    if find_spec("humming") is None:
        hint = "install humming-kernels, or unset QFORMATS_KERNEL"
        raise BackendUnavailableError("humming", "the package is not installed", hint)
    try:
        return run()
    except (RuntimeError, OSError, AssertionError, ImportError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        told = (str(error).strip() or repr(error)).splitlines()[-1]
        reason = f"it could not compile or start its kernels ({told})"
        hint = "Install humming-kernels[cu13], or [cu12], which brings a compiler, or unset QFORMATS_KERNEL"
        raise BackendUnavailableError("humming", reason, hint) from error


_heard: set[str] = set()


def warn_of(reason: str, weight: DeviceWeight) -> None:
    """Say, once a reason, that weights stay with the shared kernels."""
    if reason not in _heard:
        _heard.add(reason)
        shape = f"{weight.form.rows} x {weight.form.columns}"
        warnings.warn(
            f"QFORMATS_KERNEL=humming: a weight of {shape} stays with the shared kernels, because {reason}",
            UserWarning,
            stacklevel=2,
        )
