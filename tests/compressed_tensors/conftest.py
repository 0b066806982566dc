"""compressed-tensors' own compressors, on the processor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from oracles import package_folder


@pytest.fixture(scope="session")
def library():
    """``pack(format, tensors, **args)`` and ``unpack``, which compress and decompress one module; ``parameters``."""
    package_folder("compressed-tensors", "compressed_tensors", "0.20.0")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    def scheme(args):
        return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))

    def pack(format, tensors, **args):
        return BaseCompressor.get_value_from_registry(format).compress(dict(tensors), scheme(args))

    def unpack(format, tensors, **args):
        found = BaseCompressor.get_value_from_registry(format).decompress(dict(tensors), scheme(args))
        return found["weight"]

    def parameters(low, high, global_scale=None, **args):
        return calculate_qparams(low, high, QuantizationArgs(**args), global_scale=global_scale)

    return SimpleNamespace(pack=pack, unpack=unpack, parameters=parameters)
