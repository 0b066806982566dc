"""The demo model in several formats, made once."""

from __future__ import annotations

import pytest

import qformats

_FORMATS = {
    "q4_0": ("gguf:q4_0", "model.gguf"),
    "q8_0": ("gguf:q8_0", "model-q8.gguf"),
    "f16": ("gguf:f16", "model-f16.gguf"),
    "gptq": ("gptq:4bit-128g", "gptq"),
    "nf4-dq": ("bitsandbytes:nf4-dq", "nf4-dq"),
    "glm": ("glm:int8", "glm"),
}


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
