"""Findings as they come, from several threads, each once; warnings of loaders and formats among them."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from qformats.errors import CheckpointError, ModelNotFoundError, QFormatsError, UnsupportedModelError
from qformats.verifying.report import Finding

__all__ = ["Findings", "clause"]


class Findings:
    """What is wrong, in the order in which it is found, without repetitions."""

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}
        self._lock = threading.Lock()
        self._about = threading.local()

    def add(self, kind: str, found: str, *, file: object = "", tensor: str = "") -> None:
        """Take up a finding."""
        with self._lock:
            self._found[Finding(kind, found.rstrip("."), str(file), tensor)] = None

    @property
    def all(self) -> tuple[Finding, ...]:
        """All of them."""
        return tuple(self._found)

    @contextlib.contextmanager
    def about(self, kind: str, *, file: object = "", tensor: str = "") -> Iterator[None]:
        """What is warned of in this thread within the block is a finding about this place; so are our own errors."""
        self._about.place = kind, str(file), tensor
        try:
            yield
        except (ModelNotFoundError, UnsupportedModelError):
            # Not about the model's soundness: there is none, or nobody here can judge it.
            raise
        except QFormatsError as error:
            self.add(kind, clause(error), file=file, tensor=tensor)
        finally:
            self._about.place = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take up warnings for users, of all threads; others are shown as ever."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            show = warnings.showwarning

            def take(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
                place = getattr(self._about, "place", None)
                if place is None or category is not UserWarning:
                    show(message, category, *where, **more)
                    return
                kind, file, tensor = place
                self.add(kind, str(message), file=file, tensor=tensor)

            warnings.showwarning = take
            yield


def clause(error: QFormatsError) -> str:
    """What an error says, without the place that a finding names."""
    text = str(error)
    if isinstance(error, CheckpointError):
        text = text.removeprefix(f"{error.file}: ")
        if error.tensor:
            text = text.removeprefix(f"tensor {error.tensor!r}: ")
    return text.rstrip(".")
