"""Write what MLX makes of small weights, on a processor.

pip install --no-deps --target mlx mlx==0.32.4 mlx-cpu==0.32.4
PYTHONPATH=mlx python tests/golden/mlx/make.py
"""

from __future__ import annotations

import datetime
import json
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np

FOLDER = Path(__file__).parent
CASES = [
    *((4, group, dtype) for group in (32, 64, 128) for dtype in ("float32", "float16", "bfloat16")),
    *((bits, 64, "float16") for bits in (2, 3, 5, 6, 8)),
    *((bits, 32, "bfloat16") for bits in (3, 6, 8)),
]
MODES = [("mxfp4", 32, 4), ("nvfp4", 16, 4), ("mxfp8", 32, 8)]


def weights() -> np.ndarray:
    weight = np.random.default_rng(11).standard_normal((12, 256)).astype(np.float32) * np.float32(0.05)
    # Halves of whole numbers, zeros, one sign, an outlier, a constant, and weights below the least step.
    weight[0] = np.round(weight[0] * 100) / 16
    weight[1] = 0
    weight[2] = np.abs(weight[2]) + 1
    weight[3] = -np.abs(weight[3])
    weight[4, 7] = 30
    weight[5] = -0.125
    weight[6] *= 1e-7
    return weight


def main() -> None:
    made = {"original": mx.array(weights())}
    for bits, group, dtype in CASES:
        weight = made["original"].astype(getattr(mx, dtype))
        words, scales, biases = mx.quantize(weight, group_size=group, bits=bits)
        name = f"{bits}bit-{group}g-{dtype}"
        made |= {f"{name}.weight": words, f"{name}.scales": scales, f"{name}.biases": biases}
        if dtype == "float32":
            made[f"{name}.values"] = mx.dequantize(words, scales, biases, group_size=group, bits=bits)
    for mode, group, bits in MODES:
        for dtype in ("float32", "bfloat16"):
            weight = made["original"].astype(getattr(mx, dtype))
            words, scales = mx.quantize(weight, group_size=group, bits=bits, mode=mode)
            name = f"{mode}-{dtype}"
            decoded = mx.dequantize(words, scales, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
            made |= {f"{name}.weight": words, f"{name}.scales": scales, f"{name}.values": decoded}
    mx.save_safetensors(str(FOLDER / "layers.safetensors"), made)
    about = {
        "upstream": f"mlx {version('mlx')}, mlx-cpu {version('mlx-cpu')} (PyPI): mx.quantize, mx.dequantize",
        "command": "python tests/golden/mlx/make.py",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    (FOLDER / "PROVENANCE.json").write_text(json.dumps(about, indent=2) + "\n")


main()
