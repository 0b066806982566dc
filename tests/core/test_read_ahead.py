"""What is needed next of a file is in the page cache before it is asked for; what cannot be read is no trouble."""

import os
import threading
import time

import pytest

from qformats.work.read_ahead import ReadAhead

SIZE = 24 << 20


def held(file, place):
    with file.open("rb") as stream:
        try:
            return os.preadv(stream.fileno(), [bytearray(1)], place, os.RWF_NOWAIT) == 1
        except BlockingIOError:
            return False
        except OSError as error:
            pytest.skip(f"the file system does not tell what is in memory ({error})")


@pytest.fixture
def cold(tmp_path):
    file = tmp_path / "weights"
    with file.open("wb") as stream:
        stream.write(os.urandom(SIZE))
        stream.flush()
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if held(file, SIZE - 1):
        pytest.skip("the file system keeps everything in memory")
    return file


def test_what_follows_is_read(cold):
    with ReadAhead() as ahead:
        ahead.reach(cold, 0, 4096)
        until = time.monotonic() + 20
        while not held(cold, SIZE - 1) and time.monotonic() < until:
            time.sleep(0.02)
        assert held(cold, SIZE - 1)


def test_nothing_is_left_running(tmp_path):
    before = threading.active_count()
    with ReadAhead() as ahead:
        ahead.reach(tmp_path / "missing", 0, 1)
        ahead.reach(tmp_path, 0, 1)
    with ReadAhead():
        pass
    assert threading.active_count() == before
