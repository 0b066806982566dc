"""Write what HQQ, optimum-quanto and TorchAO make of small layers, and the values that they decode, on a processor.

pip install --no-deps --target others hqq==0.2.8.post1 termcolor optimum-quanto==0.2.7 ninja torchao==0.18.0
PYTHONPATH=others python tests/golden/read_only/make.py
"""

from __future__ import annotations

import datetime
import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from optimum.quanto import freeze, qint2, qint4, qint8, quantize
from optimum.quanto.library.extensions import cpp as compiled
from safetensors.torch import save_file
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup
from torchao.quantization.quantize_.workflows.int4 import int4_tensor


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """As in optimum/quanto/library/unpack.py; on a processor it would compile C++ for it."""
    parts = [(packed & (2 ** (bits * (i + 1)) - 1)) >> (bits * i) for i in range(8 // bits)]
    return torch.cat(parts).to(torch.uint8)


def levels(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What ``int4_row_quantize_zp`` of the package mslk returns, which is for GPUs: codes from -8, scales and zeros."""
    blocks = weight.float().unflatten(1, (-1, group_size))
    low, high = blocks.amin(-1), blocks.amax(-1)
    scale = (high - low).clamp(min=1e-6) / 15
    codes = ((blocks - low[..., None]) / scale[..., None]).round().clamp(0, 15) - 8
    return codes.flatten(1).to(torch.int8), scale.t().contiguous(), (low + scale * 8).t().contiguous()


def halves(codes: torch.Tensor) -> torch.Tensor:
    """What ``pack_int4`` of mslk returns: the even column in the low half of a byte."""
    return (codes[:, ::2] & 15) | (codes[:, 1::2] << 4)


int4_tensor.int4_row_quantize_zp, int4_tensor.pack_int4 = levels, halves
compiled.ext = SimpleNamespace(lib=SimpleNamespace(unpack=unpack))
FOLDER = Path(__file__).parent


def layer(columns: int, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    found = torch.nn.Linear(columns, 32, bias=False, dtype=dtype)
    values = torch.randn((32, columns), generator=torch.Generator().manual_seed(columns)) * 0.05
    values[0] = 0
    values[1] = values[1].abs() + 0.01
    found.weight.data = values.to(dtype)
    return found


def hqq() -> dict[str, torch.Tensor]:
    made = {}
    cases = [(bits, axis, torch.float32) for bits in (8, 4, 3, 2, 1) for axis in (1, 0)]
    for bits, axis, dtype in [*cases, (4, 1, torch.bfloat16), (4, 1, torch.float16)]:
        columns = 64 if dtype == torch.float16 else 128
        config = BaseQuantizeConfig(nbits=bits, group_size=64, axis=axis)
        own = HQQLinear(layer(columns, dtype), config, compute_dtype=dtype, device="cpu")
        name = f"hqq-{bits}bit-axis{axis}-{str(dtype).removeprefix('torch.')}"
        state = {field: value for field, value in own.state_dict().items() if isinstance(value, torch.Tensor)}
        made |= {f"{name}.{field}": value for field, value in state.items()}
        made[f"{name}.values"] = own.dequantize().reshape(32, columns)
    return made


def quanto() -> dict[str, torch.Tensor]:
    made = {}
    cases = [(qint8, 64), (qint4, 96), (qint2, 96), (qint4, 256), (qint2, 256), (qint4, 160), (qint4, 192)]
    for kind, columns in cases:
        model = torch.nn.Sequential(layer(columns))
        quantize(model, weights=kind)
        freeze(model)
        name = f"quanto-{kind.name}-{columns}"
        made |= {f"{name}.{field.removeprefix('0.')}": value for field, value in model.state_dict().items()}
        made[f"{name}.values"] = model[0].weight.dequantize()
    return made


def torchao() -> dict[str, torch.Tensor]:
    made = {}
    for kind, more in (("row", {}), ("group", {"granularity": PerGroup(32)})):
        for dtype in (torch.float32, torch.bfloat16):
            model = torch.nn.Sequential(layer(64, dtype))
            quantize_(model, Int8WeightOnlyConfig(version=2, **more))
            name = f"torchao-{kind}-{str(dtype).removeprefix('torch.')}"
            tensors, _ = flatten_tensor_state_dict(model.state_dict())
            made |= {f"{name}.{field.removeprefix('0.')}": value for field, value in tensors.items()}
            made[f"{name}.values"] = model[0].weight.dequantize()
    for dtype in (torch.float32, torch.bfloat16):
        model = torch.nn.Sequential(layer(64, dtype))
        quantize_(model, Int4WeightOnlyConfig(group_size=32))
        name = f"torchao-int4-{str(dtype).removeprefix('torch.')}"
        tensors, _ = flatten_tensor_state_dict(model.state_dict())
        made |= {f"{name}.{field.removeprefix('0.')}": value for field, value in tensors.items()}
        # The class has no decoder: its kernels compute scale * code + zero. These codes were never packed.
        own = model[0].weight
        codes, _, _ = levels(layer(64, dtype).weight.detach(), 32)
        scale, zero = (part.float().t().repeat_interleave(32, 1) for part in (own.scale, own.zero_point))
        made[f"{name}.values"] = scale * codes + zero
    model = torch.nn.Sequential(layer(64))
    quantize_(model, IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)))
    tensors, _ = flatten_tensor_state_dict(model.state_dict())
    made |= {f"torchao-intx4.{field.removeprefix('0.')}": value for field, value in tensors.items()}
    made["torchao-intx4.values"] = model[0].weight.dequantize()
    return made


def main() -> None:
    made = hqq() | quanto() | torchao()
    save_file(
        {name: value.detach().contiguous() for name, value in made.items()}, FOLDER / "layers.safetensors"
    )
    packages = ("hqq", "optimum-quanto", "torchao")
    about = {
        "upstream": ", ".join(f"{package} {version(package)} (PyPI)" for package in packages),
        "command": "python tests/golden/read_only/make.py",
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    (FOLDER / "PROVENANCE.json").write_text(json.dumps(about, indent=2) + "\n")


main()
