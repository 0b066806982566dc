"""Compile the Triton kernels to machine code of an H100, which takes no GPU; run in a process of its own.

Triton brings the assembler. Prints one line for each kernel: its name and the bytes of its machine code.
"""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qformats.kernels.triton_dequantize import dequantize_kernel
from qformats.kernels.triton_linear import linear_kernel

# bits, mode, zero, group, columns of an outer scale, dtype of the scales, dtype of the activations; kind of the factors
KINDS = {
    "affine": (4, 0, 8, 128, 0, "fp16", "fp16"),
    "affine, bfloat16": (4, 0, 8, 32, 0, "fp16", "bf16"),
    "zeros": (4, 0, None, 64, 0, "fp16", "fp16"),
    "minimum, two planes": (5, 1, 0, 32, 0, "fp16", "fp16"),
    "eight bits, a row": (8, 0, 128, 0, 0, "fp32", "fp16"),
    "table": (4, 2, 0, 64, 0, "fp32", "fp16"),
    "table, bfloat16": (4, 2, 0, 64, 0, "fp32", "bf16"),
    "groups of 32 in 256, minimum": (4, 1, 0, 32, 256, "fp16", "fp16"),
    "groups of 16 in 256, six bits": (6, 0, 32, 16, 256, "fp16", "fp16"),
    "groups of 16 in 256, minimum, bfloat16": (2, 1, 0, 16, 256, "fp16", "bf16"),
    "groups of 32 in 256, table": (4, 2, 0, 32, 256, "fp16", "fp16"),
    "floats of 8 bits": (8, 3, 0, 128, 0, "fp32", "fp16"),
    "floats of 8 bits, bfloat16": (8, 3, 0, 0, 0, "fp32", "bf16"),
    "floats of 8 bits, powers of two": (8, 3, 0, 32, 1024, "fp32", "fp16", 1),
    "floats of 4 bits, powers of two": (4, 3, 0, 32, 1024, "fp32", "fp16", 1),
    "floats of 4 bits, floats of 8 bits": (4, 3, 0, 16, 1024, "fp32", "fp16", 2),
    "floats of 4 bits, quotients, bfloat16": (4, 3, 0, 16, 1024, "fp32", "bf16", 3),
    "three bits, float32": (3, 0, 4, 128, 0, "fp16", "fp32"),
}
NUMBERS = ("M", "N", "K", "line", "groups", "steps", "border", "border2")


def types(scale, activations, zero):
    pointers = {
        "low_ptr": "i16", "high_ptr": "i16", "scale_ptr": scale, "shift_ptr": "fp16" if zero is None else scale,
        "table_ptr": "fp32", "lookup_ptr": "i32", "factor_ptr": "i32", "shift_factor_ptr": "i32",
        "x_ptr": activations, "bias_ptr": activations,
        "out_ptr": activations, "partial_ptr": "fp32", "arrived_ptr": "i32", "chosen_ptr": "i64",
    }  # fmt: skip
    return {**{name: f"*{kind}" for name, kind in pointers.items()}, **dict.fromkeys(NUMBERS, "i32")}


def compiled(kernel, constants, kinds, **options):
    signature = {name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (name in ("N", "K", "line") and name not in constants)
    }
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places, attrs=aligned)
    return len(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"])


for name, (bits, mode, zero, group, outer, scale, activations, *inner) in KINDS.items():
    common = {
        "BITS": bits,
        "MODE": mode,
        "ZERO": zero,
        "GROUP": group,
        "OUTER": outer,
        "INNER": sum(inner),
        "EVEN_N": True,
        "EVEN_K": True,
    }
    kinds = types(scale, activations, zero)
    tiles = {"ROWS": 64, "BATCH": 16, "SPLIT": 4, "STAGES": 2, "SHARE": 0, "PARTS": 1}
    chosen = {"FAST": activations != "fp32", "PAIRED": mode == 2, "SCALED": False, "BIAS": True}
    size = compiled(linear_kernel, {**common, **tiles, **chosen}, kinds, num_warps=4)
    print(f"linear, {name}: {size}")
    if name == "affine":
        several = {**common, **tiles, **chosen, "SHARE": 2}
        print(f"linear, one of several weights: {compiled(linear_kernel, several, kinds, num_warps=4)}")
        joined = {**common, **tiles, **chosen, "PARTS": 3}
        print(f"linear, three weights: {compiled(linear_kernel, joined, kinds, num_warps=4)}")
    fast = {"FAST": True, "ROWS": 32, "EARLY": True}
    size = compiled(dequantize_kernel, {**common, **fast}, kinds, num_warps=4, launch_pdl=True)
    print(f"dequantize, {name}: {size}")
