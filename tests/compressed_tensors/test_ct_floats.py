"""FP8: the library's own bytes and values, by tensor, row and block."""

from __future__ import annotations

import pytest
import torch

import qformats
from qformats.errors import ConfigError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_compressed_tensors.family import CompressedTensors

ROWS, COLUMNS = 256, 384


def located(fields, args):
    def read(field):
        return fields[field].contiguous().flatten().view(torch.uint8).numpy().tobytes()

    stored = {field: (tuple(value.shape), dtype_name(value.dtype)) for field, value in fields.items()}
    told = {
        "quant_method": "compressed-tensors",
        "config_groups": {"a": {"targets": ["Linear"], "weights": args}},
    }
    packer, shape = CompressedTensors().locate(
        CompressedTensors().detect(told), ModuleFields("m", stored, read)
    )
    return packer, packer.from_stored(fields, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("strategy", ["tensor", "channel", "block"])
def test_what_the_library_packs(library, strategy, dtype):
    weight = torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(2)).to(dtype)
    args = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy}
    blocks = {"tensor": weight.view(1, -1), "channel": weight}.get(strategy)
    if blocks is None:
        args["block_structure"] = [128, 128]
        blocks = weight.view(2, 128, 3, 128).transpose(1, 2).flatten(2)
    scale, _ = library.parameters(blocks.amin(-1), blocks.amax(-1), **args)
    scale = scale.unsqueeze(-1) if strategy == "channel" else scale
    fields = library.pack("float-quantized", {"weight": weight, "weight_scale": scale}, **args)
    packer, packed = located(fields, args)
    end = "" if dtype == torch.float32 else "-bf16"
    assert packer.name == f"compressed-tensors:fp8-{strategy}{end}"
    assert torch.equal(packed.dequantize().to(dtype), library.unpack("float-quantized", fields, **args))
    if dtype == torch.float32:
        # The same rule, in the same dtype: the same bytes.
        own = packer.encode_reference(weight)
        assert torch.equal(own.fields["weight"].view(torch.uint8), fields["weight"].view(torch.uint8))
        assert torch.equal(own.fields["weight_scale"].flatten(), fields["weight_scale"].flatten())


def test_scales_that_do_not_fit_are_refused():
    packed = qformats.packer("compressed-tensors:fp8-block").encode_reference(torch.randn(256, 384))
    args = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 64]}
    with pytest.raises(ConfigError, match=r"one scale, \(256, 1\) or \(4, 6\)"):
        located(dict(packed.fields), args)
    zero = {**packed.fields, "weight_zero_point": torch.zeros(2, 3, dtype=torch.int8)}
    with pytest.raises(ConfigError, match="none, beside floats"):
        located(zero, args | {"block_structure": "128x128"})
