"""Let AutoRound pack small weights in each of its layouts, on a processor.

pip install --no-deps --target others auto-round==0.16.1 py-cpuinfo
PYTHONPATH=others python tests/golden/autoround/make.py
"""

from __future__ import annotations

import datetime
import json
from importlib.metadata import version
from pathlib import Path

import torch
from auto_round.export.export_to_autoround.export import dynamic_import_quant_linear_for_packing as layer_of
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
ROWS, COLUMNS, GROUP = 32, 96, 32
GPTQ = ("auto_round", "auto_round:gptqmodel", "auto_round:auto_gptq")
CASES = [(packing, bits) for packing in GPTQ for bits in (2, 3, 4, 8)] + [("auto_round:auto_awq", 4)]


def weight(bits: int, lowest: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, zero points and scales; rows of zero points at both ends."""
    generator = torch.Generator().manual_seed(bits + symmetric)
    zeros = torch.randint(lowest, 1 << bits, (ROWS, COLUMNS // GROUP), generator=generator)
    zeros[0], zeros[1] = lowest, (1 << bits) - 1
    if symmetric:
        zeros[:] = 1 << bits - 1
    # Around 0, as weights are.
    spread = torch.randn((ROWS, COLUMNS), generator=generator) * (1 << bits) / 5
    codes = (zeros.repeat_interleave(GROUP, 1) + spread).round().clamp(0, (1 << bits) - 1).long()
    scales = (torch.rand(zeros.shape, generator=generator) * 0.1 + 1e-3).half().float()
    return codes, zeros, scales


def case(packing: str, bits: int, symmetric: bool) -> dict[str, torch.Tensor]:
    # Stored less 1, a zero point of 0 does not exist: AutoRound stores that of 1.
    codes, zeros, scales = weight(bits, int(packing == "auto_round:auto_gptq"), symmetric)
    per = [part.repeat_interleave(GROUP, 1) for part in (zeros, scales)]
    dense = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    dense.weight.data = per[1] * (codes - per[0])
    kind = layer_of(packing, bits, GROUP, symmetric)
    if "awq" in packing:
        given = int(zeros[0, 0]) if symmetric else zeros.t()
        packed = kind.from_linear(dense, bits, GROUP, False, scales.t(), given, device="cpu")
    else:
        packed = kind(bits, GROUP, COLUMNS, ROWS, bias=False, weight_dtype=torch.float32)
        packed.device = "cpu"
        packed.pack(dense, scales, int(zeros[0, 0]) if symmetric else zeros, None, device="cpu")
    fields = dict(packed.state_dict())
    fields |= {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}
    found = {"codes": codes.to(torch.uint8), "zeros": zeros.to(torch.uint8), "scale": scales.half()}
    name = f"{packing}/{bits}{'s' if symmetric else 'a'}"
    return {f"{name}/{key}": value.contiguous() for key, value in (found | fields).items()}


def main() -> None:
    made: dict[str, torch.Tensor] = {}
    for packing, bits in CASES:
        for symmetric in (True, False):
            made |= case(packing, bits, symmetric)
    save_file(made, FOLDER / "layers.safetensors")
    about = {
        "upstream": f"auto-round {version('auto-round')} (PyPI): dynamic_import_quant_linear_for_packing",
        "command": "python tests/golden/autoround/make.py",
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    (FOLDER / "PROVENANCE.json").write_text(json.dumps(about, indent=2) + "\n")


main()
