"""Launches past Triton's launcher: the driver's own call, whose arguments stay where they are.

Triton's launcher looks at every argument of every launch, which takes longer than a small kernel runs. Between two
launches of a prepared product only a few addresses change.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["DirectLaunch", "direct"]

_POINTER = 8
_ALL = (1 << 64) - 1
_NO_CONTEXT = 201
"""What the driver answers in a thread that has not called CUDA before."""
_HIDDEN = 2
"""Pointers that Triton adds behind the arguments, to scratch memory that the kernels here do not use."""


@functools.cache
def _driver() -> Any:
    """The CUDA driver, called without giving other threads a turn: the arguments are shared."""
    try:
        return ctypes.PyDLL("libcuda.so.1")
    except OSError:
        return None


class DirectLaunch:
    """A kernel with its arguments, of which some addresses are set at each launch.

    Parameters
    ----------
    function : int
        The driver's handle.
    arguments : mapping
        By name: tensors, whose addresses are passed, and whole numbers; without constants.
    grid : sequence of int
        Programs.
    changing : sequence of str
        Names of the pointers that are set; some may be missing among the arguments.
    threads, memory : int
        Of a program: how many threads, and bytes of shared memory.
    """

    def __init__(
        self,
        function: int,
        arguments: Mapping[str, Any],
        grid: Sequence[int],
        changing: Sequence[str],
        threads: int,
        memory: int,
    ) -> None:
        names = list(arguments)
        count = len(names) + _HIDDEN
        self._changing = [
            (place, names.index(name)) for place, name in enumerate(changing) if name in arguments
        ]
        # Kept, since the addresses of tensors are.
        self._held = [value for name, value in arguments.items() if name not in changing]
        self._values = (ctypes.c_uint64 * count)()
        base = ctypes.addressof(self._values)
        self._pointers = (ctypes.c_void_p * count)(*(base + _POINTER * place for place in range(count)))
        for place, value in enumerate(arguments.values()):
            self._values[place] = value.data_ptr() if isinstance(value, Tensor) else value & _ALL
        sizes = (ctypes.c_uint(each) for each in (*grid, threads, 1, 1, memory))
        self._start = (ctypes.c_void_p(function), *sizes)
        self._call = _driver().cuLaunchKernel
        self._context = ctypes.c_void_p()
        _driver().cuCtxGetCurrent(ctypes.byref(self._context))
        self._lock = threading.Lock()

    def __call__(self, stream: int, addresses: Sequence[int]) -> None:
        """Launch on a stream, with these addresses of what changes, in the order of its names."""
        values = self._values
        with self._lock:
            for given, place in self._changing:
                values[place] = addresses[given]
            code = self._call(*self._start, ctypes.c_void_p(stream), self._pointers, None)
            if code == _NO_CONTEXT and not _driver().cuCtxSetCurrent(self._context):
                code = self._call(*self._start, ctypes.c_void_p(stream), self._pointers, None)
        if code:
            raise RuntimeError(f"the CUDA driver did not launch a kernel: error {code}")


def direct(
    compiled: Any, arguments: Mapping[str, Any], grid: Sequence[int], changing: Sequence[str]
) -> DirectLaunch | None:
    """A launch past Triton's launcher; None where it may be needed.

    Parameters
    ----------
    compiled : object
        A kernel as Triton has compiled it.
    arguments : mapping
        All arguments by name, constants included.
    grid : sequence of int
        Programs.
    changing : sequence of str
        Names of the pointers that are set at each launch.
    """
    import triton

    meta = compiled.metadata
    hooks = triton.knobs.runtime
    plain = (
        torch.version.hip is None
        and _driver() is not None
        and getattr(meta, "global_scratch_size", 1) == getattr(meta, "profile_scratch_size", 1) == 0
        and not getattr(meta, "launch_cooperative_grid", True)
        and not getattr(meta, "launch_pdl", True)
        and getattr(meta, "num_ctas", 0) == 1
        and not getattr(meta, "tensordesc_meta", None)
        and not _listens(hooks.launch_enter_hook)
        and not _listens(hooks.launch_exit_hook)
    )
    if not plain:
        return None
    signature = compiled.src.signature
    given = {name: value for name, value in arguments.items() if signature.get(name) != "constexpr"}
    sizes = [_size(signature.get(name)) for name in given]
    if None in sizes or _sizes(compiled.function) != [*sizes, *[_POINTER] * _HIDDEN]:
        return None
    return DirectLaunch(compiled.function, given, grid, changing, 32 * meta.num_warps, meta.shared)


def _listens(hook: Any) -> bool:
    """Whether a profiler has asked to be told of launches."""
    calls = getattr(hook, "calls", None)
    return hook is not None if calls is None else bool(calls)


def _size(kind: Any) -> int | None:
    """Bytes of an argument."""
    if not isinstance(kind, str):
        return None
    return _POINTER if kind.startswith("*") else {"i32": 4, "i64": 8}.get(kind)


def _sizes(function: int) -> list[int] | None:
    """Bytes of each argument as the driver knows them; None if it does not tell."""
    ask = getattr(_driver(), "cuFuncGetParamInfo", None)
    if ask is None:
        return None
    found: list[int] = []
    offset, size = ctypes.c_size_t(), ctypes.c_size_t()
    while True:
        place = ctypes.c_size_t(len(found))
        if ask(ctypes.c_void_p(function), place, ctypes.byref(offset), ctypes.byref(size)):
            return found
        found.append(size.value)
