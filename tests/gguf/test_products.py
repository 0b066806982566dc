"""Products with packed rows on a CPU: those of decoded values, whatever the bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import qformats
from qformats_gguf import rows
from qformats_gguf.types import by_name

TYPES = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k"]
HALVES = {
    "q4_0": [0],
    "q4_1": [0, 2],
    "q5_0": [0],
    "q5_1": [0, 2],
    "q8_0": [0],
    "q2_k": [80, 82],
    "q3_k": [108],
    "q4_k": [0, 2],
    "q5_k": [0, 2],
    "q6_k": [208],
}
"""Where float16 lie in a block (ggml-common.h)."""
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x3C00]
"""Zeros, subnormals, the smallest normal, the largest ones, 1."""


def random_blocks(name: str, rows: int, count: int, scales: list[int] | None = None) -> np.ndarray:
    """Random bytes; float16 are those given, else random numbers of moderate size."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (rows * count, by_name(name).block_bytes), np.uint8)
    for at in HALVES[name]:
        chosen = random.normal(0, 0.01, len(blocks)).astype(np.float16).view(np.uint16)
        if scales is not None:
            chosen = random.choice(np.array(scales, np.uint16), len(blocks))
        blocks[:, at : at + 2] = chosen.astype("<u2").view(np.uint8).reshape(-1, 2)
    return blocks.reshape(rows, -1)


def both(name: str, blocks: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the kernel gives, the product of decoded values in float64, and the sum of its magnitudes."""
    shape = len(blocks), len(x)
    packed = qformats.PackedTensor(
        qformats.packer(f"gguf:{name}"), shape, {"blocks": torch.from_numpy(blocks)}
    )
    values = qformats.dequantize(packed).double().numpy()
    run = rows.products(name, blocks)
    out = np.full(len(blocks), np.nan, np.float32)
    run(x, out, 0, len(blocks))
    return out, values @ x.astype(np.float64), np.abs(values) @ np.abs(x).astype(np.float64)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("name", TYPES)
def test_product_of_decoded_values(name, count):
    x = np.random.default_rng(1).normal(size=count * by_name(name).block_size).astype(np.float32)
    found, expected, magnitude = both(name, random_blocks(name, 5, count), x)
    # Of sums in float32 in another order: measured up to 6e-7.
    assert np.all(np.abs(found - expected) <= 3e-6 * magnitude + 1e-30)


@pytest.mark.parametrize("name", TYPES)
def test_every_kind_of_finite_scale(name):
    x = np.random.default_rng(1).normal(size=3 * by_name(name).block_size).astype(np.float32)
    for special in SPECIAL:
        found, expected, magnitude = both(name, random_blocks(name, 4, 3, [special]), x)
        assert np.all(np.abs(found - expected) <= 3e-6 * magnitude + 1e-30), hex(special)


@pytest.mark.parametrize("name", TYPES)
def test_a_scale_that_is_not_finite_makes_no_finite_product(name):
    x = np.ones(by_name(name).block_size, np.float32)
    for special in (0x7C00, 0xFC00, 0x7E01):
        found = np.zeros(4, np.float32)
        rows.products(name, random_blocks(name, 4, 1, [special]))(x, found, 0, 4)
        assert not np.isfinite(found).any()


@pytest.mark.parametrize("name", TYPES)
def test_rows_are_independent(name):
    """Any cut of the rows gives the same bits, and others are not written."""
    x = np.random.default_rng(1).normal(size=2 * by_name(name).block_size).astype(np.float32)
    run = rows.products(name, random_blocks(name, 9, 2))
    whole, parts = np.zeros(9, np.float32), np.full(9, 7.0, np.float32)
    run(x, whole, 0, 9)
    run(x, parts, 2, 5)
    assert np.all(parts[[0, 1, 5, 6, 7, 8]] == 7)
    run(x, parts, 0, 2)
    run(x, parts, 5, 9)
    assert np.array_equal(whole, parts)


def test_types_with_tables_have_none():
    for name in ("iq4_nl", "iq4_xs", "mxfp4", "tq2_0"):
        packer = qformats.packer(f"gguf:{name}")
        shape = (1, by_name(name).block_size)
        blocks = torch.zeros(1, by_name(name).block_bytes, dtype=torch.uint8)
        assert packer.row_products(qformats.PackedTensor(packer, shape, {"blocks": blocks})) is None


GUARDED = """
import ctypes, mmap, sys
import numpy as np
from test_products import TYPES, random_blocks
from qformats_gguf import rows
from qformats_gguf.types import by_name

page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
for name in TYPES:
    blocks = random_blocks(name, 3, 2)
    memory = mmap.mmap(-1, 3 * page)
    whole = np.frombuffer(memory, np.uint8)
    at = whole.ctypes.data
    assert libc.mprotect(ctypes.c_void_p(at + 2 * page), page, 0) == 0
    assert libc.mprotect(ctypes.c_void_p(at), page, 3) == 0
    end = whole[2 * page - blocks.size : 2 * page]
    end[:] = blocks.reshape(-1)
    x, out = np.ones(2 * by_name(name).block_size, np.float32), np.zeros(3, np.float32)
    rows.products(name, end.reshape(3, -1))(x, out, 0, 3)
    print(name)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects memory with mprotect")
def test_nothing_is_read_beyond_the_last_block():
    """The page behind the blocks cannot be read."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{GUARDED}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, TYPES), done.stderr
