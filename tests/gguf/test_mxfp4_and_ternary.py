"""Bytes of mxfp4, tq1_0 and tq2_0 against ggml's C code; these take no notice of an importance matrix."""

import math

import numpy as np
import pytest
import torch
from oracles import ggml

import qformats
from qformats import PackedTensor
from qformats.errors import NonFiniteError
from qformats_gguf.types import by_name

NAMES = ("mxfp4", "tq1_0", "tq2_0")
COLUMNS = 512


def _rng():
    return np.random.default_rng(43)


def _around_powers():
    """Largest magnitudes one float32 below, on and above every power of two: their logarithms are rounded."""
    powers = np.float32(2.0) ** np.arange(-40, 16).astype(np.float32)
    tops = np.concatenate(
        [np.nextafter(powers, np.float32(0)), powers, np.nextafter(powers, np.float32(1e9))]
    )
    weight = np.zeros((len(tops), COLUMNS), np.float32)
    weight[:, ::32] = tops[:, None]
    weight[:, 1::32] = -tops[:, None] * np.float32(0.37)
    return weight


INPUTS = {
    "normal": lambda: _rng().standard_normal((61, COLUMNS)) * 0.02,
    "heavy tails": lambda: _rng().standard_t(2, (61, COLUMNS)),
    "one sided": lambda: -np.abs(_rng().standard_normal((61, COLUMNS))),
    "constant": lambda: np.repeat([[1], [-1], [0.1], [-3e-5], [6e4], [1e-7]], COLUMNS, 1),
    "zero": lambda: np.zeros((3, COLUMNS)),
    "negative zero": lambda: np.full((3, COLUMNS), -0.0),
    "ternary": lambda: _rng().integers(-1, 2, (61, COLUMNS)) * 0.37,
    "half way": lambda: _rng().integers(-64, 65, (61, COLUMNS)) / 8,
    "powers": _around_powers,
    "tiny": lambda: _rng().standard_normal((61, COLUMNS)) * 2.0 ** _rng().integers(-60, -10, (61, 1)),
    "nearly nothing": lambda: (
        _rng().standard_normal((61, COLUMNS)) * 2.0 ** _rng().integers(-149, -110, (61, 1))
    ),
    "one row": lambda: _rng().standard_normal((1, COLUMNS)),
}


def _input(case):
    return np.ascontiguousarray(INPUTS[case](), np.float32)


# What is too small for a scale becomes zeros, which is said.
@pytest.mark.filterwarnings("ignore:.* rows became zeros:UserWarning")
@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_equal_c(name, case):
    weight, format = _input(case), f"gguf:{name}"
    expected = ggml.quantize(name, weight)
    dense = torch.from_numpy(weight)
    importance = torch.rand(COLUMNS, generator=torch.Generator().manual_seed(1))
    for packed in (
        qformats.packer(format).encode_reference(dense),
        qformats.pack(qformats.quantize(dense, format), format),
        qformats.pack(qformats.quantize(dense, format, importance=importance), format),
    ):
        assert np.array_equal(packed.fields["blocks"], expected)
        assert torch.equal(packed.dequantize(), torch.from_numpy(ggml.dequantize(name, expected)))


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_decode_as_in_c(name):
    kind = by_name(name)
    blocks = _rng().integers(0, 256, (999, kind.block_bytes), dtype=np.uint8)
    fields = {"blocks": torch.from_numpy(blocks)}
    packed = PackedTensor(qformats.packer(f"gguf:{name}"), (999, kind.block_size), fields)
    expected = torch.from_numpy(ggml.dequantize(name, blocks))
    for values in (packed.dequantize(), packed.unpack().dequantize()):
        assert bool(((values == expected) | (values.isnan() & expected.isnan())).all())


@pytest.mark.parametrize("name", NAMES)
def test_stacked_matrices_are_rows(name):
    weight = torch.from_numpy(_input("normal")[:12]).view(3, 4, COLUMNS)
    packed = qformats.packer(f"gguf:{name}").encode_reference(weight)
    assert np.array_equal(packed.fields["blocks"], ggml.quantize(name, weight.numpy()))
    assert packed.dequantize().shape == weight.shape


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_quantized_is_refused(name):
    weight = torch.zeros(3, COLUMNS)
    weight[1, 5] = math.inf
    with pytest.raises(NonFiniteError, match="not finite"):
        qformats.quantize(weight, f"gguf:{name}")
    if name != "mxfp4":
        weight[1, 5] = 1e6
        with pytest.raises(NonFiniteError, match="1 of 6 blocks need a scale beyond f16"):
            qformats.packer(f"gguf:{name}").encode_reference(weight)


def test_ternary_weights_keep_every_value():
    """Values that are a float16 times -1, 0 or 1 come back, and go on into other formats unchanged."""
    weight = torch.from_numpy(_input("ternary")[:32]).half().float()
    for name in ("tq1_0", "tq2_0"):
        packed = qformats.packer(f"gguf:{name}").encode_reference(weight)
        assert torch.equal(packed.dequantize(), weight)
        for other in ("gguf:q4_0", "gguf:q8_0", "gptq:4bit-128g"):
            target = qformats.packer(other)
            assert torch.equal(target.pack(target.represent(packed.unpack())).dequantize(), weight)
