"""AutoGPTQ's own layers and rounding rule, on the processor, and GPTQ weights of every kind."""

from __future__ import annotations

import importlib.util
import logging
from types import SimpleNamespace

import pytest
from oracles import package_folder

VERSION = "0.7.1"


def _module(path):
    """Load a file by itself: the package around it does not import beside today's Transformers."""
    spec = importlib.util.spec_from_file_location(f"auto_gptq_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def auto_gptq():
    """``old`` (columns in order), ``layer`` (any order) and ``quantizer`` of AutoGPTQ."""
    import transformers.pytorch_utils  # noqa: F401  (the layers look for it)

    folder = package_folder("auto-gptq", "auto_gptq", VERSION)
    layers = folder / "nn_modules" / "qlinear"
    logging.disable(logging.WARNING)
    try:
        return SimpleNamespace(
            old=_module(layers / "qlinear_cuda_old.py").QuantLinear,
            layer=_module(layers / "qlinear_cuda.py").QuantLinear,
            quantizer=_module(folder / "quantization" / "quantizer.py").Quantizer,
        )
    finally:
        logging.disable(logging.NOTSET)
