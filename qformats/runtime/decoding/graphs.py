"""A captured step: one graph, or several with what no graph may hold between them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator

import torch

from qformats.work.outside import taking

__all__ = ["Graphs"]


class Graphs:
    """Operations on a GPU, captured once and replayed in their order."""

    def __init__(self) -> None:
        self._parts: list[tuple[torch.cuda.CUDAGraph, Callable[[], object] | None]] = []
        # All graphs have one pool: they are replayed in the order in which its memory was given out.
        self._pool = torch.cuda.graph_pool_handle()
        self._open: torch.cuda.CUDAGraph | None = None

    @contextlib.contextmanager
    def capturing(self, device: torch.device) -> Iterator[None]:
        """Capture what this thread launches while the block runs, of which nothing is computed.

        Parameters
        ----------
        device : torch.device
            A GPU.
        """
        torch.cuda.synchronize(device)
        # As torch does: what could be freed while a graph is captured would break it.
        gc.collect()
        torch.cuda.empty_cache()
        beside: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(beside):
            self._begin()
            try:
                with taking(self._interrupt):
                    yield
            except BaseException:
                assert self._open is not None
                # What was captured so far is worthless, and the error that made it so is the one to see.
                with contextlib.suppress(RuntimeError):
                    self._open.capture_end()
                raise
            self._end(None)

    def _interrupt(self, operation: Callable[[], object]) -> None:
        """End a graph, and begin another one behind an operation."""
        self._end(operation)
        self._begin()

    def replay(self) -> None:
        """Compute everything once more."""
        for graph, operation in self._parts:
            graph.replay()
            if operation is not None:
                operation()

    def _begin(self) -> None:
        self._open = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        self._open.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self, operation: Callable[[], object] | None) -> None:
        assert self._open is not None
        self._open.capture_end()
        self._parts.append((self._open, operation))
        self._open = None
