"""Write what PyTorch's packing kernel for 4 bits makes of small matrices, and what its product decodes, on a GPU.

python tests/golden/torchao_tiles/make.py [FOLDER]
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
CASES = [(8, 1024, 8, 32), (24, 1024, 8, 128), (16, 1024, 4, 64), (16, 1024, 2, 256)]
"""Rows, columns, inner tiles and columns of a group."""


def case(rows: int, columns: int, tiles: int, group: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * tiles + group)
    codes = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    scale, zero = torch.randn((2, columns // group, rows), generator=generator).mul(0.05).bfloat16()
    both = torch.stack([scale, zero], -1).contiguous().cuda()
    # The even column in the high half of a byte, as Int4TilePackedTo4dTensor.from_hp gives it to the kernel.
    halves = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous().cuda()
    packed = torch.ops.aten._convert_weight_to_int4pack(halves, tiles)
    # Products with unit vectors are single weights: each is decoded in bfloat16 and added to zeros.
    one = torch.eye(columns, dtype=torch.bfloat16, device="cuda")
    values = torch.ops.aten._weight_int4pack_mm(one, packed, group, both).t()
    found = {"codes": codes, "_weight_qdata": packed, "_weight_scale_and_zero": both, "values": values}
    return {
        f"{rows}x{columns}-{tiles}-{group}.{name}": value.cpu().contiguous() for name, value in found.items()
    }


def main() -> None:
    made: dict[str, torch.Tensor] = {}
    for each in CASES:
        made |= case(*each)
    save_file(made, FOLDER / "int4pack.safetensors")
    about = {
        "upstream": "torch.ops.aten._convert_weight_to_int4pack and _weight_int4pack_mm",
        "command": "python tests/golden/torchao_tiles/make.py",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    (FOLDER / "PROVENANCE.json").write_text(json.dumps(about, indent=2) + "\n")


main()
