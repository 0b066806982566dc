"""Let AutoAWQ pack small weights in each of its layouts, and decode those of gemm.

``python tests/golden/awq/make.py FOLDER`` wants the unpacked source of autoawq 0.2.9 (``pip download --no-deps
--no-binary :all: --no-build-isolation autoawq==0.2.9``). Only the files of its layers are loaded: the package around
them does not import beside today's Transformers.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import save_file

HERE = Path(__file__).parent
ROWS, COLUMNS = 32, 256


def load(folder: Path) -> None:
    """Stand-ins for the packages, so that their modules load by themselves."""
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear", "awq.modules.triton"):
        module = types.ModuleType(name)
        path = folder.joinpath(*name.split("."))
        module.__path__ = [str(path if name != "awq.modules.triton" else path / "absent")]
        sys.modules[name] = module


def main() -> None:
    folder = Path(sys.argv[1])
    load(folder)
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.modules.linear.gemv import WQLinear_GEMV
    from awq.modules.linear.gemv_fast import WQLinear_GEMVFast
    from awq.utils.packing_utils import dequantize_gemm

    out = {}
    for group in (32, 64, 128):
        generator = torch.Generator().manual_seed(group)
        groups = COLUMNS // group
        codes = torch.randint(0, 16, (ROWS, COLUMNS), generator=generator)
        zeros = torch.randint(0, 16, (ROWS, groups), generator=generator)
        zeros[0], zeros[1] = 0, 15
        scales = (torch.rand((ROWS, groups), generator=generator) * 0.1 + 1e-4).half()
        scales[2], scales[3] = 2.0**-14, 4096.0
        spread = [part.repeat_interleave(group, 1) for part in (scales.float(), zeros)]
        linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        linear.weight.data = spread[0] * (codes - spread[1])
        out[f"{group}.codes"], out[f"{group}.zeros"] = codes.to(torch.uint8), zeros.to(torch.uint8)
        out[f"{group}.scales"] = scales
        made = {
            "gemm": WQLinear_GEMM.from_linear(linear, 4, group, False, scales.float().t(), zeros.t()),
            "gemv": WQLinear_GEMV.from_linear(linear, 4, group, False, scales.float(), zeros),
            "gemv_fast": WQLinear_GEMVFast.from_linear(linear, 4, group, False, scales.float(), zeros),
        }
        for layout, layer in made.items():
            for field in ("qweight", "qzeros", "scales"):
                out[f"{group}.{layout}.{field}"] = getattr(layer, field).contiguous()
        gemm = made["gemm"]
        out[f"{group}.values"] = dequantize_gemm(
            gemm.qweight, gemm.qzeros, gemm.scales, 4, group
        ).contiguous()
    save_file(out, HERE / "layers.safetensors")
    provenance = {
        "upstream": "autoawq 0.2.9 (PyPI, source distribution): awq/modules/linear, awq/utils/packing_utils.py",
        "command": "python tests/golden/awq/make.py autoawq-0.2.9",
        "torch": torch.__version__,
        "date": "2026-11-30",
    }
    (HERE / "PROVENANCE.json").write_text(json.dumps(provenance, indent=2) + "\n")


if __name__ == "__main__":
    main()
