"""Quantized folders of every type of model become GGUF files and come back, value by value."""

from __future__ import annotations

from pathlib import Path

import pytest
from models.architectures import WIDE, build_wide

import qformats

FORMATS = ("bitsandbytes:nf4", "gptq:4bit-32g", "glm:int8")
MIXTURES = ("qwen2_moe", "mixtral", "deepseek_v3", "gpt_oss")
# Some mixtures in every format, which packs their experts in its own way; the others in turn.
CASES = [(name, format) for name in MIXTURES for format in FORMATS] + [
    (name, FORMATS[number % 3]) for number, name in enumerate(WIDE) if name not in MIXTURES
]
CASES += [(name, "awq:4bit-32g") for name in ("mixtral", "qwen2_moe")]


@pytest.mark.parametrize(("name", "format"), CASES)
def test_quantized_folders_keep_their_values_in_gguf_and_back(name: str, format: str, tmp_path: Path) -> None:
    folder = build_wide(name, tmp_path / "model")
    report = qformats.export(folder, tmp_path / "packed", format=format, quantizer="rtn")
    assert report.types[format] >= 6
    qformats.export(tmp_path / "packed", tmp_path / "m.gguf", format="gguf:f32")
    packed, file = qformats.open(tmp_path / "packed").tensors, qformats.open(tmp_path / "m.gguf").tensors
    # What llama.cpp needs twice is once in the folder of a tied model.
    assert file.keys() - packed.keys() <= {"lm_head.weight"}
    assert packed.keys() <= file.keys()
    original = qformats.open(folder).tensors
    lost = 0
    for key, tensor in packed.items():
        # Norms of 1 + weight lose a last bit, -exp(A_log) another.
        assert tensor.dequantize().sub(file[key].dequantize()).abs().max() < 4e-7, key
        lost += not tensor.dequantize().equal(original[key].dequantize())
    assert lost == report.types[format]
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format=format, quantizer="rtn")
    back = qformats.open(tmp_path / "back").tensors
    assert back.keys() == packed.keys()
    # The rules of GPTQ and AWQ take the range of what is there, of which the ends need not be used any more.
    share = 0.1 if format.startswith(("gptq", "awq")) else 1e-6
    for key, tensor in packed.items():
        one, other = tensor.dequantize(), back[key].dequantize()
        assert one.sub(other).abs().max() <= share * one.abs().max(), key
