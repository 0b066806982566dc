"""LLVM makes vector code of the loops: nothing else notices when it stops to, with another release or another loop."""

import platform
import re

import numba
import pytest

from qformats.kernels import cpu
from qformats_bitsandbytes import kernels as bnb
from qformats_gguf import kernels as gguf
from qformats_gguf import recode
from qformats_gguf.rows import compiled as rows
from qformats_glm import kernels as glm
from qformats_gptq import kernels as gptq

F32, F16, BF16 = numba.float32, numba.uint16, numba.int16
U8, I8, U16, U32, U64 = numba.uint8, numba.int8, numba.uint16, numba.uint32, numba.uint64
INT, BOOL, NONE = numba.int64, numba.types.bool_, numba.types.none


def read(dtype, dimensions=2):
    return numba.types.Array(dtype, dimensions, "C", readonly=True)


def written(dtype, dimensions=2):
    return numba.types.Array(dtype, dimensions, "C")


MAXIMUM, MULTIPLY, DIVIDE, TO_INTEGER = "pmaxsd|pcmpgtd", "mulps", "divps", "cvttps2dq"
SHIFT, ADD, LOGIC = "ps[lr]l[wdq]", "paddd|psubd", r"pand\w*|por\w*|pternlog\w*"
CASES = {
    "cast": (cpu._cast, (read(F32, 1), written(F16, 1), numba.int32), (SHIFT, ADD)),
    "count": (cpu._count, (read(U32, 1), U32, U32), (ADD,)),
    "join": (cpu._join, (read(U16, 1), written(U8, 1), U16), (SHIFT,)),
    "split": (cpu._split, (read(U8, 1), written(U16, 1), U8), (LOGIC,)),
    "q4_0 of f32": (
        gguf._quantize_signed,
        (read(F32), written(U8), NONE, INT, INT),
        (MAXIMUM, MULTIPLY, TO_INTEGER, LOGIC),
    ),
    "q4_0 of f16": (gguf._quantize_signed, (read(F16), written(U8), NONE, INT, INT), (MAXIMUM, MULTIPLY)),
    "codes of q4_0": (
        gguf._quantize_signed,
        (read(F32), written(U8), written(U8), INT, INT),
        (MAXIMUM, MULTIPLY, TO_INTEGER),
    ),
    "q4_1": (gguf._quantize_minimum, (read(F32), written(U8), NONE, INT, INT), (MAXIMUM, MULTIPLY, LOGIC)),
    "codes of q5_1": (
        gguf._quantize_minimum,
        (read(BF16), written(U8), written(U8), INT, INT),
        (MAXIMUM, MULTIPLY, TO_INTEGER),
    ),
    "q8_0": (gguf._quantize_q8, (read(F32), written(U8), NONE), (MAXIMUM, MULTIPLY, TO_INTEGER)),
    "codes of q8_0": (
        gguf._quantize_q8,
        (read(F32), written(U8), written(U8)),
        (MAXIMUM, MULTIPLY, TO_INTEGER),
    ),
    "decode q4_0": (rows._decode("q4_0"), (read(U8, 1), INT, *[written(F32, 1)] * 2), (MULTIPLY,)),
    "decode q4_1": (
        rows._decode("q4_1"),
        (read(U8, 1), INT, written(F32, 1), written(BF16, 1)),
        (MULTIPLY, SHIFT),
    ),
    "decode q6_k": (
        rows._decode("q6_k"),
        (read(U8, 1), INT, written(F32, 1), written(F16, 1)),
        (MULTIPLY, SHIFT),
    ),
    "multiply q8_0": (
        rows._multiply("q8_0"),
        (read(U8, 1), *[written(F32, 1)] * 2, INT, INT),
        (r"mulps|fmadd\w+ps",),
    ),
    "multiply q4_k": (
        rows._multiply("q4_k"),
        (read(U8, 1), *[written(F32, 1)] * 2, INT, INT),
        (r"mulps|fmadd\w+ps", LOGIC),
    ),
    "pack q5_0": (
        recode._pack,
        (read(U8), read(U64, 1), read(BF16, 1), read(BF16, 1), written(U8), INT, INT, BOOL),
        (LOGIC,),
    ),
    "glm": (
        glm._quantize,
        (read(F32), written(I8), written(F16, 1), read(F32, 1), INT),
        (MAXIMUM, DIVIDE),
    ),
    "dequantize glm": (glm._dequantize, (read(I8), read(F32, 1), written(F32), INT), (MULTIPLY,)),
    "gptq": (
        gptq._quantize,
        (read(F32), written(U8), written(F16), written(U8), INT, INT, BOOL),
        (MAXIMUM, DIVIDE),
    ),
    "pack gptq": (gptq._pack, (read(U64), written(U32), INT, written(U64)), (SHIFT,)),
    "unpack gptq": (gptq._unpack, (read(U32), written(U64), INT, written(U64)), (SHIFT,)),
    "dequantize gptq": (
        gptq._dequantize,
        (read(U32), read(F32), read(F32), written(F32), INT, written(U64), INT),
        (SHIFT, MULTIPLY),
    ),
    "nf4": (bnb._quantize, (read(F32), written(U8), written(F32, 1), BOOL), (MAXIMUM, MULTIPLY)),
    "dequantize nf4": (bnb._dequantize, (read(U64, 1), read(U8), read(F32, 1), written(F32)), (MULTIPLY,)),
    "int8": (
        bnb._quantize_rows,
        (read(F16), written(I8), written(F32, 1), read(F32, 1)),
        (MAXIMUM, MULTIPLY),
    ),
    "dequantize int8": (bnb._dequantize_rows, (read(I8), read(F32, 1), written(F32)), (MULTIPLY,)),
}


@pytest.mark.parametrize("case", CASES)
def test_loops_become_vector_code(case):
    if platform.machine() != "x86_64":
        pytest.skip("names of other processors' instructions")
    kernel, signature, instructions = CASES[case]
    # Compiled anew: code from the cache cannot be shown.
    fresh = numba.njit(nogil=True, error_model="numpy")(kernel.py_func)
    fresh.compile(signature)
    (code,) = fresh.inspect_asm().values()
    for name in instructions:
        assert re.search(rf"\tv?(?:{name})\t.*%[xyz]mm", code), name
