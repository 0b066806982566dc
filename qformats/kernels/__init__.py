"""Kernels that every format shares. Importing this package loads neither numba nor Triton."""
