"""The demo model in several formats, made once."""

from __future__ import annotations

import pytest
import torch

import qformats

_FORMATS = {
    "q4_0": ("gguf:q4_0", "model.gguf"),
    "q8_0": ("gguf:q8_0", "model-q8.gguf"),
    "f16": ("gguf:f16", "model-f16.gguf"),
    "gptq": ("gptq:4bit-128g", "gptq"),
    "nf4-dq": ("bitsandbytes:nf4-dq", "nf4-dq"),
    "glm": ("glm:int8", "glm"),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small are not worth torch's threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Path of the demo model in a format; exported when first asked for."""
    folder = tmp_path_factory.mktemp("demo-formats")

    def path(kind):
        format, name = _FORMATS[kind]
        target = folder / name
        if not target.exists():
            qformats.export("demo", target, format=format, quantizer="rtn")
        return target

    return path
