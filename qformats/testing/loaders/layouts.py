"""Checks of what a loader plans: sizes and places, before anything is written."""

from __future__ import annotations

from pathlib import Path

from qformats.interfaces import Loader, OutputFile
from qformats.testing.failure import expect, reported
from qformats.testing.writing import Written, plain_format, planned, registered, written

__all__ = ["check_files_have_the_planned_sizes", "check_placements", "check_same_files_twice"]


@reported
def check_files_have_the_planned_sizes(loader: Loader, model: str | Path | None = None) -> None:
    """Files of an export have the sizes that ``lay_out`` told, and what it knew of their bytes.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_files_have_the_planned_sizes
    >>> check_files_have_the_planned_sizes(registry().loader("huggingface"))
    """
    registered(loader)
    with written(loader, plain_format(loader), model) as done:
        for planned, path in zip(done.plan.layout.files, done.files, strict=True):
            expect(path.is_file(), f"no file {planned.name}", "one, as planned")
            data = path.read_bytes()
            expect(
                len(data) == planned.size,
                f"{len(data)} bytes of {planned.name}",
                f"{planned.size}, as planned",
            )
            for offset, content in ((0, planned.header), *planned.parts) if not loader.finishes else ():
                same = data[offset : offset + len(content)] == content
                where = f"{planned.name}, {len(content)} bytes from {offset} on"
                expect(same, f"{where}: other bytes", "those of the plan")


@reported
def check_placements(loader: Loader, model: str | Path | None = None) -> None:
    """Every field of every tensor has one place, inside its file, and no two places overlap.

    `model` is planned instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_placements
    >>> check_placements(registry().loader("huggingface"))
    """
    registered(loader)
    with planned(loader, plain_format(loader), model) as done:
        for file in done.plan.layout.files:
            _inside(file)
        _complete(done)


def _inside(file: OutputFile) -> None:
    taken = [(0, len(file.header), "the header")]
    taken += [(offset, offset + len(content), "a part") for offset, content in file.parts]
    taken += [(p.offset, p.offset + p.nbytes, f"{p.field!r} of tensor {p.tensor}") for p in file.placements]
    end, before = 0, "the beginning"
    for first, last, what in sorted(taken):
        told = f"{what} at bytes {first} to {last} of {file.name}"
        expect(first >= end, told, f"a place behind {before}, which ends at {end}")
        expect(last <= file.size, told, f"a place inside the {file.size} bytes of the file")
        end, before = max(end, last), what


def _complete(done: Written) -> None:
    placed: dict[tuple[int, str], int] = {}
    for file in done.plan.layout.files:
        for place in file.placements:
            key = place.tensor, place.field
            expect(key not in placed, f"two places of field {place.field!r} of tensor {place.tensor}", "one")
            placed[key] = place.nbytes
    for index, tensor in enumerate(done.plan.tensors):
        packer, shape = tensor.packer, tensor.source.shape
        fields = packer.stored(shape)
        expect(
            {name for number, name in placed if number == index} == fields.keys(),
            f"fields {sorted(name for number, name in placed if number == index)} of {tensor.name!r}",
            ", ".join(fields),
        )
        total = sum(placed[index, name] for name in fields)
        expect(total == packer.nbytes(shape), f"{total} bytes for {tensor.name!r}", f"{packer.nbytes(shape)}")


@reported
def check_same_files_twice(loader: Loader, model: str | Path | None = None) -> None:
    """Exporting the same model again gives the same bytes.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_same_files_twice
    >>> check_same_files_twice(registry().loader("huggingface"))
    """
    registered(loader)
    contents = []
    for _ in range(2):
        with written(loader, plain_format(loader), model) as done:
            contents.append({path.name: path.read_bytes() for path in done.files})
    expect(contents[0].keys() == contents[1].keys(), f"files {sorted(contents[1])}", f"{sorted(contents[0])}")
    for name, data in contents[0].items():
        expect(contents[1][name] == data, f"other bytes in {name} the second time", "the same bytes")
