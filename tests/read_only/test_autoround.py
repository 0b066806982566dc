"""What AutoRound's own layers pack is read as the numbers that they were given, in each layout and width."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats.registry import registry

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "autoround" / "layers.safetensors")
CASES = sorted({name.rpartition("/")[0] for name in GOLDEN})
GROUP = 32


def layer(case):
    return {name.rpartition("/")[2]: value for name, value in GOLDEN.items() if name.startswith(f"{case}/")}


def located(packing, bits, symmetric, fields):
    config = {"quant_method": "auto-round", "bits": bits, "group_size": GROUP, "sym": symmetric}
    config |= {"data_type": "int", "packing_format": packing}
    detected = [(each, each.detect(config)) for each in registry().families()]
    ((family, packer),) = [(each, found) for each, found in detected if found is not None]
    known = {name: value for name, value in fields.items() if name in family.suffixes(packer)}

    def read(name):
        return known[name].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    stored = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in known.items()}
    shape = tuple(fields["codes"].shape)
    own, found = family.locate(packer, ModuleFields("m", stored, read, lambda: shape)) or (packer, shape)
    assert found == shape
    return own.from_stored(known, found)


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_that_were_packed(case):
    packing, _, kind = case.rpartition("/")
    bits, symmetric = int(kind[0]), kind[1] == "s"
    fields = layer(case)
    packed = located(packing, bits, symmetric, fields)
    assert packed.format.startswith("awq:4bit" if "awq" in packing else f"gptq:{bits}bit")
    zeros, scale, codes = fields["zeros"].float(), fields["scale"].float(), fields["codes"].float()
    per = [part.repeat_interleave(GROUP, 1) for part in (zeros, scale)]
    assert torch.equal(packed.dequantize(), per[1] * (codes - per[0]))
    assert torch.equal(packed.unpack().codes, fields["codes"])


def test_all_layouts_are_there():
    assert {case.rpartition("/")[0] for case in CASES} == {
        "auto_round",
        "auto_round:gptqmodel",
        "auto_round:auto_gptq",
        "auto_round:auto_awq",
    }
    # Only one of them stores the order of columns.
    assert {case.rpartition("/")[0] for case in CASES if "g_idx" in layer(case)} == {"auto_round:gptqmodel"}
