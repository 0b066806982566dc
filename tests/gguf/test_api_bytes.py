"""The Python API's bytes and values beside gguf-py's, from what a user calls."""

import gguf
import numpy as np
import pytest
import torch

import qformats

TYPES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")


def _tied(draw):
    """Both signs of the largest magnitude in each block, and codes half way between two levels."""
    weight = (draw((48, 160)) * 4).round() / 8
    weight[:, ::32], weight[:, 7::32] = 4.0, -4.0
    return weight


INPUTS = {
    "random": lambda draw: draw((64, 512)) * 0.02,
    "tied": _tied,
    "zero": lambda draw: draw((3, 96)).zero_(),
    "constant": lambda draw: draw((1, 1)).repeat(5, 64),
    "constant rows": lambda draw: draw((33, 1)).expand(33, 64),
    "huge": lambda draw: draw((16, 128)).clamp(-3, 3) * 2e4,
    "tiny": lambda draw: draw((16, 128)) * 1e-6,
    "one block": lambda draw: draw((1, 32)),
    "odd rows": lambda draw: draw((37, 96)),
    "odd blocks": lambda draw: draw((5, 32 * 13)),
    "larger than a huge page": lambda draw: draw((1031, 4128)),
    "transposed": lambda draw: draw((96, 64)).t(),
    "every other row": lambda draw: draw((40, 64))[::2],
    "every other column": lambda draw: draw((8, 128))[:, ::2],
    "a slice of columns": lambda draw: draw((8, 160))[:, 32:128],
    "a slice that is not aligned": lambda draw: draw((8 * 64 + 1,))[1:].view(8, 64),
}


# Scales of the tiny case underflow in q8_0, which says so.
@pytest.mark.filterwarnings("ignore:16 of 16 rows became zeros:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["f32", "f16", "bf16"])
@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("name", TYPES)
def test_bytes_and_values_are_those_of_gguf(name, case, dtype):
    draw = np.random.default_rng(17)
    weight = INPUTS[case](
        lambda shape: torch.from_numpy(draw.standard_normal(shape, dtype=np.float32)).to(dtype)
    )
    kind = gguf.GGMLQuantizationType[name.upper()]
    before = weight.clone()
    expected = gguf.quants.quantize(weight.float().contiguous().numpy(), kind)
    packed = qformats.pack(qformats.quantize(weight, f"gguf:{name}"), f"gguf:{name}")
    assert np.array_equal(packed.fields["blocks"].numpy(), expected)
    assert torch.equal(weight, before)
    values = torch.from_numpy(gguf.quants.dequantize(expected, kind))
    assert torch.equal(qformats.dequantize(packed), values)
    assert torch.equal(packed.dequantize(torch.empty(values.shape)), values)
    assert torch.equal(qformats.unpack(packed).dequantize(), values)


@pytest.mark.parametrize("name", TYPES)
def test_no_rows_are_no_bytes(name):
    shape = (0, 64)
    packed = qformats.pack(qformats.quantize(torch.zeros(shape), f"gguf:{name}"), f"gguf:{name}")
    assert packed.nbytes == 0
    assert qformats.dequantize(packed).shape == shape
    assert qformats.unpack(packed).dequantize().shape == shape
