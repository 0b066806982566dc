"""Object stores and other places with a URL, through fsspec: what is wrong with one is said in a sentence."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import xxhash

from qformats.errors import BackendUnavailableError, ConfigError, OutputError, QFormatsError

__all__ = ["connect", "scratch", "told_of", "url_of"]

_URL = re.compile(r"([a-z][a-z0-9+]{1,15}):/{1,2}([^/].*)", re.DOTALL)
"""A URL, or what a path makes of one: it joins two slashes."""
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
"""Package and extra for a protocol."""
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")
"""Exceptions of clients, by name: importing their packages is the clients' matter."""


def url_of(place: str | PathLike[str]) -> str | None:
    """The URL that a place is, or ``None`` for a path.

    Examples
    --------
    >>> from pathlib import Path
    >>> from qformats.work.urls import url_of
    >>> url_of("s3://bucket/model"), url_of(Path("s3://bucket/model")), url_of("models/s3")
    ('s3://bucket/model', 's3://bucket/model', None)
    """
    found = _URL.fullmatch(os.fspath(place))
    if found is None or found[1] == "file" or os.path.lexists(place):
        return None
    return f"{found[1]}://{found[2].rstrip('/')}"


def scratch(url: str) -> Path:
    """Folder on this machine for what goes to, or comes from, a URL; not made yet.

    It is in ``QFORMATS_SCRATCH``, or in the user's cache.

    Examples
    --------
    >>> from qformats.work.urls import scratch
    >>> scratch("s3://bucket/model") == scratch("s3://bucket/other")
    False
    """
    base = os.environ.get("QFORMATS_SCRATCH") or ""
    if not base:
        cache = os.environ.get("XDG_CACHE_HOME") or ""
        base = str((Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "qformats" / "scratch")
    return Path(base).absolute() / xxhash.xxh3_64_hexdigest(url.encode())


def connect(url: str) -> tuple[Any, str]:
    """Client of a URL's store, and the place inside of it.

    Raises
    ------
    ConfigError
        If nothing knows such URLs.
    BackendUnavailableError
        If a package for them is missing.
    OutputError
        If there are no credentials, or the store cannot be reached.

    Examples
    --------
    >>> from qformats.work.urls import connect
    >>> store, place = connect("memory://bucket/model")
    >>> place
    '/bucket/model'
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        with told_of(url):
            store = fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
    except ImportError as error:
        package, extra = _EXTRAS.get(protocol, ("", ""))
        what = f"the package {package} is not installed" if package else str(error)
        hint = (
            f"Install it: pip install 'qformats[{extra}]'" if extra else "Install the package for such URLs"
        )
        raise BackendUnavailableError(f"{protocol}://", what, hint) from error
    except ValueError as error:
        raise ConfigError(
            "URL", url, "a path, or a URL such as s3://BUCKET/NAME or gs://BUCKET/NAME"
        ) from error
    return store, str(store._strip_protocol(url))


@contextlib.contextmanager
def told_of(url: str) -> Iterator[None]:
    """Turn what a client raises about a place into one sentence.

    Raises
    ------
    OutputError
        Saying what failed, and what to do.
    """
    try:
        yield
    except (QFormatsError, ImportError, ValueError):
        raise
    except Exception as error:
        name = type(error).__name__
        said = " ".join(str(error).split())[:200].rstrip(".") or name
        if isinstance(error, PermissionError) or name in _CREDENTIALS:
            hint = "Check the credentials of this store and what they allow, in the environment or its usual files"
            raise OutputError(url, f"access is denied ({said})", hint) from error
        if isinstance(error, FileNotFoundError):
            raise OutputError(url, f"there is no such bucket or place ({said})", "Make it first") from error
        hint = "Check the network and the address of the store, then run the same command again"
        raise OutputError(url, f"the store does not answer as it should ({name}: {said})", hint) from error
