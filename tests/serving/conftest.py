"""Two models behind one server, for all tests that do not end it: one that chats, and one that only continues text."""

from __future__ import annotations

import pytest
from chatting.conftest import talker, typed
from serving.running import served

__all__ = ["server", "talker", "typed"]


@pytest.fixture(scope="session")
def server(talker):
    """Address and process."""
    with served(talker, "demo", "--try", "q4_0", "--max-body", "20000") as running:
        yield running
