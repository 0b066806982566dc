"""Sums of squares of inputs as llama-imatrix collects them, from the graph that llama.cpp computes.

Its rule (llama.cpp:tools/imatrix/imatrix.cpp): of every product with a weight in a block, over 16 tokens or more, the
squares of the other factor are summed by column.
"""

from __future__ import annotations

import ctypes as c
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracles import _llama_abi as abi
from oracles.llama_cpp import LlamaCpp

__all__ = ["input_squares"]


def input_squares(
    path: str | PathLike[str], chunks: Iterable[Sequence[int]], n_ctx: int = 512
) -> dict[str, tuple[NDArray[np.float64], int]]:
    """Sums by column, float64 ``[columns]``, and tokens, by name of the weight."""
    sums: dict[str, tuple[Any, int]] = {}

    def watch(address: int, ask: bool, _: int | None) -> bool:
        tensor = abi.Tensor.from_address(address)
        if _op(model, tensor) != "MUL_MAT":
            return False
        weight = abi.Tensor.from_address(tensor.src[0])
        inputs = abi.Tensor.from_address(tensor.src[1])
        name = weight.name.decode()
        wanted = name.startswith("blk.") and inputs.ne[1] >= 16 and inputs.type == abi.GGML_F32
        if ask or not wanted:
            return wanted
        columns, rows = inputs.ne[0], inputs.ne[1]
        assert (inputs.nb[0], inputs.nb[1], inputs.ne[2], inputs.ne[3]) == (4, 4 * columns, 1, 1), name
        values = np.ctypeslib.as_array((c.c_float * (rows * columns)).from_address(inputs.data))
        squares = np.square(values.reshape(rows, columns).astype(np.float64)).sum(0)
        before, count = sums.get(name, (0.0, 0))
        sums[name] = before + squares, count + rows
        return True

    with LlamaCpp(path, n_ctx=n_ctx, watch=watch) as model:
        for chunk in chunks:
            model.logits(chunk)
    return sums


def _op(model: LlamaCpp, tensor: abi.Tensor) -> str:
    return str(model._lib.ggml_op_name(tensor.op).decode())
