"""bitsandbytes itself, on the processor."""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace

import pytest
from oracles import package_folder

VERSION = "0.50.2"


@pytest.fixture(scope="session")
def bnb():
    """Its functional interface, with an encoder and a decoder that do not depend on the processor.

    Its compiled decoder for AVX-512 gives wrong values where a row is not a whole number of blocks, so weights are
    decoded as a single row. Its quantizer divides in a short last block and multiplies by the inverse in the others;
    filled up with zeros, the last block is like the others.
    """
    import torch

    package_folder("bitsandbytes", "bitsandbytes", VERSION)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes
            from bitsandbytes import functional
    finally:
        logging.disable(logging.NOTSET)

    def quantize(weight, kind, block_size=64):
        """Packed bytes and absmax, both flat, every block by the rule of whole blocks."""
        flat = weight.reshape(-1)
        padded = torch.nn.functional.pad(flat, (0, -len(flat) % block_size))
        packed, state = functional.quantize_4bit(padded, quant_type=kind, blocksize=block_size)
        return packed.flatten()[: -(-len(flat) // 2)], state.absmax

    def decode(packed, state):
        """Values of a packed weight, in the dtype that its state tells."""
        shape = state.shape
        state.shape = torch.Size((1, shape.numel()))
        try:
            return functional.dequantize_4bit(packed, state).reshape(shape)
        finally:
            state.shape = shape

    return SimpleNamespace(package=bitsandbytes, functional=functional, quantize=quantize, decode=decode)
