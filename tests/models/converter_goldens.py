"""What llama.cpp's converter made of small models, and a file of ours in the same form."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from models import portable

__all__ = ["GOLDEN", "MODELS", "content_of"]

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_models"
MODELS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "models.json").read_text())


def content_of(file: Path, golden: dict[str, Any], *, vocabulary: bool = False) -> dict[str, dict[str, Any]]:
    """Metadata and tensors of a file in the form of the golden ones."""
    reader = gguf.GGUFReader(file)
    metadata = {
        field.name: [[kind.name for kind in field.types], portable.short(field.contents())]
        for field in reader.fields.values()
        if not field.name.startswith(("GGUF.",) if vocabulary else ("GGUF.", "tokenizer."))
    }
    tensors = {}
    for tensor in reader.tensors:
        expected = golden.get(tensor.name)
        data = np.array(tensor.data)
        numbers: Any = hashlib.sha256(data.tobytes()).hexdigest()
        if expected is not None and isinstance(expected[2], list):
            numbers = pytest.approx(expected[2], rel=1e-6)
            assert data.reshape(-1)[:16].astype(float).tolist() == numbers, tensor.name
            numbers = expected[2]
        tensors[tensor.name] = [
            tensor.tensor_type.name,
            [int(each) for each in reversed(tensor.shape)],
            numbers,
        ]
    return {"metadata": metadata, "tensors": tensors}
