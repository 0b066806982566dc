"""The search of the GPU beside the compiled one, on Triton's interpreter: the same codes and scales."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from qformats_gguf.superblocks import affine_triton
from qformats_gguf.superblocks.grids import search
from qformats_gguf.superblocks.layout import LAYOUTS
from qformats_gguf.superblocks.search import PLAIN


def blocks() -> torch.Tensor:
    """Blocks that are random, of zeros, of one value, positive, negative, tied, huge, tiny; float32."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(16, 256, generator=generator)
    values *= torch.logspace(-6, 3, 16)[:, None]
    values[1] = 0
    values[2] = 0.25
    values[3] = -0.25
    values[4] = values[4].abs()
    values[5] = -values[5].abs()
    values[6] = torch.arange(256).remainder(15).sub(7)
    values[7, ::9] = 3e4
    values[8] *= 1e-30
    values[9] = torch.linspace(-1e-40, 1e-40, 256)
    values[10, :32] = 0
    values[11, 32:64] = 5
    return values


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
@pytest.mark.filterwarnings(
    "ignore:.*encountered in:RuntimeWarning"
)  # NumPy's, of the interpreter: lanes of zeros
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("q2_k", torch.float32), ("q4_k", torch.float32), ("q4_k", torch.bfloat16), ("q5_k", torch.float32)],
)
def test_the_interpreted_kernel_gives_what_the_compiled_one_does(name: str, dtype: torch.dtype) -> None:
    kind, source = LAYOUTS[name], blocks().to(dtype)
    rule, trials, steps, absolute = PLAIN[name]
    found = affine_triton.search(kind, source, rule, trials, steps, absolute=absolute)
    codes, parts, _ = search(kind, source)
    for what, ours, theirs in zip(
        ("codes", "halves", "scales", "minima"),
        found,
        (codes, parts.halves, parts.scales, parts.minima),
        strict=True,
    ):
        assert ours.equal(theirs.view(ours.shape)), what
