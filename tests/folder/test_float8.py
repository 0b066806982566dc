"""FP8 weights; the oracles are torch's own conversion and Transformers' dequantization."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli.command import call
from folder.folders import WEIGHTS, agree, change_config, change_weights, logits, transformers_logits
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError

NAME = "model.layers.1.mlp.down_proj.weight"
DTYPES = {"f8_e4m3": torch.float8_e4m3fn, "f8_e5m2": torch.float8_e5m2}


def blocks(
    weight: torch.Tensor, block: tuple[int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """FP8 numbers, a scale for each block, and the values, block by block."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    numbers, values = torch.empty(weight.shape, dtype=dtype), torch.empty(weight.shape)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            here = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[here].abs().max() / torch.finfo(dtype).max
            numbers[here] = (weight[here] / scales[i, j]).to(dtype)
            values[here] = numbers[here].float() * scales[i, j]
    return numbers, scales, values


def quantize(
    folder: Path, block: tuple[int, int], dtype: torch.dtype = torch.float8_e4m3fn, **more
) -> dict[str, torch.Tensor]:
    """Turn a folder into one as DeepSeek publishes them; returns the values of its weights."""
    values = load_file(folder / WEIGHTS)
    stored = dict(values)
    for name in list(values):
        if name.endswith("_proj.weight"):
            numbers, scales, values[name] = blocks(values[name], block, dtype)
            stored |= {name: numbers, f"{name}_scale_inv": scales}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    change_config(
        folder,
        quantization_config={
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": list(block),
            **more,
        },
    )
    return values


@pytest.mark.parametrize("block", [(128, 128), (32, 32), (24, 40), (1, 64)])
@pytest.mark.parametrize("kind", DTYPES)
def test_blocks_are_decoded(copy, block, kind):
    values = quantize(copy, block, DTYPES[kind])
    opened = qformats.open(copy)
    assert opened.tensors.keys() == values.keys()
    for name, wanted in values.items():
        assert torch.equal(opened.read(name), wanted)
    tensor = opened.tensors[NAME]
    if kind == "f8_e4m3":
        sized = "" if block == (128, 128) else f"-{block[0]}x{block[1]}"
        assert tensor.stored_format == tensor.format == f"fp8:block{sized}"
        assert torch.equal(tensor.read().dequantize(), values[NAME])
    else:
        assert (tensor.stored_format, tensor.format) == (f"dense:{kind}", "dense:f32")
        assert torch.equal(tensor.read(5, 61).dequantize(), values[NAME][5:61])
    stored = load_file(copy / WEIGHTS)
    assert tensor.nbytes == sum(stored[name].nbytes for name in (NAME, f"{NAME}_scale_inv"))


def test_blocks_as_transformers_reads_them(copy):
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    quantize(copy, (32, 32))
    config = FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32, quantization_config=config)
    state = model.state_dict()
    opened = qformats.open(copy)
    assert state.keys() == opened.tensors.keys()
    assert all(torch.equal(opened.read(name), value.float()) for name, value in state.items())
    assert agree(logits(qformats.load_model(copy, dtype="f32")), logits(model.eval()))


@pytest.mark.parametrize("kind", ["gguf:f32", "gguf:q8_0", "dense:bf16", "bitsandbytes:nf4", "glm:int8"])
def test_blocks_are_exported_like_their_values(copy, tmp_path, kind):
    plain = Path(copy.parent / "plain")
    plain.mkdir()
    for file in copy.iterdir():
        (plain / file.name).write_bytes(file.read_bytes())
    values = quantize(copy, (24, 40))
    save_file(values, plain / WEIGHTS, metadata={"format": "pt"})
    reports = [
        qformats.export(source, tmp_path / target, format=kind)
        for source, target in ((copy, "a"), (plain, "b"))
    ]
    first, second = (qformats.open(tmp_path / target) for target in "ab")
    assert first.tensors.keys() == second.tensors.keys()
    for name in first.tensors:
        assert first.tensors[name].format == second.tensors[name].format
        assert torch.equal(first.read(name), second.read(name))
    assert first.config == second.config
    assert reports[0].left_out == ()


def test_one_scale_for_a_whole_weight(copy):
    values = quantize(copy, (1024, 1024))
    change_weights(
        copy, lambda state: state.update({f"{NAME}_scale_inv": state[f"{NAME}_scale_inv"].reshape(())})
    )
    with pytest.raises(
        CheckpointError,
        match=r"weight_scale_inv of .*: found shape \(\); expected \(1, 1\), for blocks of 1024",
    ):
        qformats.open(copy)
    for declared in ({"quant_method": "fp8", "weight_block_size": None}, None):
        change_config(copy, quantization_config=declared)
        assert torch.equal(qformats.open(copy).read(NAME), values[NAME])


def test_scales_of_activations_are_left_out(copy, tmp_path):
    quantize(copy, (32, 32), activation_scheme="static")
    extra = f"{NAME.removesuffix('weight')}activation_scale"
    change_weights(copy, lambda state: state.update({extra: torch.ones(1)}))
    report = qformats.export(copy, tmp_path / "out.gguf", format="gguf:q8_0")
    assert [(each.name, each.reason) for each in report.left_out] == [
        (extra, "a scale of FP8 activations, which weights do without")
    ]


def test_stacked_experts(copy):
    """Three dimensions: a grid of blocks for each expert."""
    weight = torch.randn(3, 40, 50, generator=torch.Generator().manual_seed(1))
    parts = [blocks(matrix, (32, 32), torch.float8_e4m3fn) for matrix in weight]
    name = "model.layers.0.mlp.experts.gate_up_proj"
    numbers, scales, values = (torch.stack([part[i] for part in parts]) for i in range(3))
    change_weights(copy, lambda state: state.update({name: numbers, f"{name}_scale_inv": scales}))
    change_config(copy, quantization_config={"quant_method": "fp8", "weight_block_size": [32, 32]})
    tensor = qformats.open(copy).tensors[name]
    assert torch.equal(tensor.read().dequantize(), values)
    assert torch.equal(tensor.read(1, 3).dequantize(), values[1:])


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("files", ["safetensors", "bin"])
def test_plain_numbers_are_decoded_exactly(copy, tmp_path, kind, files):
    """Every number that there is, subnormal ones too."""
    every = torch.arange(256, dtype=torch.uint8).view(DTYPES[kind])
    every = torch.where(every.float().isfinite(), every.float(), torch.zeros(256)).to(DTYPES[kind])
    state = load_file(copy / WEIGHTS)
    state[NAME] = every.repeat(state[NAME].numel() // 256).reshape(state[NAME].shape)
    if files == "bin":
        (copy / WEIGHTS).unlink()
        torch.save(state, copy / "pytorch_model.bin")
    else:
        save_file(state, copy / WEIGHTS, metadata={"format": "pt"})
    tensor = qformats.open(copy).tensors[NAME]
    assert tensor.nbytes == tensor.numel
    assert torch.equal(tensor.dequantize(), state[NAME].float())
    for target in ("gguf:f32", "dense:bf16", "gguf:bf16"):
        qformats.export(copy, tmp_path / target, format=target, require_exact=target == "gguf:f32")
        assert torch.equal(qformats.open(tmp_path / target).read(NAME), state[NAME].float())


def test_a_model_whose_weights_are_all_fp8(copy):
    """Saved after ``model.to(torch.float8_e4m3fn)``: norms and embeddings too."""
    change_weights(copy, lambda state: state.update({n: v.to(torch.float8_e4m3fn) for n, v in state.items()}))
    change_config(copy, dtype="float8_e4m3fn")
    found = logits(qformats.load_model(copy, dtype="f32"))
    change_weights(copy, lambda state: state.update({n: v.float() for n, v in state.items()}))
    change_config(copy, dtype="float32")
    assert agree(found, transformers_logits(copy))


def test_transposed_matrices(tmp_path):
    """GPT-2 stores them as [in_features, out_features]."""
    folder = tiny.build("gpt2", tmp_path / "gpt2")
    name = "transformer.h.0.attn.c_attn.weight"
    change_weights(folder, lambda state: state.update({name: state[name].to(torch.float8_e4m3fn)}))
    stored = load_file(folder / WEIGHTS)[name].float()
    assert torch.equal(qformats.open(folder).read(name), stored.t())
    qformats.export(folder, tmp_path / "out", format="dense:f16")
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS)[name].float(), stored)


def test_inspect_says_what_is_stored(capsys, copy):
    quantize(copy, (32, 32))
    facts = json.loads(call(capsys, "inspect", copy, "--json").out)
    assert {kind["format"]: kind["tensors"] for kind in facts["types"]} == {
        "fp8:block-32x32": 14,
        "dense:f32": 7,
    }


def test_it_is_nothing_that_can_be_written(tmp_path):
    with pytest.raises(qformats.QFormatsError, match="one that can be written"):
        qformats.export("demo", tmp_path / "out", format="dense:f8_e4m3")


def drop(state):
    del state[f"{NAME}_scale_inv"]


def rename(new):
    return lambda state: state.update({new: state.pop(f"{NAME}_scale_inv")})


@pytest.mark.parametrize(
    ("change", "config", "found"),
    [
        (
            drop,
            {},
            "FP8 numbers without weight_scale_inv, although quantization_config declares them in blocks",
        ),
        (rename(f"{NAME}_scale"), {}, f"FP8 numbers without weight_scale_inv and with {NAME}_scale"),
        (rename(f"{NAME}_scale"), None, f"FP8 numbers without weight_scale_inv and with {NAME}_scale"),
        (
            rename(NAME.replace("weight", "scale_weight")),
            None,
            "FP8 numbers without weight_scale_inv and with",
        ),
        (lambda s: s.update({f"{NAME}_scale_inv": s[f"{NAME}_scale_inv"][:1]}), {}, "for blocks of 32 x 32"),
        (
            lambda s: s.update({f"{NAME}_scale_inv": s[f"{NAME}_scale_inv"].int()}),
            {},
            "found 'i32'; expected f32 or bf16 or f16 or f8_e8m0 or u8",
        ),
        (lambda s: s.update({NAME: s[NAME].float().to(torch.int8)}), {}, "scales of blocks for i8 numbers"),
        (
            lambda s: None,
            {"weight_block_size": [0, 128]},
            "weight_block_size: found [0, 128]; expected two whole numbers",
        ),
        (
            lambda s: None,
            {"weight_block_size": "128"},
            "weight_block_size: found '128'; expected two whole numbers",
        ),
    ],
)
def test_what_is_not_understood(copy, change, config, found):
    quantize(copy, (128, 128) if config is None else (32, 32))
    change_weights(copy, change)
    declared = None if config is None else {"quant_method": "fp8", "weight_block_size": [32, 32], **config}
    change_config(copy, quantization_config=declared)
    with pytest.raises(CheckpointError) as caught:
        qformats.open(copy)
    assert found in str(caught.value)
    assert "bf16" in str(caught.value) or "weight_block_size" in found


def test_other_methods_are_refused_by_name(copy):
    quantize(copy, (32, 32), quant_method="fp8_of_others")
    with pytest.raises(CheckpointError, match="quantization method 'fp8_of_others'"):
        qformats.open(copy)


def test_not_finite_fp8_numbers_are_refused(copy, tmp_path):
    def spoil(state):
        state[NAME] = state[NAME].to(torch.float8_e4m3fn)
        state[NAME].view(torch.uint8)[0, 0] = 0x7F

    change_weights(copy, spoil)
    for kind in ("gguf:q4_0", "dense:bf16"):
        with pytest.raises(qformats.errors.WeightsError, match="nan"):
            qformats.export(copy, tmp_path / "out", format=kind)
