"""Weight files of a folder, opened when needed and never read whole.

safetensors and zip-based ``.bin`` files are memory-mapped. ``.bin`` files of the old format cannot be, so only the
one in use is held in memory.
"""

from __future__ import annotations

import re
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError, ConfigError, shown
from qformats.folder.archive import INTERRUPTED, ZIP, plain_records
from qformats.numbers.dtypes import FLOATS8, SAFETENSORS, dtype_name
from qformats.work.files import is_text, refuse_pointer

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["INSTEAD_OF_FEW_BITS", "BinShard", "SafetensorsShard", "Shard", "unpickling_error"]

_PICKLE_START = 1 << 20
"""Bytes of a pickle that are searched for what it calls."""
_FEW_BITS = re.compile("F[468]")
_NOT_IN_NUMPY = tuple(SAFETENSORS[name] for name in ("bf16", *FLOATS8, "f8_e8m0"))
INSTEAD_OF_FEW_BITS = "dequantize the model to bf16 with the program that made it, or use its bf16 original"
"""What to do about floats of 4, 6 or 8 bits, or scales of them, that are not understood."""
_OF_TENSORS = ("torch", "collections", "numpy", "_codecs")


class Shard(ABC):
    """One weight file."""

    path: Path

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of every tensor, in file order."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """One tensor; a view of the mapped file where possible."""

    @abstractmethod
    def content(self, name: str) -> bytes:
        """Raw bytes of one small tensor."""


class SafetensorsShard(Shard):
    """A ``.safetensors`` file."""

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        self._mapped: Any = None
        self._views: dict[str, Tensor] = {}
        try:
            # The library says "no such file" whatever prevents it from opening one.
            refuse_pointer(path)
            # Headers are read without torch, which takes a second to import.
            self._header: Any = safe_open(path, "numpy")
        except SafetensorError as error:
            raise CheckpointError(
                path, str(error), "a complete safetensors file", hint=INTERRUPTED
            ) from error
        except OSError as error:
            raise CheckpointError(path, f"cannot be read ({error.strerror or error})") from error

    def entries(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of every tensor, in file order."""
        names = {spelled: name for name, spelled in SAFETENSORS.items()}
        for tensor in self._header.offset_keys():
            part = self._header.get_slice(tensor)
            spelled = part.get_dtype()
            if spelled not in names:
                raise CheckpointError(
                    self.path,
                    f"dtype {spelled}",
                    "one of " + ", ".join(SAFETENSORS.values()),
                    tensor=tensor,
                    hint=INSTEAD_OF_FEW_BITS if _FEW_BITS.match(spelled) else None,
                )
            yield tensor, tuple(part.get_shape()), names[spelled]

    def tensor(self, name: str) -> Tensor:
        """One tensor, a view of the mapped file."""
        if self._mapped is None:
            from safetensors import safe_open

            self._mapped = safe_open(self.path, "pt")
        if name not in self._views:
            # Making a view takes the library half a millisecond, and slices of one tensor need it again and again.
            self._views[name] = self._mapped.get_tensor(name)
        return self._views[name]

    def content(self, name: str) -> bytes:
        """Raw bytes of one small tensor; of numbers that NumPy has, without torch."""
        if self._header.get_slice(name).get_dtype() in _NOT_IN_NUMPY:
            return _content(self.tensor(name))
        found: bytes = self._header.get_tensor(name).tobytes()
        return found


class BinShard(Shard):
    """A ``.bin`` file written by ``torch.save``; unpickled with ``weights_only=True``, so that no code runs."""

    _guard = threading.RLock()
    _resident: tuple[BinShard, dict[str, Any]] | None = None
    """The one file of the old format that is held in memory, of all shards in this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped: dict[str, Any] | None = None

    def _load(self) -> dict[str, Any]:
        import torch

        if self._mapped is not None:
            return self._mapped
        with self._guard:
            if BinShard._resident is not None and BinShard._resident[0] is self:
                return BinShard._resident[1]
            try:
                refuse_pointer(self.path)
                with self.path.open("rb") as file:
                    zipped = file.read(len(ZIP)) == ZIP
                    if zipped:
                        plain_records(self.path, file)
                if not zipped:
                    BinShard._resident = None
                with warnings.catch_warnings():
                    # For pickles that it does not read, torch asks for a report; the error says what they are.
                    warnings.simplefilter("ignore")
                    state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipped)
            except FileNotFoundError as error:
                raise CheckpointError(self.path, "is missing", hint=INTERRUPTED) from error
            except CheckpointError:
                raise
            except Exception as error:
                # torch raises a different type for each way a pickle can be wrong.
                expected, instead = "a dict of tensors, saved by torch.save", "use the model in safetensors"
                raise unpickling_error(self.path, error, expected, instead) from error
            if not isinstance(state, dict):
                raise CheckpointError(self.path, f"holds a {type(state).__name__}", "a dict of tensors")
            if zipped:
                self._mapped = state
            else:
                BinShard._resident = (self, state)
            return state

    def entries(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """Name, shape and dtype of every tensor, in file order."""
        import torch

        for name, tensor in self._load().items():
            if not is_text(name):
                raise CheckpointError(self.path, f"a tensor called {shown(name)}", "names that are text")
            if not isinstance(tensor, torch.Tensor):
                raise CheckpointError(
                    self.path, f"is of type {type(tensor).__name__}", "a tensor", tensor=name
                )
            try:
                dtype = dtype_name(tensor.dtype)
            except ConfigError as error:
                raise CheckpointError(
                    self.path, f"dtype {tensor.dtype}", error.allowed, tensor=name
                ) from error
            if tensor.layout != torch.strided or tensor.is_meta:
                kind = "no values" if tensor.is_meta else f"layout {tensor.layout}"
                raise CheckpointError(self.path, kind, "a dense tensor", tensor=name)
            yield name, tuple(tensor.shape), dtype

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        found: Tensor = self._load()[name]
        return found.detach()

    def content(self, name: str) -> bytes:
        """Raw bytes of one small tensor."""
        return _content(self.tensor(name))


def _content(tensor: Tensor) -> bytes:
    import torch

    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def unpickling_error(path: Path, error: Exception, expected: str, instead: str) -> CheckpointError:
    r"""Why torch did not load a file, without its own advice (to load it unsafely).

    Parameters
    ----------
    path : Path
        The file.
    error : Exception
        What ``torch.load`` raised.
    expected : str
        What the file should hold.
    instead : str
        What to do about a file that would run code.

    Examples
    --------
    >>> import os, tempfile
    >>> from pathlib import Path
    >>> from qformats.folder import unpickling_error
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model.bin")
    ...     written = path.write_bytes(b"cos\nsystem\n.")
    ...     error = unpickling_error(path, ValueError(), "a dict of tensors", "take it in safetensors")
    >>> str(error).partition("model.bin: ")[2]
    'would run os.system while being read, which tensors never need; expected a dict of tensors. Do not trust
    this file; take it in safetensors.'
    """
    reason = " ".join(str(error).split())
    reason = reason.split("from a trusted source.")[-1].split("Check the documentation")[0].strip()
    told = re.search(r"GLOBAL ([\w.]+)", reason)
    foreign = told[1] if told else _foreign_global(path)
    if foreign:
        found = f"would run {foreign} while being read, which tensors never need"
        return CheckpointError(path, found, expected, hint=f"do not trust this file; {instead}")
    found = f"cannot be read ({type(error).__name__}: {reason[:120]})" if reason else "is cut off"
    return CheckpointError(path, found, expected, hint=INTERRUPTED)


def _foreign_global(path: Path) -> str:
    """What a bare pickle would call that no file of tensors needs; empty if nothing. Nothing is executed."""
    import pickletools

    with path.open("rb") as file:
        start = file.read(_PICKLE_START)
    texts: list[str] = []
    try:
        with warnings.catch_warnings():
            # In bytes that are not a pickle, strings have escapes that Python warns about.
            warnings.simplefilter("ignore")
            for operation, argument, _ in pickletools.genops(start):
                if operation.name in ("GLOBAL", "STACK_GLOBAL"):
                    called = str(argument or " ".join(texts[-2:])).replace(" ", ".")
                    if called.partition(".")[0] not in _OF_TENSORS:
                        return called
                elif isinstance(argument, str):
                    texts.append(argument)
    except (ValueError, IndexError, OverflowError):
        # Not a pickle, or a longer one: in any case, this much of it calls nothing.
        return ""
    return ""
