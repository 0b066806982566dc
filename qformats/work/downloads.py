"""Models at a URL: their files are fetched into a folder on this machine, whole, and kept for the next time."""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError, ModelNotFoundError
from qformats.work.shown import size
from qformats.work.signals import interruptible
from qformats.work.urls import connect, scratch, told_of
from qformats.work.writing import write_text

__all__ = ["Download"]

_PART = re.compile(r"-\d{5}-of-(\d{5}\.\w+)$")
"""How the name of a part of a split model ends."""
_KNOWN = ".qformats-fetched.json"
"""What the store said of the files that are here."""


class Download:
    """The files of a model in a store, and their place on this machine.

    Parameters
    ----------
    url : str
        Of a folder, or of a file; of a split model any part.
    wanted : callable
        Whether a file of a folder belongs to a model, by its name.

    Raises
    ------
    ModelNotFoundError
        If there is nothing at this URL.
    OutputError, BackendUnavailableError, ConfigError
        If the store cannot be asked; see :func:`qformats.work.urls.connect`.

    Attributes
    ----------
    folder : Path
        Where they are kept.
    path : Path
        The model, once it is fetched.

    Examples
    --------
    >>> import fsspec
    >>> from qformats.work.downloads import Download
    >>> fsspec.filesystem("memory").pipe_file("/bucket/model/config.json", b"{}")
    >>> Download("memory://bucket/model", lambda name: name.endswith(".json")).nbytes
    2
    """

    def __init__(self, url: str, wanted: Callable[[str], bool]) -> None:
        self.url = url
        self._store, root = connect(url)
        with told_of(url), interruptible():
            self._files = self._found(root, wanted)
        if not self._files:
            hint = (
                "Give the URL of a model's folder or file, and check the credentials that the store asks for"
            )
            raise ModelNotFoundError(url, "there is no model at this URL", hint)
        self._known = scratch(url)
        self.folder = self._known / posixpath.basename(root)
        alone = posixpath.basename(root) in self._files
        self.path = self.folder / posixpath.basename(root) if alone else self.folder

    def _found(self, root: str, wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
        """Files by names relative to the folder; keys of a store may be anything, and lead nowhere else."""
        if self._store.isfile(root):
            place, name = posixpath.split(root)
            part = _PART.search(name)
            if part is None:
                return {name: self._store.info(root)}
            stem, end = name[: part.start()], re.escape(part[1])
            whole = re.compile(rf"{re.escape(stem)}-\d{{5}}-of-{end}")
            beside = self._store.ls(place, detail=True)
            found = {posixpath.basename(info["name"]): info for info in beside}
            return {name: info for name, info in found.items() if whole.fullmatch(name)}
        listed = self._store.find(root, detail=True)
        found = {posixpath.relpath(path, root): info for path, info in listed.items()}
        return {name: info for name, info in found.items() if "/" not in name and wanted(name)}

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return sum(int(info["size"]) for info in self._files.values())

    @property
    def missing(self) -> dict[str, int]:
        """Files that are not here as they are in the store, and their sizes."""
        known: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((self._known / _KNOWN).read_bytes())
        return {
            name: int(info["size"])
            for name, info in self._files.items()
            if known.get(name) != _version(info) or not (self.folder / name).is_file()
        }

    def fetch(self, advance: Callable[[int], object] = lambda _nbytes: None) -> Path:
        """Fetch what is missing; gives :attr:`path`.

        Parameters
        ----------
        advance : callable, optional
            Called with the bytes of each file.

        Raises
        ------
        CheckpointError
            If the disk has no room for it.
        """
        missing = self.missing
        total = sum(missing.values())
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if total > free:
                raise self._full(total, free)
            here = {name: _version(info) for name, info in self._files.items() if name not in missing}
            for name, nbytes in missing.items():
                partial = self.folder / f".{name}.partial"
                with told_of(self.url):
                    self._store.get_file(self._files[name]["name"], str(partial))
                os.replace(partial, self.folder / name)
                here[name] = _version(self._files[name])
                write_text(self._known / _KNOWN, json.dumps(here))
                advance(nbytes)
        except OSError as error:
            if isinstance(error, CheckpointError | ModelNotFoundError) or hasattr(error, "target"):
                raise
            raise CheckpointError(self.url, f"cannot be kept in {self.folder} ({error.strerror})") from error
        return self.path

    def _full(self, total: int, free: int) -> CheckpointError:
        found = f"takes {size(total)} on this machine, of which {size(free)} are free in {self.folder}"
        return CheckpointError(self.url, found, hint="QFORMATS_SCRATCH names a folder on another disk")


def _version(info: dict[str, Any]) -> list[Any]:
    when = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("created") or ""
    return [int(info["size"]), str(when)]
