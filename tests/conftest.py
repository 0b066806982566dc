"""Without a CUDA device the Triton kernels run in Triton's interpreter.

It must be chosen before Triton is loaded, and what loads Triton (bitsandbytes, adapters) is imported by many tests.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
