"""Rows of stored tensors cut, reordered and joined: values, formats, and fields that follow from the shape."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import qformats
from qformats.errors import ShapeError
from qformats.interfaces.rows import cut
from qformats.interfaces.stored import StoredTensor, concat_rows

FORMATS = [
    "dense:bf16",
    "gguf:q4_0",
    "gguf:q5_1",
    "glm:int4",
    "glm:int8",
    "bitsandbytes:nf4",
    "bitsandbytes:nf4-dq",
    "bitsandbytes:fp4",
    "bitsandbytes:int8",
]
ORDER = np.array([5, 1, 9, 0, 31, 30])


def stored(
    format: str, rows: int = 32, columns: int = 128, seed: int = 0
) -> tuple[StoredTensor, torch.Tensor]:
    """A tensor made from bfloat16 weights, and its values."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    packer = qformats.packer(format)
    packed = packer.encode_reference(weight)
    tensor = StoredTensor(
        "w",
        (rows, columns),
        packer,
        packed.nbytes,
        Path("file"),
        lambda start, stop: cut(packed, start, stop),
        step=packer.row_step((rows, columns)),
    )
    return tensor, packer.dequantize(packed)


def check(tensor: StoredTensor, expected: torch.Tensor) -> qformats.PackedTensor:
    """Read as a whole and, where that is possible, by rows."""
    packer = qformats.packer(tensor.format)
    assert tensor.shape == tuple(expected.shape)
    whole = tensor.read()
    assert whole.shape == tensor.shape
    assert torch.equal(packer.dequantize(whole), expected)
    stored = packer.stored(tensor.shape) if packer.dense_dtype is None else {}
    for name, (shape, _) in stored.items():
        assert tuple(whole.fields[name].shape) == shape
    if tensor.step == 1:
        assert torch.equal(packer.dequantize(tensor.read(2, 5)), expected[2:5])
    for name, value in whole.fields.items():
        if "quant_state" in name:
            state = json.loads(value.numpy().tobytes())
            assert state["shape"] == list(tensor.shape)
            assert state["dtype"] == "bfloat16"
    return whole


@pytest.mark.parametrize("format", FORMATS)
def test_slices(format):
    tensor, values = stored(format)
    check(tensor.slice_rows(8, 20), values[8:20])


@pytest.mark.parametrize("format", FORMATS)
def test_orders(format):
    tensor, values = stored(format)
    taken = tensor.take_rows(ORDER)
    check(taken, values[ORDER])
    # Quantized scales belong to the tensor as a whole; with plain ones every value stays.
    assert taken.format == format.removesuffix("-dq")
    assert taken.stored_format == format


@pytest.mark.parametrize("format", FORMATS)
def test_joins(format):
    parts = [stored(format, rows, seed=rows) for rows in (8, 2, 6)]
    joined = concat_rows("all", [tensor for tensor, _ in parts])
    check_values = torch.cat([values for _, values in parts])
    assert joined.name == "all"
    if format.endswith("-dq"):
        assert (joined.format, joined.stored_format) == ("dense:f32", format)
    else:
        assert joined.format == format
    if joined.format == format:
        check(joined, check_values)
    else:
        assert torch.equal(qformats.dequantize(joined.read()), check_values)


def test_blocks_that_straddle_rows_are_decoded():
    tensor, values = stored("bitsandbytes:nf4", columns=40)
    taken = tensor.take_rows(ORDER)
    assert (taken.format, taken.stored_format) == ("dense:f32", "bitsandbytes:nf4")
    assert torch.equal(taken.read().fields["weight"], values[ORDER])


def test_different_dtypes_are_joined_in_the_wider_one():
    (half, first), (single, second) = stored("dense:f16"), stored("dense:f32", seed=1)
    joined = concat_rows("all", [half, single])
    assert joined.format == "dense:f32"
    assert torch.equal(joined.read().fields["weight"], torch.cat([first, second]))


def test_rows_of_different_widths_are_not_joined():
    with pytest.raises(ShapeError, match=r"'w': shape \(32, 64\); expected rows like those of w"):
        concat_rows("all", [stored("glm:int4")[0], stored("glm:int4", columns=64)[0]])


@pytest.mark.parametrize(
    ("before", "after", "action"),
    [
        ("bitsandbytes:nf4-dq", "bitsandbytes:nf4", "transcoded"),
        ("bitsandbytes:nf4-dq", "bitsandbytes:nf4-dq", "transcoded"),
        ("glm:int4", "glm:int4", "copied"),
        ("bitsandbytes:nf4-dq", "dense:f32", "dequantized"),
    ],
)
def test_what_a_plan_calls_them(before, after, action, tmp_path):
    """Of a tensor whose rows were reordered, only the same bytes are a copy."""
    from qformats.exporting import Recipe, make_plan
    from qformats.exporting.run import execute

    tensor, values = stored(before)
    taken = tensor.take_rows(ORDER).renamed("model.layers.0.mlp.up_proj.weight")

    class One(qformats.Checkpoint):
        path, name, container = tmp_path / "none", "one", "huggingface"
        architecture, files, config = "unlisted", (), {"model_type": "unlisted"}
        tensors = {taken.name: taken}  # noqa: RUF012

        def tokenizer_files(self):
            return {}

    plan = make_plan(One(), tmp_path / "out", Recipe(after), {})
    assert [t.action.value for t in plan.tensors] == [action]
    execute(plan)
    found = qformats.open(tmp_path / "out").read(taken.name)
    if after == "bitsandbytes:nf4-dq":
        assert torch.allclose(found, values[ORDER], atol=0.05)
    else:
        assert torch.equal(found, values[ORDER])
