"""Without a CUDA device the Triton kernels run in Triton's interpreter.

It must be chosen before Triton is loaded, and what loads Triton (bitsandbytes, adapters) is imported by many tests.
"""

import gc
import os
import signal
import tempfile

# Everything is small and a process runs on each core: more threads would wait for each other, here and in the programs
# that tests start. It must be chosen before torch is loaded.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

# A shell ignores Ctrl-C in what it starts in the background, and processes inherit that: tests of interruptions would
# depend on how they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The key that interrupted exports are known again by is not kept in the home of whoever runs the tests.
os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="qformats-tests-"))


def pytest_collection_finish():
    """What is imported and collected by now stays to the end: Python looks for garbage elsewhere.

    These are half a million objects. Looking through them again and again took a twelfth of the tests' time.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish():
    """At the end all is garbage: libraries complain of what is left of theirs."""
    gc.unfreeze()
