"""Without a CUDA device the Triton kernels run in Triton's interpreter, which must be chosen before they are loaded."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
