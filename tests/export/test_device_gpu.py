"""Rounding on a GPU gives the bytes of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qformats

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

FORMATS = (
    "gguf:q4_0", "gguf:q4_1", "gguf:q5_0", "gguf:q5_1", "gguf:q8_0", "gguf:q2_k", "gguf:q3_k", "gguf:q4_k",
    "gguf:q5_k", "gguf:q6_k", "gguf:iq4_nl", "gguf:iq4_xs", "gguf:mxfp4", "gptq:4bit-128g", "gptq:4bit-128g-asym",
    "gptq:8bit-32g-asym", "awq:4bit-128g", "bitsandbytes:nf4", "bitsandbytes:nf4-dq", "bitsandbytes:int8",
    "glm:int4", "glm:int8", "fp8:block", "compressed-tensors:w4a16-128g", "compressed-tensors:w4a16-128g-asym",
    "compressed-tensors:nvfp4", "mlx:4bit-64g", "mlx:mxfp4",
)  # fmt: skip


def weights(rows: int, columns: int) -> torch.Tensor:
    """Rows of very different sizes, of zeros, of ties, of one value, of numbers too small for float16."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    values[1] = 0
    values[2] = 0.25
    values[3] = 1e-7
    values[4, ::7] = 3e4
    values[5] = torch.linspace(-1, 1, columns)
    values[6] = torch.arange(columns).remainder(15).sub(7)
    return values.bfloat16()


@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_gets_the_bytes_of_the_cpu(format: str) -> None:
    from qformats.registry import registry

    dense, packer = weights(4096, 1024), qformats.packer(format)
    there = registry().quantizer("rtn", {"device": "cuda"})
    found, wanted = there.encode(dense, packer), packer.encode_reference(dense)
    for name, value in wanted.fields.items():
        assert found.fields[name].device.type == "cpu"
        assert (
            found.fields[name].contiguous().view(torch.uint8).equal(value.contiguous().view(torch.uint8))
        ), name


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:q4_k"])
def test_a_model_gets_the_bytes_of_the_cpu(format: str, tmp_path: Path) -> None:
    here, there = tmp_path / "cpu.gguf", tmp_path / "cuda.gguf"
    qformats.export("demo", here, format=format)
    qformats.export("demo", there, format=format, quantizer_options={"device": "cuda"})
    assert here.read_bytes() == there.read_bytes()


def test_a_weight_that_is_still_computed_on_the_gpu_is_waited_for() -> None:
    from qformats.registry import registry

    packer, there = qformats.packer("gguf:q4_0"), registry().quantizer("rtn", {"device": "cuda"})
    dense = weights(4096, 4096).float().cuda()
    there.encode(dense, packer)
    for _ in range(64):
        # Launches that are far from done when the quantizer is called.
        dense = dense.roll(1, 0)
    found = there.encode(dense, packer).fields["blocks"]
    assert found.equal(packer.encode_reference(weights(4096, 4096).float().roll(64, 0)).fields["blocks"])
