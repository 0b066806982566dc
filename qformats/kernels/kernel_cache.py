"""numba's cache on disk, made safe for processes that compile at the same time.

numba numbers the files of a function's compiled forms, and lists them in an index that it writes first. Two processes
that compile a function for different dtypes both take the next number; afterwards the index leads one dtype to the code
of the other, whose results are wrong without any error. The same happens to a process that reads between another's
index and code, if an older version left a file of that number. Here, files are named after what they hold and written
before the index: the worst that can happen is that something is compiled again.
"""

from __future__ import annotations

import hashlib
from typing import Any

from numba.core.caching import IndexDataCacheFile

__all__ = ["secure"]


class _CacheFile(IndexDataCacheFile):
    def save(self, key: Any, data: Any) -> None:
        whole = repr((key, self._source_stamp, self._version))
        name = (
            f"{self._index_name.removesuffix('.nbi')}.{hashlib.sha256(whole.encode()).hexdigest()[:16]}.nbc"
        )
        self._save_data(name, data)  # type: ignore[no-untyped-call]
        self._save_index({**self._load_index(), key: name})  # type: ignore[no-untyped-call]


def secure(kernel: Any) -> Any:
    """Make the cache of a kernel safe, and return the kernel.

    Parameters
    ----------
    kernel : Dispatcher
        Function compiled by ``numba.njit(cache=True)``; it has not run yet.

    Returns
    -------
    Dispatcher
        The same object.

    Examples
    --------
    >>> import numpy as np
    >>> from numba import njit
    >>> from qformats.kernels.kernel_cache import secure
    >>> kernel = secure(njit(lambda value: value + 1))  # without a cache: left alone
    >>> kernel(np.float32(1.0))
    2.0
    """
    file = getattr(kernel._cache, "_cache_file", None)
    if file is not None:
        file.__class__ = _CacheFile
    return kernel
