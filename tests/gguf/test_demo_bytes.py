"""Every tensor of the demo model, in every type that is written: the bytes of gguf-py's own encoder, or of ggml's."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from oracles import ggml

import qformats
from qformats_gguf.architectures import Architecture
from qformats_gguf.reader import read
from qformats_gguf.superblocks.layout import LAYOUTS

BY_GGUF_PY = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4", "tq1_0", "tq2_0")


@pytest.mark.parametrize("kind", [*BY_GGUF_PY, *LAYOUTS])
def test_exported_bytes_are_those_of_gguf(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "demo.gguf"
    qformats.export("demo", target, format=f"gguf:{kind}", pure=True)
    demo = qformats.open("demo")
    architecture = Architecture.from_config(demo.config)
    compared = 0
    with read(target) as file:
        for name, stored in file.tensors.items():
            mapping = architecture.unmap_tensor(name)
            values = demo.read(mapping.canonical).numpy()
            if mapping.permute is not None:
                heads, columns = mapping.permute.heads, values.shape[1]
                # Written out again, independently of the table: (heads, halves, pairs) to (heads, pairs, halves).
                values = values.reshape(heads, 2, -1, columns).swapaxes(1, 2).reshape(values.shape)
            wanted = kind if len(stored.shape) == 2 else "f32"
            assert stored.type is not None
            assert stored.type.name == wanted
            values = np.ascontiguousarray(values)
            if wanted in LAYOUTS:
                # gguf-py does not encode these.
                expected = ggml.quantize(wanted, values)
            else:
                expected = gguf.quants.quantize(values, gguf.GGMLQuantizationType[wanted.upper()])
            assert np.array_equal(file.data(name), expected.reshape(-1).view(np.uint8)), name
            compared += 1
    assert compared == len(demo.tensors) == 39
