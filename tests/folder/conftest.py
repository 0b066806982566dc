"""Models that tests of this folder read or damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from models import tiny


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def copy(llama, tmp_path) -> Path:
    """A model that the test may damage; nothing else lies beside it."""
    return Path(shutil.copytree(llama, tmp_path / "in" / "model"))
