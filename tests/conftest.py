"""Without a CUDA device the Triton kernels run in Triton's interpreter.

It must be chosen before Triton is loaded, and what loads Triton (bitsandbytes, adapters) is imported by many tests.
"""

import os
import signal
import tempfile

# Everything is small and a process runs on each core: more threads would wait for each other, here and in the programs
# that tests start. It must be chosen before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

# A shell ignores Ctrl-C in what it starts in the background, and processes inherit that: tests of interruptions would
# depend on how they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The key that interrupted exports are known again by is not kept in the home of whoever runs the tests.
os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="qformats-tests-"))


_LOOKS_AT_RECORDS = ("test_recorded.py", "test_verify.py")


@pytest.fixture(autouse=True)
def _edited_models(request, monkeypatch):
    """Many tests edit a model that they have exported and load it again, which qformats refuses.

    So a record that is older than its model's files is not looked at here; that such models are refused is tested in
    the files above.
    """
    if request.path.name in _LOOKS_AT_RECORDS:
        return
    from qformats.exporting import recorded

    look = recorded.record_beside

    def record_beside(path):
        found = look(path)
        if found is None:
            return None
        written = found.stat().st_mtime_ns
        files = path.iterdir() if path.is_dir() else [path]
        return None if any(file.stat().st_mtime_ns > written for file in files if file.is_file()) else found

    monkeypatch.setattr(recorded, "record_beside", record_beside)
