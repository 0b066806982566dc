"""Outputs of a publisher's run that are in place before the run is over.

An export is all or nothing, and so is each output of a run; but the run goes on after the outputs are in place, and may
be killed. The next run then must tell them from files that were there before.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qformats.errors import OutputError
from qformats.exporting.journal import unwritable
from qformats.publishing.files import inside
from qformats.work.made import MadeFolders
from qformats.work.ownership import is_ours, open_private, own_folder, token

__all__ = ["Finished"]

FOLDER = ".qformats-publishing"
_LOG = "finished.jsonl"


class Finished:
    """What a run puts in place, written down before it is there; and the lock of the folder.

    Parameters
    ----------
    folder : Path
        Where the outputs lie; it is made if there is none.

    Raises
    ------
    OutputError
        If it cannot be written, or another run is at work there.
    """

    def __init__(self, folder: Path) -> None:
        self.target, self.folder = folder, folder / FOLDER
        self._made = MadeFolders()
        self._log = -1
        self._known: dict[str, tuple[str, dict[str, Any]]] = {}
        try:
            self._made.make(folder)
            own_folder(self.folder, folder)
            self._log = open_private(self.folder / _LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                found = "is being written by another process"
                raise OutputError(folder, found, "Wait for it, or stop it") from error
            for line in (self.folder / _LOG).read_text(encoding="utf-8", errors="replace").splitlines():
                self._read(line)
        except BaseException as error:
            self._unlock()
            self._made.remove()
            if isinstance(error, OSError) and not isinstance(error, OutputError):
                raise unwritable(folder, error) from error
            raise

    @property
    def made(self) -> bool:
        """Whether there was no such folder."""
        return bool(self._made)

    def _read(self, line: str) -> None:
        """Take up a line if this user has written it."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            entry = json.loads(line)
            name, identity, states = entry["name"], entry["identity"], entry["files"]
            if is_ours(self.folder, _content(name, identity, states), entry["token"]):
                self._known[name] = identity, dict(states)

    def holds(self, path: Path, identity: str) -> bool:
        """Whether an output is in place, as this user's earlier run has written it and unchanged since."""
        known, states = self._known.get(path.name, ("", {}))
        return known == identity and bool(states) and states == _states(self.target, states)

    def expect(self, path: Path, identity: str, moves: Sequence[tuple[Path, Path]]) -> None:
        """Write down what will be put in place next.

        Parameters
        ----------
        path : Path
            The output.
        identity : str
            What decides its bytes.
        moves : sequence of (Path, Path)
            From where to where, files or folders.
        """
        states: dict[str, Any] = {}
        for source, final in moves:
            for file in inside([source]):
                name = final.name if file == source else f"{final.name}/{file.relative_to(source).as_posix()}"
                states[name] = _state(file)
        self._add(path.name, identity, states)

    def expect_content(self, path: Path, content: bytes) -> None:
        """Write down a small file that will be put in place next."""
        self._add(path.name, "", {path.name: hashlib.sha256(content).hexdigest()})

    def _add(self, name: str, identity: str, states: dict[str, Any]) -> None:
        mark = token(self.folder, _content(name, identity, states))
        line = {"name": name, "identity": identity, "files": states, "token": mark}
        data = json.dumps(line).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._log, data) :]
            os.fsync(self._log)
        except OSError as error:
            raise unwritable(self.target, error) from error
        self._known[name] = identity, states

    def close(self, *, done: bool) -> None:
        """Let go of the folder: when the run is over, or nothing of it is in place, nothing is left to know."""
        if done or not any(self.holds(self.target / name, known) for name, (known, _) in self._known.items()):
            shutil.rmtree(self.folder, ignore_errors=True)
            self._made.remove()
        self._unlock()

    def _unlock(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1


def _content(name: object, identity: object, states: object) -> str:
    return json.dumps([name, identity, states], sort_keys=True)


def _state(file: Path) -> list[int]:
    """What a rename does not change."""
    state = file.stat()
    return [state.st_size, state.st_mtime_ns]


def _states(folder: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The present states of files."""
    found: dict[str, Any] = {}
    for name, state in wanted.items():
        with contextlib.suppress(OSError):
            file = folder / name
            found[name] = (
                hashlib.sha256(file.read_bytes()).hexdigest() if isinstance(state, str) else _state(file)
            )
    return found
