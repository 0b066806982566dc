"""Reading what ``torch.save`` wrote, from its directory alone: no weight is read, and no code of the file runs."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from qformats.errors import CheckpointError, ConfigError, shown
from qformats.folder import plain_records, unpickling_error
from qformats.numbers import SIZES, dtype_name, torch_dtype
from qformats.work.files import is_text, map_file, refuse_pointer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Entry", "RankFile"]

_AGAIN = "the download or copy was interrupted: fetch the file again"
_CONTENT = "a dict with the tensors under 'module', saved by torch.save"
_ZIP = b"PK\x03\x04"
_guard = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file.

    Attributes
    ----------
    shape, stride : tuple of int
        In elements.
    dtype : str
        Short name.
    offset : int
        First byte.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * SIZES[self.dtype]


class RankFile:
    """The tensors of one ``mp_rank_XX_model_states.pt``; other training state in it is passed over.

    Raises
    ------
    CheckpointError
        If the file is cut off, or holds what tensors do not need.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        records = self._directory()
        self.entries: Mapping[str, Entry] = {
            name: self._entry(name, tensor, records) for name, tensor in self._module().items()
        }
        self._mapped: Tensor | None = None

    def _directory(self) -> dict[int, int]:
        """First byte and size of every record.

        The pickle names records only; where torch looks for one, there must be a whole record.
        """
        try:
            refuse_pointer(self.path)
            with self.path.open("rb") as file:
                magic = file.read(len(_ZIP))
                if magic != _ZIP:
                    self._refuse(magic)
                records = plain_records(self.path, file)
                for name, (start, _) in records.items():
                    if name.endswith("/byteorder"):
                        file.seek(start)
                        if file.read(6) != b"little":
                            raise CheckpointError(self.path, "is big-endian", "little-endian numbers")
        except FileNotFoundError as error:
            raise CheckpointError(self.path, "is missing", hint=_AGAIN) from error
        return dict(records.values())

    def _refuse(self, magic: bytes) -> NoReturn:
        """Say what a file is, if not an archive."""
        if not magic:
            raise CheckpointError(self.path, "is empty", hint=_AGAIN)
        hint = "files of torch before 1.6: load and save them once with a newer torch"
        raise CheckpointError(self.path, f"begins with {magic!r}", "a zip file of torch.save", hint=hint)

    def _module(self) -> dict[str, Tensor]:
        """The tensors, without their values."""
        import torch

        try:
            with _numpy_states():
                # On "meta" torch only notes where values lie. Its own mapping of files would be refused by the kernel
                # for files larger than the machine's memory.
                state = torch.load(self.path, map_location="meta", weights_only=True)
        except Exception as error:
            # torch raises a different type for each way a pickle can be wrong.
            instead = "or, if you do, save only its 'module'"
            raise unpickling_error(self.path, error, _CONTENT, instead) from error
        if not isinstance(state, dict) or not isinstance(state.get("module"), dict):
            if isinstance(state, dict):
                names = ", ".join(sorted(map(repr, itertools.islice(state, 4))))
                found = f"a dict of {names}" if names else "an empty dict"
            else:
                found = f"a {type(state).__name__}"
            raise CheckpointError(self.path, f"holds {found}", _CONTENT)
        module: dict[str, Tensor] = state["module"]
        if not module:
            raise CheckpointError(self.path, "holds no tensors", _CONTENT)
        return module

    def _entry(self, name: Any, tensor: Any, records: Mapping[int, int]) -> Entry:
        import torch

        if not is_text(name):
            raise CheckpointError(self.path, f"a tensor called {shown(name)}", "names that are text")
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(self.path, f"is of type {type(tensor).__name__}", "a tensor", tensor=name)
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise CheckpointError(self.path, f"layout {tensor.layout}", "a dense tensor", tensor=name)
        try:
            dtype = dtype_name(tensor.dtype)
        except ConfigError as error:
            raise CheckpointError(self.path, f"dtype {tensor.dtype}", error.allowed, tensor=name) from error
        record = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if record is None:
            hint = "the tensor was saved without values, or this torch is too old to locate them: update it"
            raise CheckpointError(self.path, "no values", "a tensor", tensor=name, hint=hint)
        size = SIZES[dtype]
        shape, stride = tuple(tensor.shape), tuple(tensor.stride())
        first = tensor.storage_offset() * size
        extent = 1 + sum((dim - 1) * step for dim, step in zip(shape, stride, strict=True))
        if 0 in shape:
            extent = 0
        needs = max(first + extent * size, math.prod(shape) * size)
        if record not in records:
            # torch computes the place in files that say they are its own (.format_version).
            hint = "another program has repacked this file: load and save it with torch"
            raise CheckpointError(self.path, "is not where torch puts it", tensor=name, hint=hint)
        if needs > records[record]:
            found = f"needs {needs} bytes of a record of {records[record]}"
            raise CheckpointError(self.path, found, tensor=name, hint=_AGAIN)
        return Entry(shape, stride, dtype, record + first)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows ``[start, stop)`` of a tensor (the whole of a scalar), a view of the mapped file where possible."""
        import torch

        entry = self.entries[name]
        if self._mapped is None:
            self._mapped = map_file(self.path)
        dtype, size = torch_dtype(entry.dtype), SIZES[entry.dtype]
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        first = entry.offset + (start * entry.stride[0] * size if shape else 0)
        extent = 1 + sum((dim - 1) * step for dim, step in zip(shape, entry.stride, strict=True))
        part = self._mapped[first : first + extent * size]
        if part.data_ptr() % size:
            # Other writers than torch's need not align records.
            part = part.clone()
        return part.view(dtype).as_strided(shape, entry.stride)


@contextmanager
def _numpy_states() -> Iterator[None]:
    """Let NumPy's arrays be rebuilt: training writes the state of NumPy's random generator beside the weights."""
    import numpy as np
    import torch

    rebuild = np.zeros(0).__reduce__()[0]
    wanted: list[Any] = [np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    wanted += [(rebuild, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    with _guard:
        # What other code has allowed stays allowed afterwards.
        present = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([each for each in wanted if each not in present]):
            yield
