"""GPTQ weights of every kind, and modules as folders hold them."""

from __future__ import annotations

import torch

import qformats
from qformats.interfaces.family import ModuleFields
from qformats.numbers.dtypes import dtype_name
from qformats_gptq.family import GPTQFamily

__all__ = ["BITS", "located", "name", "weights"]

BITS = (2, 3, 4, 8)


def weights(bits, group, shape=(64, 192), symmetric=True, permuted=False, least=1, seed=0):
    """A random canonical tensor; zero points from `least`, since version 1 has no code for 0."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    size = group or columns
    groups = -(-columns // size)
    codes = torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8)
    scale = (torch.rand((rows, groups), generator=generator) * 0.1 + 1e-3).half()
    zero = 1 << (bits - 1)
    if not symmetric:
        zero = torch.randint(least, 1 << bits, (rows, groups), generator=generator, dtype=torch.int32)
    g_idx = None
    if permuted:
        g_idx = (torch.arange(columns) // size)[torch.randperm(columns, generator=generator)].int()
    return qformats.QuantizedTensor(codes, scale, (1, size), zero_point=zero, g_idx=g_idx)


def name(bits, group, symmetric=True, permuted=False):
    order, zero = "-actorder" if permuted else "", "" if symmetric else "-asym"
    return f"gptq:{bits}bit-{group or -1}g{order}{zero}"


def located(fields, config, module="m"):
    """Format, shape and packed tensor of a module as a folder with this configuration gives it."""

    def read(field):
        return fields[field].contiguous().flatten().view(torch.uint8).numpy().tobytes()

    stored = {field: (tuple(value.shape), dtype_name(value.dtype)) for field, value in fields.items()}
    declared = GPTQFamily().detect({"quant_method": "gptq", **config})
    found = GPTQFamily().locate(declared, ModuleFields(module, stored, read))
    if found is None:
        return None
    packer, shape = found
    return packer.name, shape, packer.from_stored(fields, shape)
