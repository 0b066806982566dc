"""AutoGPTQ's own algorithm, as an oracle. Nothing here imports qformats."""

from __future__ import annotations

import importlib
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

__all__ = ["load", "quantize"]


def load(folder: str | Path) -> Any:
    """Class ``GPTQ`` of an installed auto-gptq 0.7.1, without the package around it.

    The package itself cannot be imported beside today's Transformers.

    Parameters
    ----------
    folder : path-like
        Folder of the package ``auto_gptq``.
    """
    import torch

    for name in ("auto_gptq", "auto_gptq.quantization"):
        stub = types.ModuleType(name)
        # Whoever asks whether the package is there must not stumble over it.
        stub.__spec__ = ModuleSpec(name, None, is_package=True)
        stub.__path__ = [str(Path(folder, *name.split(".")[1:]))]
        sys.modules.setdefault(name, stub)
    torch.cuda.synchronize = lambda *_, **__: None
    return importlib.import_module("auto_gptq.quantization.gptq").GPTQ


def quantize(
    gptq: Any,
    weight: Any,
    inputs: Any,
    *,
    bits: int,
    group_size: int,
    symmetric: bool,
    order: bool,
    damping: float,
) -> Any:
    """Weights after AutoGPTQ's algorithm, float32, shape of `weight`.

    Parameters
    ----------
    gptq : type
        From `load`.
    weight, inputs : torch.Tensor
        float32, ``(N, K)`` and ``(tokens, K)``.
    bits, group_size, symmetric, order, damping
        As AutoGPTQ has them; group_size -1 for the whole row.
    """
    import torch

    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    solver = gptq(layer)
    solver.quantizer.configure(bits, perchannel=True, sym=symmetric, mse=False)
    solver.add_batch(inputs[None], None)
    solver.fasterquant(percdamp=damping, group_size=group_size, actorder=order)
    return layer.weight.data.float()
