"""Formats that servers run: each one with which another is exact, and what is refused, with the reason."""

from __future__ import annotations

import pytest
import torch
from models import tiny
from models.tensors import same
from safetensors.torch import load_file

import qformats
from qformats.errors import InexactExportError

CT = "compressed-tensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("models") / "llama", "float16")


@pytest.fixture(scope="module")
def made(llama, tmp_path_factory):
    """The model in a format, made once."""
    out = tmp_path_factory.mktemp("made")

    def make(format):
        target = out / format.replace(":", "-")
        target = target.with_name(target.name + ".gguf") if format.startswith("gguf") else target
        if not target.exists():
            qformats.export(llama, target, format=format, quantizer="rtn")
        return target

    return make


THERE_AND_BACK = [
    ("awq:4bit-64g", "gptq:4bit-64g-asym"),
    ("awq:4bit-32g", f"{CT}:w4a16-32g-asym"),
    ("gptq:4bit-32g", "awq:4bit-32g"),
    ("gptq:4bit-32g", "mlx:4bit-32g"),
    (f"{CT}:w4a16-32g", "gptq:4bit-32g"),
    (f"{CT}:w4a16-32g", "gguf:q4_0"),
    (f"{CT}:w4a16-32g-asym", "gptq:4bit-32g-asym"),
    (f"{CT}:w8a16-32g", "gguf:q8_0"),
    (f"{CT}:w4a16-channel", "glm:int4"),
    (f"{CT}:w8a8-channel", "glm:int8"),
    (f"{CT}:mxfp4", "gguf:mxfp4"),
    (f"{CT}:fp8-tensor", "modelopt:fp8"),
    (f"{CT}:fp8-block", "fp8:block"),
    ("fp8:block-ue8m0", f"{CT}:fp8-block-bf16"),
    ("modelopt:nvfp4", "gguf:nvfp4"),
    ("bitsandbytes:int8", f"{CT}:w8a8-channel-f32"),
    ("gguf:q4_1", "mlx:4bit-32g"),
    ("gguf:q8_0", "mlx:8bit-32g"),
    ("gguf:q4_0", "gptq:4bit-32g"),
]


@pytest.mark.parametrize(("first", "second"), THERE_AND_BACK)
def test_there_and_back_without_any_change(first, second, made, tmp_path):
    """Each step as ``--require-exact`` has it; codes and parameters are the same tensors in the end."""
    source = made(first)
    target = tmp_path / ("second.gguf" if second.startswith("gguf") else "second")
    qformats.export(source, target, format=second, require_exact=True)
    assert same(source, target)
    back = tmp_path / ("back.gguf" if first.startswith("gguf") else "back")
    qformats.export(target, back, format=first, require_exact=True)
    assert same(source, back)
    if first.startswith("gguf"):
        return
    one, other = (load_file(path / "model.safetensors") for path in (source, back))
    assert all(torch.equal(one[name].float(), other[name].float()) for name in one if "_proj" in name)


REFUSED = [
    ("awq:4bit-32g", "gguf:q4_0", "levels -6 to 9 are not within -8 to 7"),
    ("awq:4bit-32g", "gguf:q4_1", "no scale and minimum of float16"),
    ("awq:4bit-32g", "mlx:4bit-32g", "no scale and minimum of float16"),
    ("awq:4bit-32g", "glm:int4", "a block of 192 columns spans 6 different scales"),
    ("gptq:8bit-32g", "awq:4bit-32g", "need .* codes, but there are only 16"),
    (f"{CT}:fp8-channel", "gptq:8bit-32g", "scales are not float16 numbers"),
    (f"{CT}:w8a16-32g", "gguf:q4_0", "need .* codes, but there are only 16"),
    ("fp8:block", "fp8:block-ue8m0", "is not a power of two"),
    ("fp8:block", f"{CT}:fp8-tensor", "spans? several scales"),
    ("fp8:block", "dense:bf16", "bf16 changes"),
    ("gguf:mxfp4", "gguf:q4_0", "levels -12 to 12 need 25 codes"),
    ("modelopt:nvfp4", "gguf:q8_0", "a block of 32 columns spans 2 different scales"),
    ("mlx:4bit-32g", "awq:4bit-32g", "is not a whole number of steps"),
]


@pytest.mark.parametrize(("first", "second", "reason"), REFUSED)
def test_what_is_not_exact_is_refused_with_the_reason(first, second, reason, made, tmp_path):
    target = tmp_path / ("no.gguf" if second.startswith("gguf") else "no")
    with pytest.raises(InexactExportError, match=reason) as error:
        qformats.export(made(first), target, format=second, require_exact=True)
    # A sentence, in which a tensor and a reason are named.
    assert ".weight" in str(error.value)
    assert len(str(error.value)) > 60
    print(first, second, error.value)
    assert not target.exists()
