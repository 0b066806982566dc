"""Independent implementations that the tests compare with.

Nothing in this package imports qformats: an oracle that shared code with what it judges would agree with its
mistakes.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import os
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["REQUIRE", "absent", "package_folder"]

REQUIRE = "QFORMATS_REQUIRE_ORACLES"
"""Environment variable; when it is ``1``, a missing oracle or model fails the test that needs it."""


def absent(reason: str) -> NoReturn:
    """Skip the running test and say why, or fail it where `REQUIRE` asks for everything."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{reason} ({REQUIRE}=1 makes this a failure)", pytrace=False)
    pytest.skip(reason)


def package_folder(distribution: str, package: str, version: str) -> Path:
    """Find an installed package without importing it.

    Parameters
    ----------
    distribution, package : str
        Its name on PyPI and the name that would be imported.
    version : str
        The only version that the caller's structures and expectations hold for.

    Returns
    -------
    Path
        The folder of the package.

    Raises
    ------
    RuntimeError
        If another version is installed. A package that is not installed skips the test.
    """
    # Not importlib.util: another oracle may have put a stand-in into sys.modules.
    spec = importlib.machinery.PathFinder.find_spec(package)
    if spec is None or spec.origin is None:
        absent(f"{distribution} is not installed: pip install {distribution}=={version}")
    found = importlib.metadata.version(distribution)
    if found != version:
        raise RuntimeError(
            f"{distribution} {found} is installed, but this oracle was written for {version}: "
            f"structure layouts change between releases. Install {distribution}=={version}, "
            f"or check the oracle against the headers of {found} and move the pin."
        )
    return Path(spec.origin).parent
