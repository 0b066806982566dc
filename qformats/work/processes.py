"""The processes that a launcher such as torchrun has started to work together: told by the environment alone."""

from __future__ import annotations

import os
from dataclasses import dataclass

from qformats.errors import ConfigError

__all__ = ["Processes", "launched"]


@dataclass(frozen=True)
class Processes:
    """Which process this is.

    Attributes
    ----------
    rank, ranks : int
        Its number, from 0, of how many.
    local : int
        Its number among those of this machine.
    """

    rank: int = 0
    ranks: int = 1
    local: int = 0


def launched() -> Processes:
    """Read ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``; one process, if no launcher has set them.

    Raises
    ------
    ConfigError
        If they are no such numbers.

    Examples
    --------
    >>> from qformats.work.processes import launched
    >>> launched().ranks
    1
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return Processes()
    found = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        text = os.environ.get(name, os.environ["RANK"])
        if not (text.isascii() and text.isdigit() and len(text) < 7):
            raise ConfigError(name, text, "a whole number, as torchrun sets it")
        found[name] = int(text)
    if found["RANK"] >= found["WORLD_SIZE"]:
        raise ConfigError("RANK", found["RANK"], f"less than WORLD_SIZE, which is {found['WORLD_SIZE']}")
    return Processes(found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"])
