"""MXFP4: the library's own bytes and values, and GGUF's type, which holds the same in another order."""

from __future__ import annotations

import gguf
import pytest
import torch
from models import tiny
from safetensors.torch import load_file

import qformats
from qformats.errors import ConfigError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_compressed_tensors.family import CompressedTensors

ARGUMENTS = {
    **{"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "symmetric": True},
    **{"scale_dtype": torch.uint8, "zp_dtype": torch.uint8},
}
PACKER = qformats.packer("compressed-tensors:mxfp4")


def weights():
    weight = torch.randn((24, 128), generator=torch.Generator().manual_seed(3)) * 0.05
    # Largest magnitudes at and around what the rule counts as the next power of two, and ties between levels.
    largest = torch.tensor([6.0, 7.0, 6.99, 7.49, 7.5, 8.0, 3.75, 3.5, 3.49, 0.875])
    weight[0, :10], weight[1] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -5.0]), 0
    for row, value in enumerate(largest.tolist(), 2):
        weight[row, ::32] = value
    return weight


def test_the_same_bytes_as_the_library(library):
    weight = weights()
    blocks = weight.view(24, 4, 32)
    scale, _ = library.parameters(blocks.amin(-1), blocks.amax(-1), **ARGUMENTS)
    fields = library.pack("mxfp4-pack-quantized", {"weight": weight, "weight_scale": scale}, **ARGUMENTS)
    packed = PACKER.encode_reference(weight)
    zero = weight.view(24, 4, 32).abs().amax(-1) == 0
    assert torch.equal(packed.fields["weight_scale"][~zero], fields["weight_scale"][~zero])
    found = library.unpack("mxfp4-pack-quantized", fields, **ARGUMENTS).float()
    assert torch.equal(packed.dequantize() + 0.0, found + 0.0)
    stored = PACKER.from_stored({name: fields[name] for name in packed.fields}, (24, 128))
    assert torch.equal(stored.dequantize() + 0.0, found + 0.0)


def test_every_code_and_exponent_is_that_of_gguf():
    """The library of llama.cpp decodes the same numbers from its own order of bytes."""
    exponents = torch.arange(253, dtype=torch.uint8)[:, None]
    codes = torch.arange(32, dtype=torch.uint8).remainder(16).expand(253, 32)
    fields = {"weight_packed": codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": exponents}
    packed = PACKER.from_stored(fields, (253, 32))
    blocks = torch.cat([exponents, codes[:, :16] | codes[:, 16:] << 4], 1).numpy()
    wanted = torch.from_numpy(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4))
    assert torch.equal(packed.dequantize() + 0.0, wanted + 0.0)
    with pytest.raises(ConfigError, match="exponents of 255, which stand for NaN"):
        PACKER.from_stored({**fields, "weight_scale": torch.full_like(exponents, 255)}, (253, 32))


def test_to_gguf_and_back(tmp_path):
    """The same bytes again, each way exact."""
    folder = tiny.build("llama", tmp_path / "llama", "float16")
    first = tmp_path / "first"
    qformats.export(folder, first, format=PACKER.name)
    qformats.export(first, tmp_path / "m.gguf", format="gguf:mxfp4", require_exact=True)
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format=PACKER.name, require_exact=True)
    before, after = (load_file(path / "model.safetensors") for path in (first, tmp_path / "back"))
    packed = [name for name in before if name.endswith("_scale") or name.endswith("_packed")]
    assert len(packed) == 28
    values = [qformats.open(path) for path in (first, tmp_path / "back")]
    for name in packed:
        if name.endswith("_scale"):
            assert torch.equal(before[name], after[name]), name
        weight = f"{name.rpartition('.')[0]}.weight"
        assert torch.equal(values[0].read(weight) + 0.0, values[1].read(weight) + 0.0)


def test_what_is_not_mxfp4_is_refused():
    fields = dict(PACKER.encode_reference(weights()).fields)

    def located(fields):
        stored = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in fields.items()}
        family = CompressedTensors()
        declared = family.detect(
            {"quant_method": "compressed-tensors", "config_groups": {"MXFP4A16": ["Linear"]}}
        )
        return family.locate(declared, ModuleFields("m", stored, lambda field: b""))

    assert located(fields)[1] == (24, 128)
    assert located(fields)[0].name == PACKER.name
    with pytest.raises(ConfigError, match="u8, one for each 32 columns"):
        located(fields | {"weight_scale": fields["weight_scale"][:, :2]})
