"""TorchAO's 4 bits in the order of tensor cores: lane by lane, and PyTorch's own kernels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.interfaces import ModuleFields
from qformats.numbers import dtype_name
from qformats_torchao.family import TorchAO
from qformats_torchao.tiles import TilePacker

MODULE = "model.layers.0.self_attn.k_proj"
QDATA, BOTH = "_weight_qdata", "_weight_scale_and_zero"
IDS = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "torchao_tiles" / "int4pack.safetensors")


def in_lanes(codes, inner):
    """Words of codes (N, K): lane by lane, as the operands of ``mma.m16n8k16`` lie in registers (PTX ISA, 9.7.14).

    Of a tile of 16 columns by 8 rows, thread t holds row t / 4 and the columns 2 (t % 4) + {0, 1, 8, 9}: b0 to b3. A
    word takes those of two tiles, v0 to v7, as 7 5 3 1 6 4 2 0 from its highest bits down.
    """
    rows, columns = codes.shape
    packed = torch.zeros((rows // 8, columns // (16 * inner), 32, inner // 2), dtype=torch.int64)
    for tile in range(rows // 8):
        for block in range(columns // (16 * inner)):
            for lane in range(32):
                for word in range(inner // 2):
                    first = (block * inner + 2 * word) * 16 + 2 * (lane % 4)
                    held = [first + 16 * half + each for half in (0, 1) for each in (0, 1, 8, 9)]
                    values = [int(codes[8 * tile + lane // 4, column]) for column in held]
                    bits = 0
                    for number in (7, 5, 3, 1, 6, 4, 2, 0):
                        bits = bits << 4 | values[number]
                    packed[tile, block, lane, word] = bits
    return packed.to(torch.int32)


def stored(rows, columns, group, inner=8, seed=0):
    """Fields of a weight filled up as TorchAO does, and what it decodes to."""
    generator = torch.Generator().manual_seed(seed)
    whole = (-(-rows // 8) * 8, -(-columns // 1024) * 1024)
    codes = torch.randint(0, 16, whole, generator=generator)
    # What fills up is random too: it must not matter.
    scale, zero = torch.randn((2, whole[1] // group, whole[0]), generator=generator).mul(0.05).bfloat16()
    fields = {QDATA: in_lanes(codes, inner), BOTH: torch.stack([scale, zero], -1)}
    per = [part.float().t().repeat_interleave(group, 1) for part in (scale, zero)]
    return fields, ((codes - 8) * per[0] + per[1])[:rows, :columns]


def located(fields, shape):
    family = TorchAO()
    about = {name: (tuple(value.shape), dtype_name(value.dtype)) for name, value in fields.items()}
    assert set(fields) <= family.suffixes(family.packers[0])
    packer, found = family.locate(
        family.packers[0], ModuleFields("m", about, lambda name: b"", lambda: shape)
    )
    return packer.from_stored(fields, found)


@pytest.mark.parametrize(
    ("rows", "columns", "group", "inner"),
    [(8, 1024, 128, 8), (21, 1184, 32, 8), (3, 64, 64, 4), (16, 256, 256, 2)],
)
def test_codes_lane_by_lane(rows, columns, group, inner):
    fields, values = stored(rows, columns, group, inner)
    packed = located(fields, (rows, columns))
    assert packed.format == f"torchao:int4-tiles-{group}g" + ("" if inner == 8 else f"-inner{inner}")
    assert qformats.packer(packed.format).name == packed.format
    quantized = packed.unpack()
    assert torch.equal(quantized.dequantize(), values)
    assert torch.equal(quantized.minimum, fields[BOTH][: columns // group, :rows, 1].t().float())
    assert packed.packer.nbytes((rows, columns)) == packed.nbytes


@pytest.mark.parametrize("case", sorted({name.partition(".")[0] for name in GOLDEN}))
def test_what_a_gpu_packs_and_multiplies_by(case):
    """Codes as they were before they were packed; products with unit vectors round each weight to bfloat16."""
    fields = {name.partition(".")[2]: value for name, value in GOLDEN.items() if name.startswith(f"{case}.")}
    codes, values = fields.pop("codes"), fields.pop("values")
    packed = located(fields, tuple(codes.shape))
    assert torch.equal(packed.unpack().codes, codes)
    assert torch.equal(packed.dequantize().bfloat16(), values)


def folder(source, target, fields):
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    del tensors[f"{MODULE}.weight"]
    tensors |= {f"{MODULE}.{name}": value for name, value in fields.items()}
    save_file(tensors, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    kind = {"_type": "Int4WeightOnlyConfig", "_data": {"int4_packing_format": "tile_packed_to_4d"}}
    config["quantization_config"] = {"quant_method": "torchao", "quant_type": {"default": kind}}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float32")


def test_folders_are_read_run_and_converted(llama, tmp_path):
    fields, values = stored(32, 64, 32)
    model = folder(llama, tmp_path / "model", fields)
    assert qformats.open(model).tensors[f"{MODULE}.weight"].format == "torchao:int4-tiles-32g"
    qformats.export(model, tmp_path / "plain", format="dense:f32")
    assert torch.equal(qformats.open(tmp_path / "plain").read(f"{MODULE}.weight"), values)
    packed, plain = (qformats.load_model(each, dtype="f32") for each in (model, tmp_path / "plain"))
    with torch.inference_mode():
        assert torch.allclose(packed(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)


def test_whole_steps_are_those_of_other_formats():
    """Where float16 holds scales and minima, Q4_1 has the same numbers, and where zeros are whole steps, AWQ."""
    fields, _ = stored(32, 64, 32)
    scale = fields[BOTH][..., 0].float().abs().clamp(2**-6, 1).log2().round().exp2()
    fields[BOTH] = torch.stack([scale, scale * 3], -1).bfloat16()
    packed = located(fields, (32, 64))
    for name in ("gguf:q4_1", "awq:4bit-32g"):
        other = qformats.packer(name)
        same = other.pack(other.represent(packed.unpack()))
        assert torch.equal(same.dequantize(), packed.dequantize())


def test_what_does_not_fit_is_refused(llama, tmp_path):
    fields, _ = stored(32, 64, 32)
    with pytest.raises(
        ConfigError, match=r"32 x 1024 weights with those that fill them up; expected a config"
    ):
        located(fields, None)
    with pytest.raises(ConfigError, match=r"expected 40 x 1024, for 33 x 64 as config.json has it"):
        located(fields, (33, 64))
    # Tiles of 16 rows, as AMD's GPUs have them.
    with pytest.raises(ConfigError, match=r"16 x 1024 weights .* expected 8 x 1024, for 8 x 64"):
        located(stored(16, 64, 32)[0], (8, 64))
    for name, value in (
        (QDATA, fields[QDATA].to(torch.int64)),
        (QDATA, fields[QDATA][:, :, :16].contiguous()),
        (QDATA, fields[QDATA][:, :4].contiguous()),
        (BOTH, fields[BOTH].half()),
        (BOTH, fields[BOTH][:12].contiguous()),
        ("_weight_act_pre_scale", torch.ones(64, dtype=torch.bfloat16)),
    ):
        with pytest.raises(ConfigError, match="Int4TilePackedTo4dTensor, with inputs as they are"):
            located(fields | {name: value}, (32, 64))
    with pytest.raises(ConfigError, match=f"{QDATA} and {BOTH}"):
        located({BOTH: fields[BOTH]}, (32, 64))
    broken = fields[BOTH].clone()
    broken[0, 3, 1] = torch.inf
    with pytest.raises(ConfigError, match=f"{BOTH}.*1 values that are NaN or infinite"):
        located(fields | {BOTH: broken}, (32, 64))
    model = folder(llama, tmp_path / "model", fields)
    config = json.loads((model / "config.json").read_text()) | {"model_type": "of-ones-own"}
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"a config.json that describes the model"):
        qformats.open(model)


def test_names():
    assert isinstance(qformats.packer("torchao:int4-tiles"), TilePacker)
    with pytest.raises(qformats.errors.UnknownFormatError, match="int4-tiles"):
        qformats.packer("torchao:int4-tiles-96g")
