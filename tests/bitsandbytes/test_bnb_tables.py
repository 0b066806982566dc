"""Constants against the hashes of what bitsandbytes computes, and against bitsandbytes."""

import hashlib
import struct

import numpy as np
import pytest

from qformats_bitsandbytes import tables


def _hash(values):
    return hashlib.sha256(struct.pack(f"<{len(values)}f", *values)).hexdigest()


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (tables.NF4, "8501941daa1b8a90"),
        (tables.FP4, "b830bcf8857895e5"),
        (tables.DYNAMIC, "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"),
    ],
)
def test_hashes(table, expected):
    assert _hash(table).startswith(expected)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_tables_are_those_of_bitsandbytes(kind, bnb):
    table = tables.NF4 if kind == "nf4" else tables.FP4
    assert bnb.functional.get_4bit_type(kind, "cpu").tolist() == list(table)


def test_thresholds_of_nf4_are_the_middles():
    table = np.array(tables.NF4, np.float32)
    assert ((table[1:] + table[:-1]) / np.float32(2)).tolist() == list(tables.NF4_THRESHOLDS)


def test_thresholds_of_fp4_are_near_the_middles():
    """The GPU code spells them with few digits: 14 last places off at most."""
    levels = np.array([v for v in tables.FP4_LEVELS if v >= 0], np.float32)
    middles = (levels[1:] + levels[:-1]) / np.float32(2)
    ours = np.array(tables.FP4_THRESHOLDS, np.float32)
    assert np.abs(middles.view(np.int32) - ours.view(np.int32)).max() <= 14
    assert len(tables.FP4_LEVELS) == 15


def test_the_dynamic_map():
    """By its definition; the bits depend on fused operations, so only nearly."""
    values = [0.0, 1.0]
    for level in range(7):
        edges = np.linspace(0.1, 1, 2**level + 1)
        centres = 10.0 ** (level - 6) * (edges[1:] + edges[:-1]) / 2
        values += [*centres, *-centres]
    np.testing.assert_allclose(tables.DYNAMIC, sorted(values), rtol=3e-7)
    assert len(set(tables.DYNAMIC)) == 256
    assert tables.DYNAMIC[127] == 0
    assert tables.DYNAMIC[255] == 1
