"""llama.cpp's importance matrices: the GGUF form, the older ``.dat``, and their names for a model's tensors.

Source: llama.cpp:tools/imatrix/imatrix.cpp and tools/quantize/quantize.cpp, ggml-org/llama.cpp@0c1e570.
"""

from __future__ import annotations

from qformats_gguf.imatrix.names import named
from qformats_gguf.imatrix.provenance import provenance
from qformats_gguf.imatrix.read import read_imatrix
from qformats_gguf.imatrix.write import file_content

__all__ = ["file_content", "named", "provenance", "read_imatrix"]
