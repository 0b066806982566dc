"""Checks of what a loader reads back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qformats.errors import CheckpointError
from qformats.interfaces import Checkpoint, Loader, Packer
from qformats.registry import registry
from qformats.testing.compare import same_values
from qformats.testing.failure import Mismatch, expect, raised, reported
from qformats.testing.model import HIDDEN
from qformats.testing.writing import Written, plain_format, registered, written

__all__ = [
    "check_names_are_canonical",
    "check_opens_headers_only",
    "check_truncated_files_are_refused",
    "check_written_is_read_back",
]

_ROWS = 4
"""Rows that are read by themselves."""


@reported
def check_written_is_read_back(loader: Loader, model: str | Path | None = None) -> None:
    """Plain numbers, and one quantized format, come back with their shapes and values, whole and by rows.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_written_is_read_back
    >>> check_written_is_read_back(registry().loader("huggingface"))
    """
    registered(loader)
    for packer in _formats(loader):
        with written(loader, packer, model) as done:
            after = loader.open(done.target, {})
            expect(after.container == loader.name, f"container {after.container!r}", repr(loader.name))
            expect(
                after.files and all(file.exists() for file in after.files),
                f"files {after.files}",
                "existing ones",
            )
            for name, source in done.source.tensors.items():
                if name in after.tensors:
                    _same(after, name, source.dequantize(), packer)


def _formats(loader: Loader) -> Iterator[Packer]:
    """Plain float32, and the first quantized format that the container holds, of those that hold the model's rows."""
    yield plain_format(loader)
    for packer in registry().formats():
        holds = packer.quantizes and packer.writable and packer.veto((HIDDEN, HIDDEN)) is None
        if holds and loader.accepts(packer):
            yield packer
            return


def _same(after: Checkpoint, name: str, before: object, packer: Packer) -> None:
    from torch import Tensor

    assert isinstance(before, Tensor)
    stored = after.tensors[name]
    expect(stored.shape == tuple(before.shape), f"{name!r} of shape {stored.shape}", f"{tuple(before.shape)}")
    values = stored.dequantize()
    if not packer.quantizes:
        same_values(values, before, f"values of {name!r} read back")
    step = stored.step
    if not step or stored.rows <= step:
        return
    stop = min(stored.rows, max(_ROWS // step, 1) * step + step)
    same_values(stored.read(step, stop).dequantize(), values[step:stop], f"rows {step} to {stop} of {name!r}")


@reported
def check_names_are_canonical(loader: Loader, model: str | Path | None = None) -> None:
    """Tensors are called what they were called in the model, whatever the container calls them, and none is lost.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_names_are_canonical
    >>> check_names_are_canonical(registry().loader("huggingface"))
    """
    registered(loader)
    with written(loader, plain_format(loader), model) as done:
        after = loader.open(done.target, {})
        expected, found = {*done.source.tensors}, {*after.tensors}
        more, lost = sorted(found - expected), sorted(expected - found)
        expect(not more, f"a tensor {', '.join(more[:1])!r}", "names of the model")
        expect(not lost, f"no tensor {', '.join(lost[:1])!r}", "every tensor of the model")
        for name, stored in after.tensors.items():
            expect(stored.name == name, f"a tensor {stored.name!r} under {name!r}", "one name for both")


@reported
def check_opens_headers_only(loader: Loader, model: str | Path | None = None) -> None:
    """``open`` reads no weights: those that are changed in the files afterwards are read as they are then.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_opens_headers_only
    >>> check_opens_headers_only(registry().loader("huggingface"))
    """
    registered(loader)
    with written(loader, plain_format(loader), model) as done:
        after = loader.open(done.target, {})
        _blank(done)
        for name, stored in after.tensors.items():
            if len(stored.shape) == 2:
                values = stored.dequantize()
                expect(
                    not bool(values.any()), f"the old values of {name!r}", "zeros, as the file holds them now"
                )


def _blank(done: Written) -> None:
    """Fill the places of all weights with zeros."""
    for file, path in zip(done.plan.layout.files, done.files, strict=True):
        with path.open("r+b") as handle:
            for place in file.placements:
                handle.seek(place.offset)
                handle.write(bytes(place.nbytes))


@reported
def check_truncated_files_are_refused(loader: Loader, model: str | Path | None = None) -> None:
    """A weight file that is cut off anywhere raises CheckpointError when it is opened.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_truncated_files_are_refused
    >>> check_truncated_files_are_refused(registry().loader("huggingface"))
    """
    registered(loader)
    with written(loader, plain_format(loader), model) as done:
        for file, path in zip(done.plan.layout.files, done.files, strict=True):
            if not file.placements:
                continue
            data = path.read_bytes()
            start = min(place.offset for place in file.placements)
            for length in sorted({0, 1, 7, start // 2, start, (start + file.size) // 2, file.size - 1}):
                path.write_bytes(data[:length])
                _refused(loader, done.target, f"{file.name} of {length} instead of {file.size} bytes")
            path.write_bytes(data)


def _refused(loader: Loader, path: Path, what: str) -> None:
    try:
        loader.open(path, {})
    except CheckpointError:
        return
    except Exception as error:
        raise Mismatch(f"for {what}: {raised(error)}", "CheckpointError") from error
    raise Mismatch(f"a checkpoint for {what}", "CheckpointError")
