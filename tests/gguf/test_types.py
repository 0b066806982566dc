"""The table of tensor types, against gguf-py's."""

import subprocess
import sys

import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from qformats.errors import ConfigError, UnknownFormatError
from qformats_gguf.types import REMOVED, TYPES, by_name, row_bytes

WRONG_IN_GGUF_PY = {"q8_1": 40}  # gguf 0.19 counts d and s as float32; llama.cpp asserts 36
ABSENT_IN_GGUF_PY = {"q2_0"}
MIXTURES = {"q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M", "f32": "F32", "mxfp4": "MXFP4_MOE"}


@pytest.mark.parametrize("row", TYPES.values(), ids=lambda row: row.name)
def test_size_and_name_equal_gguf_py(row):
    if row.name in ABSENT_IN_GGUF_PY and row.id not in set(GGMLQuantizationType):
        assert (row.id, row.block_size, row.block_bytes) == (42, 64, 18)
        return
    theirs = GGMLQuantizationType(row.id)
    block_size, block_bytes = GGML_QUANT_SIZES[theirs]
    assert theirs.name.lower() == row.name
    assert block_size == row.block_size
    if row.name in WRONG_IN_GGUF_PY and block_bytes == WRONG_IN_GGUF_PY[row.name]:
        assert row.block_bytes == 36
    else:
        assert block_bytes == row.block_bytes


def test_no_type_of_gguf_py_is_missing():
    assert {int(theirs) for theirs in GGMLQuantizationType} <= TYPES.keys()
    assert not TYPES.keys() & REMOVED.keys()
    assert TYPES.keys() | REMOVED.keys() == set(range(43))


def test_file_types_equal_gguf_py():
    numbers = {
        member.name.removeprefix("MOSTLY_").removeprefix("ALL_"): int(member) for member in LlamaFileType
    }
    for row in TYPES.values():
        if row.file_type is not None and row.name not in ABSENT_IN_GGUF_PY:
            assert row.file_type == numbers[MIXTURES.get(row.name, row.name.upper())], row.name
    without = {row.name for row in TYPES.values() if row.file_type is None}
    assert without == {"q8_1", "q8_k", "i8", "i16", "i32", "i64", "f64"}


@pytest.mark.parametrize("row", TYPES.values(), ids=lambda row: row.name)
def test_fields_are_a_numpy_structure_of_the_same_size(row):
    dtypes = {"bfloat16": "uint16"}
    block = np.dtype([(name, dtypes.get(dtype, dtype), (count,)) for name, dtype, count in row.fields])
    assert block.itemsize == row.block_bytes


def test_known_sizes():
    assert [by_name(name).block_bytes for name in ("q4_0", "Q4_K", "iq1_m")] == [18, 144, 56]
    assert by_name("q4_0").bits_per_weight == 4.5
    assert not by_name("q8_k").in_files
    assert row_bytes(by_name("q6_k"), 4096) == 3360
    assert row_bytes(by_name("bf16"), 3) == 6


def test_row_must_be_whole_blocks():
    with pytest.raises(ConfigError, match=r"row length for q4_k: found 4128; expected a multiple of 256"):
        row_bytes(by_name("q4_k"), 4128)


def test_unknown_name_suggests_the_closest():
    with pytest.raises(UnknownFormatError, match=r"no GGUF tensor type 'q4k'. Did you mean 'q4_k'\?"):
        by_name("q4k")


def test_importing_the_table_imports_no_array_library():
    code = (
        "import sys, qformats_gguf.types; print([m for m in ('numpy', 'torch', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
