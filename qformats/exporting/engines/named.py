"""Engines by name, as users ask for them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from qformats.errors import ConfigError, spelled
from qformats.exporting.engines.engine import Engine
from qformats.exporting.engines.local import Local

__all__ = ["ENGINES", "named", "require_known"]

ENGINES = ("local", "ray")
"""What ``--engine`` takes."""


@contextlib.contextmanager
def named(name: str, address: str | None = None) -> Iterator[Engine]:
    """An engine, connected while the block runs.

    Parameters
    ----------
    name : str
        One of :data:`ENGINES`.
    address : str, optional
        Of a cluster: ``auto`` for the one that this machine belongs to, or ``HOST:PORT`` of its head.

    Raises
    ------
    ConfigError
        If there is no such engine, or an address for one that has none.
    BackendUnavailableError
        If a package is missing, or the cluster cannot be reached.

    Examples
    --------
    >>> from qformats.exporting.engines.named import named
    >>> with named("local") as engine:
    ...     type(engine).__name__
    'Local'
    """
    require_known(name, address)
    if name == "local":
        yield Local()
        return
    # What it needs is an extra.
    from qformats.exporting.engines.cluster import connected

    with connected(address) as engine:
        yield engine


def require_known(name: str, address: str | None) -> None:
    """Refuse a name that is no engine's, and an address for one that has none.

    Raises
    ------
    ConfigError
        Saying which there are.

    Examples
    --------
    >>> from qformats.exporting.engines.named import require_known
    >>> require_known("ray", "auto")
    """
    if name not in ENGINES:
        raise ConfigError(spelled("--engine", "engine"), name, " or ".join(ENGINES))
    if name == "local" and address is not None:
        expected = f"no address without {spelled('--engine ray', 'engine=' + repr('ray'))}"
        raise ConfigError(spelled("--address", "address"), address, expected)
