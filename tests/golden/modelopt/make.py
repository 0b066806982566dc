"""Write what NVIDIA's Model Optimizer makes of small weights, on a processor.

pip install --no-deps --target modelopt nvidia-modelopt==0.47.0 (and what it imports)
PYTHONPATH=modelopt python tests/golden/modelopt/make.py
"""

from __future__ import annotations

import datetime
import json
from importlib.metadata import version
from pathlib import Path

import torch
from modelopt.torch.quantization.qtensor.fp8_tensor import FP8QTensor
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor
from safetensors.torch import save_file

FOLDER = Path(__file__).parent


def weights() -> torch.Tensor:
    weight = torch.randn((24, 128), generator=torch.Generator().manual_seed(5)) * 0.05
    # Ties between levels under a scale of 1 in its block, zeros, an outlier, and blocks far below it.
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -1.25, -5.0, 0, -0.0, 4, 1]
    weight[0, :16] = torch.tensor(ties) / 32
    weight[1] = 0
    weight[2, 7] = 3.0
    weight[3] *= 1e-4
    weight[4] = -weight[4].abs()
    return weight


def main() -> None:
    made = {}
    for name, weight in (("normal", weights()), ("powers", weights().clamp(-0.65625, 0.65625))):
        # 0.65625 * 4096 = 2688, so that the second factor of "powers" is a power of two.
        packed, scale, scale_2 = NVFP4QTensor.quantize(weight, 16)
        values = packed.dequantize(
            dtype=torch.float32, scale=scale, double_scale=scale_2, block_sizes={-1: 16}
        )
        made |= {f"{name}.original": weight, f"{name}.weight": packed._quantized_data}
        made |= {f"{name}.weight_scale": scale, f"{name}.weight_scale_2": scale_2, f"{name}.values": values}
    weight = weights()
    packed, scale = FP8QTensor.quantize(weight)
    made |= {"fp8.original": weight, "fp8.weight": packed._quantized_data, "fp8.weight_scale": scale.float()}
    made["fp8.values"] = packed.dequantize(dtype=torch.float32, scale=scale)
    save_file({name: value.contiguous() for name, value in made.items()}, FOLDER / "layers.safetensors")
    about = {
        "upstream": f"nvidia-modelopt {version('nvidia-modelopt')} (PyPI): modelopt/torch/quantization/qtensor",
        "command": "python tests/golden/modelopt/make.py",
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    (FOLDER / "PROVENANCE.json").write_text(json.dumps(about, indent=2) + "\n")


main()
