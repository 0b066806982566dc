"""Compiled forms on disk: each is found again as itself, also where processes compile at the same time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from numba import types

from qformats.kernels.kernel_cache import _CacheFile

MODULE = """
import json, sys, time
import numba.core.caching as caching
import numpy as np
from qformats.kernels.cpu import jit

@jit()
def half(values):
    return values[0] / 2

# A busy disk: the processes write the index in one order, and the code in the other.
together, place = sys.argv[2:]
delays = {"_save_index": 2 + int(place) / 2, "_save_data": 1.5 - int(place)} if together == "True" else {}
for step, delay in delays.items():
    def slow(self, *args, real=getattr(caching.IndexDataCacheFile, step), delay=delay):
        time.sleep(delay)
        real(self, *args)
    setattr(caching.IndexDataCacheFile, step, slow)

if __name__ == "__main__":
    import kernels
    print(json.dumps(float(kernels.half(np.array([3], sys.argv[1])))))
"""
DTYPES = ("int64", "float32")


def answers(folder, dtypes):
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "kernels.py", dtype, str(len(dtypes) > 1), str(place)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for place, dtype in enumerate(dtypes)
    ]
    return [json.loads(process.communicate()[0]) for process in started]


def test_processes_that_compile_together_find_their_own_code(tmp_path):
    (tmp_path / "kernels.py").write_text(MODULE)
    assert answers(tmp_path, DTYPES) == [1.5] * 2
    # What they left behind is read now, one after the other.
    assert [answers(tmp_path, [dtype]) for dtype in DTYPES] == [[1.5]] * 2


def test_a_signature_has_a_file_of_its_own(tmp_path):
    arrays = [
        types.Array(kind, dimensions, layout, readonly=readonly)
        for kind in (types.uint8, types.int8, types.float32)
        for dimensions in (1, 2)
        for layout in "CFA"
        for readonly in (False, True)
    ]
    file = _CacheFile(str(tmp_path), "kernel", (1.0, 2))
    for array in arrays:
        file.save(((array,), ("x86", "cpu", "+avx"), ("code", "closure")), repr(array))
    assert len(list(tmp_path.glob("*.nbc"))) == len(arrays)
    for array in arrays:
        assert file.load(((array,), ("x86", "cpu", "+avx"), ("code", "closure"))) == repr(array)
    other = _CacheFile(str(tmp_path), "kernel", (1.5, 2))
    assert other.load(((arrays[0],), ("x86", "cpu", "+avx"), ("code", "closure"))) is None


def test_kernels_have_such_a_cache():
    from qformats_gguf import kernels

    found = [kernel for kernel in vars(kernels).values() if hasattr(kernel, "py_func")]
    assert found
    for kernel in found:
        assert isinstance(kernel._cache._cache_file, _CacheFile)
