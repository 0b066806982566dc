"""NVFP4: the library's own bytes and values, scales of both kinds, and what else is exact with it."""

from __future__ import annotations

import pytest
import torch
from models import tiny
from safetensors.torch import load_file

import qformats
from qformats.errors import ConfigError, NotExactError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_compressed_tensors.family import CompressedTensors

ARGUMENTS = {
    **{"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True},
    **{"scale_dtype": torch.float8_e4m3fn, "zp_dtype": torch.float8_e4m3fn},
}
PACKER = qformats.packer("compressed-tensors:nvfp4")
SHAPE = (24, 128)


def weights():
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)) * 0.05
    ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75, -1.25, -5.0, 0.0, -0.0, 4.0, 1.0]
    weight[0, :16] = torch.tensor(ties) / 32
    weight[1], weight[2, 9], weight[3] = 0, -2.5, weight[3] * 1e-4
    return weight


def made(library, weight):
    """Fields of the library, which finds the scales too."""
    from compressed_tensors.quantization.utils import generate_gparam

    blocks = weight.view(SHAPE[0], -1, 16)
    whole = generate_gparam(weight.min(), weight.max())
    scale, _ = library.parameters(blocks.amin(-1), blocks.amax(-1), global_scale=whole, **ARGUMENTS)
    parts = {"weight": weight, "weight_scale": scale, "weight_global_scale": whole}
    return library.pack("nvfp4-pack-quantized", parts, **ARGUMENTS)


def test_the_same_scales_and_values_as_the_library(library):
    weight = weights()
    fields = made(library, weight)
    packed = PACKER.encode_reference(weight)
    for name in ("weight_scale", "weight_global_scale"):
        assert torch.equal(packed.fields[name].float(), fields[name].float())
    stored = PACKER.from_stored({name: fields[name] for name in packed.fields}, SHAPE)
    # The library decodes in bfloat16: its values are ours, rounded once.
    found = library.unpack("nvfp4-pack-quantized", fields, **ARGUMENTS)
    assert found.dtype == torch.bfloat16
    for own in (packed, stored):
        assert torch.equal(own.dequantize().bfloat16() + 0.0, found + 0.0)


def test_every_code_and_scale():
    """By the formula in float64, rounded after each step; NaN is refused."""
    inner = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = torch.arange(16, dtype=torch.uint8).expand(127, 16)
    levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
    levels = torch.cat([levels, -levels])
    fields = {"weight_packed": codes[:, ::2] | codes[:, 1::2] << 4, "weight_scale": inner[:, None]}
    for outer in (15728.6, 1.0, 2.0**-7, 3e6):
        number = torch.tensor([outer], dtype=torch.float32)
        packed = PACKER.from_stored(fields | {"weight_global_scale": number}, (127, 16))
        scale = (inner.double() / number.double()).float().double()
        assert torch.equal(packed.dequantize() + 0.0, (scale[:, None] * levels).float() + 0.0)
        again = PACKER.pack(PACKER.represent(packed.unpack()))
        assert torch.equal(again.fields["weight_scale"].float(), fields["weight_scale"].float())
        assert torch.equal(again.fields["weight_global_scale"], number)
    spoilt = fields | {"weight_global_scale": torch.ones(1)}
    spoilt["weight_scale"] = torch.full((127, 1), 255, dtype=torch.uint8).view(torch.float8_e4m3fn)
    with pytest.raises(ConfigError, match="codes of NaN"):
        PACKER.from_stored(spoilt, (127, 16))
    for number in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="a finite number above 0"):
            PACKER.from_stored(fields | {"weight_global_scale": torch.tensor([number])}, (127, 16))


def test_the_number_of_the_tensor_is_found_again():
    """Codes and scales without it have one, whichever way it is stored; without any, that is said."""
    for seed, divides in ((1, True), (2, False), (3, True), (4, False)):
        packer = PACKER if divides else qformats.packer("gguf:nvfp4")
        weight = torch.randn((16, 64), generator=torch.Generator().manual_seed(seed)) * 0.02
        known = packer.unpack(packer.encode_reference(weight))
        bare = qformats.QuantizedTensor(known.codes, -known.scale, known.block_size, codebook=known.codebook)
        found = packer.pack(packer.represent(bare))
        assert torch.equal(found.dequantize() + 0.0, -known.dequantize() + 0.0)
    noise = torch.rand(known.scale.shape, generator=torch.Generator().manual_seed(5)) + 0.1
    other = qformats.QuantizedTensor(known.codes, noise, known.block_size, codebook=known.codebook)
    with pytest.raises(NotExactError, match="numbers of E4M3 over one number"):
        PACKER.represent(other)


def test_mxfp4_is_held_within_the_range_of_e4m3():
    """Blocks of 32 become two of 16; scales of 18 powers of two have a number for all of them."""
    source = qformats.packer("compressed-tensors:mxfp4")
    codes = torch.arange(32).remainder(15).to(torch.uint8).expand(18, 32).contiguous()
    scale = torch.exp2(torch.arange(-30, -12).double()).float()[:, None]
    quantized = qformats.QuantizedTensor(codes, scale, (1, 32), codebook=source.grid.table(codes))
    for packer in (PACKER, qformats.packer("modelopt:nvfp4")):
        packed = packer.pack(packer.represent(quantized))
        assert torch.equal(packed.dequantize(), quantized.dequantize())
        assert torch.equal(source.represent(packed.unpack()).dequantize(), quantized.dequantize())
        wide = qformats.QuantizedTensor(
            torch.cat([codes, codes[:1]]),
            torch.cat([scale, scale[:1] / 2]),
            (1, 32),
            codebook=quantized.codebook,
        )
        with pytest.raises(NotExactError, match="E4M3"):
            packer.represent(wide)


def test_transformers_loads_the_same_values(tmp_path, library, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    from transformers import AutoModelForCausalLM

    folder = tiny.build("llama", tmp_path / "llama", "bfloat16")
    qformats.export(folder, tmp_path / "out", format=PACKER.name)
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values())
    with torch.inference_mode():
        model(torch.tensor([[1, 5, 9, 33]]))
    expected, found = qformats.open(tmp_path / "out"), dict(model.named_parameters())
    linear = [name for name in expected.tensors if "_proj" in name]
    assert len(linear) == 14
    assert all(torch.equal(found[name] + 0.0, expected.read(name).bfloat16() + 0.0) for name in linear)
    # There and back, by way of llama.cpp's type where arithmetic lets it.
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["model.layers.0.mlp.up_proj.weight_scale"].dtype == torch.float8_e4m3fn


def test_what_is_not_nvfp4_is_refused():
    fields = dict(PACKER.encode_reference(weights()).fields)

    def located(fields):
        stored = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in fields.items()}
        family = CompressedTensors()
        told = {"quant_method": "compressed-tensors", "config_groups": {"NVFP4A16": ["Linear"]}}
        return family.locate(family.detect(told), ModuleFields("m", stored, lambda field: b""))

    assert (located(fields)[0].name, located(fields)[1]) == (PACKER.name, SHAPE)
    with pytest.raises(ConfigError, match="f8_e4m3, one for each 16 columns"):
        located(fields | {"weight_scale": fields["weight_scale"][:, :2]})
    with pytest.raises(ConfigError, match=r"f32 of shape \(1,\)"):
        located(fields | {"weight_global_scale": torch.ones(2)})
