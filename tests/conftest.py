"""Without a CUDA device the Triton kernels run in Triton's interpreter.

It must be chosen before Triton is loaded, and what loads Triton (bitsandbytes, adapters) is imported by many tests.
"""

import os
import signal
import tempfile

import torch

# A shell ignores Ctrl-C in what it starts in the background, and processes inherit that: tests of interruptions would
# depend on how they were started.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The key that interrupted exports are known again by is not kept in the home of whoever runs the tests.
os.environ.setdefault("XDG_STATE_HOME", tempfile.mkdtemp(prefix="qformats-tests-"))
