"""An export that is run again from its record, to the same bytes."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from qformats.errors import CheckpointError, ConfigError, Described, shown, spelled
from qformats.exporting.plan import Plan
from qformats.exporting.recipe import Measured, Recipe
from qformats.exporting.recorded import Record, record_beside
from qformats.exporting.source_digest import names_of
from qformats.interfaces.checkpoint import Checkpoint
from qformats.registry import registry
from qformats.sources import DEMO, open_model
from qformats.work.checksums import file_digest
from qformats.work.pool import bounded, torch_threads
from qformats.work.progress import Progress

__all__ = ["Again", "again_from"]

_SHOWN = 3
_CACHED = re.compile(r"models--[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Again:
    """What a record says of how its model was made.

    Attributes
    ----------
    record : Record
        All of it.
    recipe : Recipe
        What was requested; files under their bare names.
    options : mapping of str to str
        Of the loaders.
    model : str
        Name of the source, without its folder.
    called : str
        Name of the model, which outputs may hold: that of the source's folder when it was read, unless it says its own.
    identity : mapping of str to str
        Bytes and checksum of each file of the source.
    inputs : mapping of str to str
        The same of other files: of options by their names, and ``imatrix 0`` and so on.
    decided_by : mapping of str to str
        What else decided the bytes of a calibrated model.
    software : mapping of str to str
        Versions.
    """

    record: Record
    recipe: Recipe
    options: Mapping[str, str]
    model: str
    called: str
    identity: Mapping[str, str]
    inputs: Mapping[str, str]
    decided_by: Mapping[str, str]
    software: Mapping[str, str]

    @classmethod
    def of(cls, record: Record) -> Self:
        """Read the recipe of a record.

        Raises
        ------
        CheckpointError
            If it has none, or one that cannot be run again.
        ConfigError, UnknownFormatError
            If a format, or a quantizer, is not installed.
        """
        told = record.content.get("recipe")
        if not isinstance(told, dict):
            found = "has no recipe: an earlier version of qformats has written it"
            raise CheckpointError(record.path, found, "the record of an export with its recipe")
        added = told.get("added")
        if added:
            listed = ", ".join(map(str, added)) if isinstance(added, list) else shown(added)
            found = f"is of a model to which something was added ({listed})"
            hint = "merge the adapter again instead"
            raise CheckpointError(record.path, found, "the record of an export", hint=hint)
        try:
            measured = told["measured"]
            recipe = Recipe(
                str(told["format"]),
                quantizer=str(told["quantizer"]),
                tensor_types=tuple((str(a), str(b)) for a, b in told["tensor_types"]),
                output_type=_optional(told["output_type"]),
                token_embedding_type=_optional(told["token_embedding_type"]),
                pure=told["pure"] is True,
                container=str(told["container"]),
                quantizer_options=tuple(_texts(told["quantizer_options"]).items()),
                imatrix=tuple(map(str, told["imatrix"])),
                measured=None
                if measured is None
                else Measured(
                    tuple((str(a), str(b), str(c)) for a, b, c in measured["formats"]), str(measured["note"])
                ),
                program=str(told["program"]),
            )
            return cls(
                record,
                recipe,
                _texts(told["options"]),
                str(told["model"]["name"]),
                str(told["model"]["called"]),
                _texts(told["model"]["files"]),
                _files(told["inputs"], len(recipe.imatrix)),
                _texts(told["decided_by"]),
                _texts(told["software"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError | LookupError) and not isinstance(error, KeyError):
                raise
            found = f"has a damaged recipe ({type(error).__name__}: {' '.join(str(error).split())[:120]})"
            raise CheckpointError(record.path, found, "one that qformats has written") from error

    def source(self, model: Checkpoint | str | None) -> Checkpoint:
        """The model, or the one that the record names if it lies where it can be found.

        Raises
        ------
        CheckpointError
            If it cannot.
        """
        if isinstance(model, Checkpoint):
            return model
        if model is not None:
            return open_model(model, self.options)
        folder = self.record.path.parent
        if self.model == DEMO:
            return open_model(DEMO, self.options)
        for place in dict.fromkeys((Path.cwd(), folder, folder.parent)):
            # A name from a record leads nowhere else.
            if Path(self.model).name == self.model and (place / self.model).exists():
                return open_model(place / self.model, self.options)
        found = f"was made from {self.model!r}, which is neither here nor beside it"
        hint = "give the model as well, wherever it is now"
        raise CheckpointError(self.record.path, found, hint=hint)

    def with_files(self, imatrix: Sequence[str], options: Mapping[str, str]) -> Again:
        """The same with other places of files; their content must be what was recorded.

        Raises
        ------
        ConfigError
            If a file is another one, or an option is not one of those that name files.
        """
        recipe = self.recipe
        if imatrix and len(imatrix) != len(recipe.imatrix):
            found = Described(f"{len(imatrix)} files")
            raise ConfigError("imatrix", found, f"{len(recipe.imatrix)}, as in the recipe")
        if imatrix:
            recipe = replace(recipe, imatrix=tuple(imatrix))
        named = {name for name in self.inputs if not name.startswith("imatrix ")}
        aside = {each.name for each in registry().quantizer(recipe.quantizer).options if not each.decides}
        for name, value in options.items():
            if name not in named | aside:
                expected = "no option beside a recipe, which has them all" + (
                    f", but the place of a file: {', '.join(sorted(named))}" if named else ""
                )
                raise ConfigError("quantizer-option", f"{name}={value}", expected)
        if options:
            both = {**dict(recipe.quantizer_options), **options}
            recipe = replace(recipe, quantizer_options=tuple(both.items()))
        again = replace(self, recipe=recipe)
        again._require_inputs()
        return again

    def _require_inputs(self) -> None:
        """Refuse files that are not those of the recipe."""
        given = dict(self.recipe.quantizer_options)
        for name, wanted in self.inputs.items():
            key, _, number = name.partition(" ")
            value = self.recipe.imatrix[int(number)] if number else given.get(name, "")
            file = Path(value).expanduser()
            how = spelled(f"--{key} FILE", f"{key}=...")
            if not file.is_file():
                hint = f"Give its place: {how}"
                raise ConfigError(key, value, "the file that the recipe names", hint)
            if f"{file.stat().st_size} {file_digest(file)}" != wanted:
                raise ConfigError(key, value, "the file of the recipe: this one has other content")

    def renamed(self, source: Checkpoint) -> Checkpoint:
        """The source under its name of then: folders are moved and renamed, and outputs must not depend on it."""
        same = copy.copy(source)
        same.name = self.called
        return same

    def require_source(self, source: Checkpoint, workers: int, progress: Progress) -> None:
        """Refuse a source whose files are not those of the recipe; all of them are read.

        Raises
        ------
        CheckpointError
            Naming the first that differs.
        """
        wrong = self.other_source(source, workers, progress)
        if wrong:
            file, found = wrong[0]
            more = f", and {len(wrong) - 1} other files" if wrong[1:] else ""
            expected = f"the source that {self.record.path.name} has recorded ({self.model})"
            raise CheckpointError(file, found + more, expected)

    def other_source(self, source: Checkpoint, workers: int, progress: Progress) -> list[tuple[Path, str]]:
        """Files of a source that are not those of the recipe, and what they are instead."""
        named = names_of(source)
        if len(named) == len(self.identity) == 1:
            # A file may have been renamed.
            named = dict(zip(self.identity, named.values(), strict=True))
        wrong = [(source.path, f"has no file {name}") for name in self.identity if name not in named]
        wrong += [(file, "was not there") for name, file in named.items() if name not in self.identity]
        known = {name: file for name, file in named.items() if name in self.identity}
        sizes = {name: file.stat().st_size for name, file in known.items()}
        other = [name for name in known if not self.identity[name].startswith(f"{sizes[name]} ")]
        wrong += [(known[name], f"has {sizes[name]:,} bytes, other than before") for name in other]
        if wrong:
            return wrong
        progress.start("comparing the source with the recipe", sum(sizes.values()))
        with bounded(
            lambda name: file_digest(known[name]), list(known), workers, weight=lambda name: 1, limit=workers
        ) as found:
            for name, digest in found:
                progress.advance(sizes[name])
                if self.identity[name] != f"{sizes[name]} {digest}":
                    wrong.append((known[name], "has other content"))
        return sorted(wrong)

    @contextlib.contextmanager
    def conditions(self) -> Iterator[None]:
        """Compute with as many threads as then, on which the last bits of a calibration's products depend."""
        threads = self.decided_by.get("threads", "")
        # Digits without end are no number to Python.
        if not threads.isdecimal() or len(threads) > 5 or not 0 < int(threads) < 1 << 16:
            yield
            return
        with torch_threads(int(threads)):
            yield

    def compared(self, plan: Plan, made: Record) -> str:
        """What came of it, as a sentence without the full stop; empty if the bytes are the same."""
        before, now = self._by_file(self.record), self._by_file(made)
        if not self.record.pieces:
            return "the record has no checksums: nothing tells whether the bytes are the same"
        if before == now:
            return ""
        tensors = _tensors(self.record, made)
        files = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        named = ", ".join(filter(None, files[:_SHOWN])) or "its file"
        what = f"{len(tensors)} tensors" if tensors else f"what {named} holds besides tensors"
        versions = self._differences(plan, made)
        why = f": {', '.join(versions)}" if versions else ", with the same versions"
        return f"the output is not that of the record: {what} came out otherwise{why}"

    def _by_file(self, record: Record) -> dict[str, Any]:
        alone = len(record.sizes) == 1
        return {"" if alone else name: pieces for name, pieces in record.pieces.items()}

    def _differences(self, plan: Plan, made: Record) -> list[str]:
        now = {**plan.software, **_texts(made.content["recipe"]["decided_by"])}
        before = {**self.software, **self.decided_by}
        return [
            f"{name} {now.get(name, 'not installed')} instead of {value}"
            for name, value in before.items()
            if now.get(name) != value
        ]


def again_from(path: Path) -> Again:
    """The recipe of a record, or of the model that it lies beside.

    Raises
    ------
    CheckpointError
        If there is none.
    """
    path = path.expanduser()
    if not path.name.endswith(".json"):
        found = record_beside(path) if path.exists() else None
        if found is None:
            raise CheckpointError(path, "has no record beside it", "a qformats.json, or what it belongs to")
        path = found
    return Again.of(Record.read(path))


def _tensors(before: Record, now: Record) -> set[str]:
    """Tensors with other checksums."""

    def by_name(record: Record) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for pieces in record.pieces.values():
            for piece in pieces:
                if piece.tensor >= 0:
                    found.setdefault(record.tensor_name(piece.tensor), []).append(piece.digest)
        return found

    old, new = by_name(before), by_name(now)
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}


def _optional(value: object) -> str | None:
    return None if value is None else str(value)


def _files(told: Any, matrices: int) -> dict[str, str]:
    """What is known of a recipe's files, by option; importance matrices are numbered."""
    found = _texts(told)
    for name in found:
        key, numbered, number = name.partition(" ")
        if numbered and (key, number) not in {("imatrix", str(each)) for each in range(matrices)}:
            raise ValueError(f"no file of the recipe: {name[:80]!r}")
    return found


def _texts(value: Mapping[str, object]) -> dict[str, str]:
    return {str(name): str(text) for name, text in value.items()}
