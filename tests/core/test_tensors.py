"""The canonical tensor: which shapes it refuses, and its value against an independent NumPy formula."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qformats.errors import ConfigError, ShapeError
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.numbers.quantized import QuantizedTensor, expand_blocks


def _block_of(row, column, columns, block_size, g_idx):
    """Index of an element's block in `scale`."""
    block_rows, block_columns = block_size
    if block_rows == 0:
        return ((row * columns + column) // block_columns,)
    return (row // block_rows, column // block_columns if g_idx is None else int(g_idx[column]))


def _value(quantized):
    """Element by element in float32: level, product, sum, each rounded once."""
    codes, scale = quantized.codes.numpy(), quantized.scale.numpy()
    zero, g_idx = quantized.zero_point, quantized.g_idx
    out = np.empty(codes.shape, np.float32)
    for row, column in itertools.product(*map(range, codes.shape)):
        at = _block_of(row, column, codes.shape[1], quantized.block_size, g_idx)
        if quantized.codebook is not None:
            level = np.float32(quantized.codebook.numpy()[codes[row, column]])
        else:
            offset = zero.numpy()[at] if isinstance(zero, torch.Tensor) else zero
            level = np.float32(float(codes[row, column]) - float(offset))
        value = np.float32(np.float32(scale[at]) * level)
        if quantized.minimum is not None:
            value = np.float32(value + np.float32(quantized.minimum.numpy()[at]))
        out[row, column] = value
    return out


@st.composite
def tensors(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 19))
    flat = draw(st.booleans())
    block = (0 if flat else draw(st.integers(1, 3)), draw(st.integers(1, 8)))
    scale_dtype = draw(st.sampled_from([np.float16, np.float32]))
    code_dtype, low, high = draw(
        st.sampled_from([(np.uint8, 0, 256), (np.int8, -128, 128), (np.int16, -300, 300)])
    )
    g_idx = None
    if flat:
        grid = (-(-rows * columns // block[1]),)
    else:
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if draw(st.booleans()):
            grid = (grid[0], draw(st.integers(1, 5)))
            g_idx = torch.from_numpy(rng.integers(0, grid[1], columns).astype(np.int32))

    def floats():
        return torch.from_numpy(rng.standard_normal(grid).astype(scale_dtype))

    kind = draw(st.sampled_from(["int", "float", "tensor", "float tensor", "minimum", "codebook"]))
    more = {}
    if kind == "int":
        more["zero_point"] = int(rng.integers(-8, 200))
    elif kind == "float":
        more["zero_point"] = float(np.float32(rng.uniform(0, 8)))
    elif kind == "tensor":
        more["zero_point"] = torch.from_numpy(rng.integers(0, 256, grid).astype(np.int32))
    elif kind == "float tensor":
        more["zero_point"] = torch.from_numpy(rng.uniform(0, 8, grid).astype(np.float32))
    elif kind == "minimum":
        more["minimum"] = floats()
    else:
        code_dtype, low, high = np.uint8, 0, 16
        more["codebook"] = torch.from_numpy(np.sort(rng.standard_normal(16).astype(np.float32)))
    codes = torch.from_numpy(rng.integers(low, high, (rows, columns)).astype(code_dtype))
    return QuantizedTensor(codes, floats(), block, g_idx=g_idx, **more)


@settings(max_examples=400, deadline=None)
@given(tensors())
def test_value_is_two_roundings_of_the_formula(quantized):
    got = quantized.dequantize()
    assert got.dtype == torch.float32
    assert got.shape == quantized.shape
    np.testing.assert_array_equal(got.numpy(), _value(quantized))


def test_the_second_rounding_matters():
    """A fused multiply-add would keep the low bits of the product that cancel here."""
    scale = torch.tensor([[1 + 2.0**-23]])
    minimum = torch.tensor([[-1.0 - 2.0**-21]])
    quantized = QuantizedTensor(torch.tensor([[3]], dtype=torch.uint8), scale, (1, 1), minimum=minimum * 3)
    product = np.float32(np.float32(3) * np.float32(1 + 2.0**-23))
    expected = np.float32(product + np.float32(-3.0 * (1 + 2.0**-21)))
    fused = np.float32(3.0 * (1 + 2.0**-23) + float(np.float32(-3.0 * (1 + 2.0**-21))))
    assert expected != fused
    assert quantized.dequantize().item() == expected


def test_blocks_of_every_kind_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert expand_blocks(values, (3, 5), (2, 3)).tolist() == [
        [1, 1, 1, 2, 2],
        [1, 1, 1, 2, 2],
        [3, 3, 3, 4, 4],
    ]
    order = torch.tensor([1, 0, 1, 1, 0])
    assert expand_blocks(values, (2, 5), (1, 3), order).tolist() == [[2, 1, 2, 2, 1], [4, 3, 4, 4, 3]]
    flat = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert expand_blocks(flat, (3, 5), (0, 4)).tolist() == [[1, 1, 1, 1, 2], [2, 2, 2, 3, 3], [3, 3, 4, 4, 4]]


def _codes(rows=4, columns=10):
    return torch.zeros(rows, columns, dtype=torch.uint8)


REFUSED_SHAPES = {
    "codes of one dimension": ("codes", lambda: QuantizedTensor(_codes()[0], torch.ones(1, 1), (1, 10))),
    "codes of three dimensions": (
        "codes",
        lambda: QuantizedTensor(_codes()[None], torch.ones(1, 1), (1, 10)),
    ),
    "short scale": ("scale", lambda: QuantizedTensor(_codes(), torch.ones(4, 2), (1, 4))),
    "long scale": ("scale", lambda: QuantizedTensor(_codes(), torch.ones(4, 4), (1, 4))),
    "scale of a row": ("scale", lambda: QuantizedTensor(_codes(), torch.ones(4), (1, 10))),
    "scale for flat blocks": ("scale", lambda: QuantizedTensor(_codes(), torch.ones(4, 3), (0, 4))),
    "scale for block rows": ("scale", lambda: QuantizedTensor(_codes(), torch.ones(4, 3), (3, 4))),
    "minimum": (
        "minimum",
        lambda: QuantizedTensor(_codes(), torch.ones(4, 3), (1, 4), minimum=torch.ones(4, 1)),
    ),
    "zero point": (
        "zero_point",
        lambda: QuantizedTensor(_codes(), torch.ones(4, 3), (1, 4), zero_point=torch.ones(3)),
    ),
    "codebook": (
        "codebook",
        lambda: QuantizedTensor(_codes(), torch.ones(4, 3), (1, 4), codebook=torch.ones(4, 4)),
    ),
    "g_idx": (
        "g_idx",
        lambda: QuantizedTensor(_codes(), torch.ones(4, 3), (1, 4), g_idx=torch.zeros(9, dtype=torch.int32)),
    ),
    "rows of scale under g_idx": (
        "scale",
        lambda: QuantizedTensor(_codes(), torch.ones(3, 3), (1, 4), g_idx=torch.zeros(10, dtype=torch.int32)),
    ),
    "vector of scales under g_idx": (
        "scale",
        lambda: QuantizedTensor(_codes(), torch.ones(4), (1, 4), g_idx=torch.zeros(10, dtype=torch.int32)),
    ),
}


@pytest.mark.parametrize("case", REFUSED_SHAPES)
def test_shapes_that_contradict_each_other_are_refused(case):
    name, make = REFUSED_SHAPES[case]
    with pytest.raises(ShapeError, match=f"tensor '{name}'") as caught:
        make()
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("block", [(1, 0), (0, 0), (-1, 4), (1, -4)])
def test_blocks_without_a_size_are_refused(block):
    with pytest.raises(ConfigError, match="block_size"):
        QuantizedTensor(_codes(), torch.ones(4, 3), block)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_columns_of_a_block_that_is_not_there_are_refused(wrong):
    order = torch.zeros(10, dtype=torch.int32)
    order[7] = wrong
    with pytest.raises(ConfigError, match=rf"g_idx: found .*{wrong}.*\[0, 2\]"):
        QuantizedTensor(_codes(), torch.ones(4, 3), (1, 4), g_idx=order)


def test_an_order_of_columns_over_flat_blocks_is_refused():
    with pytest.raises(ConfigError, match="flattened"):
        QuantizedTensor(_codes(), torch.ones(10), (0, 4), g_idx=torch.zeros(10, dtype=torch.int32))


def test_codes_that_are_no_integers_are_refused():
    with pytest.raises(ConfigError, match=r"dtype of codes.*float32"):
        QuantizedTensor(_codes().float(), torch.ones(4, 3), (1, 4))


def test_bytes_of_a_packed_tensor():
    fields = {"a": torch.zeros(3, 5, dtype=torch.int32), "b": torch.zeros(7, dtype=torch.float16)}
    assert PackedTensor(Packer(), (3, 5), fields).nbytes == 60 + 14
