"""Weights for the tests of the shared kernels: of formats, and made by hand for what no format has."""

import torch

import qformats
from qformats.kernels.form import DeviceWeight
from qformats.numbers.quantized import QuantizedTensor

FORMATS = (
    "gguf:q4_0",
    "gguf:q4_1",
    "gguf:q5_0",
    "gguf:q5_1",
    "gguf:q8_0",
    "gptq:2bit-64g-asym",
    "gptq:3bit-32g",
    "gptq:4bit-128g",
    "gptq:8bit-64g-asym",
    "bitsandbytes:nf4",
    "bitsandbytes:nf4-dq",
    "bitsandbytes:fp4",
    "bitsandbytes:int8",
    "glm:int4",
    "glm:int8",
    "gguf:q2_k",
    "gguf:q3_k",
    "gguf:q4_k",
    "gguf:q5_k",
    "gguf:q6_k",
    "gguf:iq4_nl",
    "gguf:iq4_xs",
    "gguf:mxfp4",
    "gguf:nvfp4",
    "modelopt:nvfp4",
    "compressed-tensors:nvfp4",
    "fp8:block",
    "compressed-tensors:fp8-channel",
    "compressed-tensors:fp8-tensor",
)
"""Everything that runs on the shared kernels, as loaded from its packed bytes."""


def of_format(format: str, rows: int, columns: int, seed: int = 0) -> tuple[QuantizedTensor, int | None]:
    """A canonical tensor as the format's packer gives it, and the width of its codes."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    packed = qformats.pack(qformats.quantize(weight, format), format)
    kernel = qformats.packer(format).spec.kernel
    return packed.unpack(), None if kernel is None else kernel.bits


def moved(weight: DeviceWeight, device: str) -> DeviceWeight:
    """The same weight on another device."""
    beside = {name: None if part is None else part.to(device) for name, part in weight.beside.items()}
    return weight._replace(planes=tuple(plane.to(device) for plane in weight.planes), **beside)


def by_hand(
    bits: int,
    rows: int,
    columns: int,
    group: int,
    *,
    mode: str = "affine",
    scale: torch.dtype = torch.float16,
    ordered: bool = False,
    signed: bool = False,
    below: int = 0,
    seed: int = 0,
) -> QuantizedTensor:
    """Random codes; `mode` is affine (zero point mid, or `below` 0), zeros (one per group), minimum or table."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator)
    groups = -(-columns // group)
    zero, minimum, table, g_idx = -below or 1 << (bits - 1), None, None, None
    if mode == "zeros":
        zero = torch.randint(0, 1 << bits, (rows, groups), generator=generator).to(torch.int32)
    elif mode == "minimum":
        zero, minimum = 0, (torch.randn(rows, groups, generator=generator) * 0.1).to(scale)
    elif mode == "table":
        zero, table = 0, torch.randn(1 << bits, generator=generator)
    if ordered:
        order = torch.randperm(columns, generator=generator)
        g_idx = torch.empty(columns, dtype=torch.int32)
        g_idx[order] = (torch.arange(columns) // group).to(torch.int32)
    if signed:
        codes, zero = codes - (1 << (bits - 1)), 0
    return QuantizedTensor(
        codes.to(torch.int8 if signed else torch.uint8),
        (torch.rand(rows, groups, generator=generator) * 0.01 + 0.001).to(scale),
        (1, group),
        zero_point=zero,
        minimum=minimum,
        codebook=table,
        g_idx=g_idx,
    )


BY_HAND = {
    "1 bit": {"bits": 1, "rows": 17, "columns": 130, "group": 32},
    "2 bits, a row a group": {"bits": 2, "rows": 5, "columns": 333, "group": 333},
    "3 bits, zeros": {"bits": 3, "rows": 33, "columns": 511, "group": 64, "mode": "zeros"},
    "4 bits, groups of 8": {"bits": 4, "rows": 9, "columns": 136, "group": 8},
    "4 bits, zero below all codes": {"bits": 4, "rows": 6, "columns": 128, "group": 32, "below": 3},
    "4 bits, groups of 24, zeros": {"bits": 4, "rows": 12, "columns": 100, "group": 24, "mode": "zeros"},
    "4 bits, ordered, zeros": {
        "bits": 4,
        "rows": 16,
        "columns": 200,
        "group": 64,
        "mode": "zeros",
        "ordered": True,
    },
    "4 bits, signed, f32": {
        "bits": 4,
        "rows": 8,
        "columns": 257,
        "group": 128,
        "signed": True,
        "scale": torch.float32,
    },
    "5 bits, minimum of a row": {"bits": 5, "rows": 7, "columns": 90, "group": 90, "mode": "minimum"},
    "6 bits, groups of 16": {"bits": 6, "rows": 19, "columns": 300, "group": 16, "scale": torch.float32},
    "6 bits, minimum of 128": {"bits": 6, "rows": 40, "columns": 640, "group": 128, "mode": "minimum"},
    "8 bits, minimum, f32": {
        "bits": 8,
        "rows": 11,
        "columns": 129,
        "group": 64,
        "mode": "minimum",
        "scale": torch.float32,
    },
    "8 bits, signed": {"bits": 8, "rows": 21, "columns": 1, "group": 1, "signed": True},
    "table of 4": {"bits": 2, "rows": 10, "columns": 96, "group": 32, "mode": "table"},
    "table of 16": {"bits": 4, "rows": 65, "columns": 161, "group": 64, "mode": "table"},
    "table of 16, groups of 8": {"bits": 4, "rows": 30, "columns": 72, "group": 8, "mode": "table"},
}
"""Shapes, groups and modes that no format asks for yet."""
