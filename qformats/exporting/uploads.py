"""Exports to a URL: written and checked on this machine, then uploaded, the file that readers open first at the end."""

from __future__ import annotations

import contextlib
import json
import posixpath
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from os import PathLike
from pathlib import Path
from typing import Any

from qformats.errors import OutputError, spelled
from qformats.exporting.journal import Journal
from qformats.exporting.plan import Plan
from qformats.exporting.recorded import RECORD
from qformats.exporting.seal import foreign_names, record_name
from qformats.work.progress import Progress
from qformats.work.signals import interruptible
from qformats.work.urls import connect, scratch, told_of, url_of

__all__ = ["Upload", "UploadFailed", "destined"]

_AT_ONCE = 4
"""Files that are uploaded at the same time; clients of stores send several parts of each."""
_PATIENCE = 0.1
"""Seconds between two checks for signals."""
_NOTE = ".qformats-uploaded"
"""File among the partial ones that says what is in the store already."""
_FIRST = "config.json"
"""What readers of folders open first: without it, there is no model."""


class UploadFailed(OutputError):
    """A store that did not take a file; what is written here is kept, to go on from there."""


class _Stopped(Exception):
    """The user has interrupted the upload."""


def destined(target: str | PathLike[str], *, force: bool = False) -> tuple[Path, Upload | None]:
    """Where an export is written: the target itself, or for a URL a place on this machine, and its upload.

    Raises
    ------
    ConfigError, BackendUnavailableError, OutputError
        If the URL cannot be used; see :func:`qformats.work.urls.connect`.

    Examples
    --------
    >>> from qformats.exporting.uploads import destined
    >>> destined("out/model")
    (PosixPath('out/model'), None)
    """
    url = url_of(target)
    if url is None:
        return Path(target).expanduser(), None
    upload = Upload(url, force)
    return upload.target, upload


class Upload:
    """The way of one export into a store.

    Parameters
    ----------
    url : str
        File or folder to write.
    force : bool
        Replace what exists.

    Attributes
    ----------
    target : Path
        Where the export is written on this machine.
    """

    def __init__(self, url: str, force: bool) -> None:
        self.url, self._force = url, force
        self._store, self._root = connect(url)
        self._folder = scratch(url)
        name = posixpath.basename(self._root)
        if not name or posixpath.dirname(self._root) in ("", "/"):
            raise OutputError(url, "is a whole bucket", "Give the name of a file or folder inside of it")
        self.target = self._folder / name

    def check(self, plan: Plan, *, began: bool = False) -> None:
        """Refuse a place that must not be replaced, or where nothing can be written.

        Raises
        ------
        OutputError
            If something is there and `force` was not given, or is no model; if access is denied.
        """
        # A client that is interrupted while it waits for its own thread never answers again.
        with told_of(self.url), interruptible():
            there = self._there(plan)
            names = self._names(plan)
            if (
                there
                and not self._force
                and not (began and set(there) <= set(names) and names[-1] not in there)
            ):
                found = "exists already" if names[-1] in there else "holds files but no model"
                how = spelled("--force", "force=True")
                raise OutputError(self.url, found, f"Choose another name, or replace it with {how}")
            foreign = foreign_names(there, self._recorded(plan, there)) if plan.layout.folder else []
            if foreign:
                found = f"also holds files that are not part of a model: {', '.join(foreign[:3])}"
                raise OutputError(self.url, found, "Choose another name, or remove them")
            # Whether it can be written shows now, and not after the work.
            probe = self._path(f".{self.target.name}.qformats-probe", plan)
            self._store.pipe_file(probe, b"qformats")
            self._store.rm_file(probe)

    def put(self, plan: Plan, journal: Journal, progress: Progress) -> None:
        """Upload all files, then the one that readers open first; afterwards nothing is left on this machine.

        Raises
        ------
        UploadFailed
            If the store does not take a file.
        """
        names = self._names(plan)
        note = _Note(journal.files / _NOTE)
        self.check(plan, began=note.began)
        note.write()
        try:
            with told_of(self.url):
                with interruptible():
                    self._forget_parts(names)
                    there = self._there(plan)
                    # As long as old and new parts are mixed there is no model.
                    stale = [name for name in there if name not in names or name == names[-1]]
                    for name in sorted(stale, key=lambda name: name != names[-1]):
                        self._store.rm_file(self._path(name, plan))
                missing = [name for name in names[:-1] if not note.holds(name, there.get(name))]
                progress.start(
                    f"uploading to {self.url}", sum((journal.files / n).stat().st_size for n in names)
                )
                for name in set(names[:-1]) - set(missing):
                    progress.advance((journal.files / name).stat().st_size)
                self._send(plan, journal, missing, progress, note)
                self._send(plan, journal, names[-1:], progress, note)
        except (KeyboardInterrupt, _Stopped):
            raise
        except OutputError as error:
            raise UploadFailed(self.url, str(error).partition(": ")[2].rstrip(".")) from error

    def undo(self, plan: Plan, journal: Journal) -> None:
        """Remove what was uploaded of an export that ends without a model; stores that do not answer keep it."""
        if not _Note(journal.files / _NOTE).began:
            return
        with contextlib.suppress(Exception):
            names, there = self._names(plan), self._there(plan)
            # With the file that readers open first it is a whole model: the old one as yet, or the new one already.
            for name in there if names[-1] not in there else ():
                if name in names:
                    self._store.rm_file(self._path(name, plan))

    def close(self) -> None:
        """Remove the place on this machine if nothing is in it."""
        for folder in (self._folder, self._folder.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _names(self, plan: Plan) -> list[str]:
        """Files of the output, in the order in which they appear in the store."""
        names = [record_name(plan), *(file.name for file in reversed(plan.layout.files))]
        if plan.layout.folder and _FIRST in names:
            names.remove(_FIRST)
            names.append(_FIRST)
        return names

    def _path(self, name: str, plan: Plan) -> str:
        base = self._root if plan.layout.folder else posixpath.dirname(self._root)
        return posixpath.join(base, name)

    def _there(self, plan: Plan) -> dict[str, tuple[int, str]]:
        """Files of the target that are in the store: size and what tells versions apart."""
        self._store.invalidate_cache()
        if plan.layout.folder:
            found = self._store.find(self._root, detail=True)
            inside = {posixpath.relpath(path, self._root): info for path, info in found.items()}
            # A file of the folder's name.
            return {name: _state(info) for name, info in inside.items()}
        found = {}
        for name in self._names(plan):
            with contextlib.suppress(FileNotFoundError):
                found[name] = _state(self._store.info(self._path(name, plan)))
        return found

    def _recorded(self, plan: Plan, there: dict[str, tuple[int, str]]) -> set[str]:
        """Files that the record in the store lists."""
        if RECORD not in there:
            return set()
        try:
            files = json.loads(self._store.cat_file(self._path(RECORD, plan)))["files"]
            return {RECORD, *(str(name) for name, _ in files)}
        except (ValueError, KeyError, TypeError, RecursionError):
            return set()

    def _forget_parts(self, names: Sequence[str]) -> None:
        """Drop uploads of these files that were killed: S3 keeps their parts, unseen and paid for."""
        if not hasattr(self._store, "list_multipart_uploads"):
            return
        bucket, _, root = self._root.partition("/")
        for each in self._store.list_multipart_uploads(bucket):
            key = each["Key"]
            if key.startswith(root) and posixpath.basename(key) in {posixpath.basename(n) for n in names}:
                self._store.call_s3(
                    "abort_multipart_upload", Bucket=bucket, Key=key, UploadId=each["UploadId"]
                )

    def _send(
        self, plan: Plan, journal: Journal, names: Sequence[str], progress: Progress, note: _Note
    ) -> None:
        """Upload files, several at a time, and take note of each."""
        sent = _Sent()

        def send(name: str) -> str:
            path = self._path(name, plan)
            with told_of(self.url):
                self._store.put_file(str(journal.files / name), path, callback=sent.callback())
            return name

        with interruptible() as deliver, ThreadPoolExecutor(_AT_ONCE, "qformats-upload") as pool:
            waiting = {pool.submit(send, name) for name in names}
            try:
                while waiting:
                    deliver()
                    done, waiting = wait(waiting, _PATIENCE, FIRST_COMPLETED)
                    progress.advance(sent.taken())
                    for future in done:
                        name = future.result()
                        note.done[name] = _state(self._store.info(self._path(name, plan)))
                        note.write()
            except BaseException:
                sent.stop = True
                pool.shutdown(cancel_futures=True)
                raise


class _Sent:
    """Bytes that threads have sent since the last look; stops them if asked to."""

    def __init__(self) -> None:
        self.stop = False
        self._bytes = 0
        self._lock = threading.Lock()

    def callback(self) -> Any:
        from fsspec.callbacks import Callback

        class Counting(Callback):  # type: ignore[misc]
            """Counts, for all files together."""

            def relative_update(callback, inc: int = 1) -> None:
                self.add(inc)

        return Counting()

    def add(self, nbytes: int) -> None:
        if self.stop:
            raise _Stopped
        with self._lock:
            self._bytes += nbytes

    def taken(self) -> int:
        with self._lock:
            found, self._bytes = self._bytes, 0
        return found


class _Note:
    """What is uploaded, kept among the partial files so that it goes with them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.done: dict[str, tuple[int, str]] = {}
        self.began = path.is_file()
        with contextlib.suppress(
            OSError, ValueError, OverflowError, RecursionError, TypeError, AttributeError
        ):
            self.done = {name: (int(a), str(b)) for name, (a, b) in json.loads(path.read_bytes()).items()}

    def holds(self, name: str, there: tuple[int, str] | None) -> bool:
        """Whether the store has the file as it was uploaded."""
        return there is not None and self.done.get(name) == there

    def write(self) -> None:
        """Keep it."""
        beside = self._path.with_name(f"{_NOTE}.new")
        beside.write_text(json.dumps(self.done))
        beside.replace(self._path)
        self.began = True


def _state(info: dict[str, Any]) -> tuple[int, str]:
    version = info.get("ETag") or info.get("etag") or info.get("blob_id") or info.get("created") or ""
    return int(info["size"] or 0), str(version)
