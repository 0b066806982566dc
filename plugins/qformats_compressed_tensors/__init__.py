"""compressed-tensors: folders of llm-compressor, as vLLM and Transformers load them."""

from __future__ import annotations

from qformats import Family, hookimpl
from qformats_compressed_tensors.family import CompressedTensors

__all__: list[str] = []


@hookimpl
def qformats_register_families() -> list[type[Family]]:
    """The family ``compressed-tensors``."""
    return [CompressedTensors]
