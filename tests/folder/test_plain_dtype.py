"""What is not quantized in a folder has one dtype, as readers compute in one."""

import pytest
from models import tiny

import qformats
from qformats.errors import ConfigError


@pytest.fixture
def gguf(tmp_path):
    """Norms in float32, as in every GGUF file; embedding and head in bfloat16."""
    source = tiny.build("llama", tmp_path / "llama", dtype="bfloat16")
    kinds = {"output_type": "bf16", "token_embedding_type": "bf16"}
    qformats.export(source, tmp_path / "model.gguf", format="gguf:q8_0", **kinds)
    return tmp_path / "model.gguf"


def dtypes(folder) -> set[str]:
    return {t.format for t in qformats.open(folder).tensors.values() if t.format.startswith("dense:")}


def test_the_dtype_of_most_weights(gguf, tmp_path):
    qformats.export(gguf, tmp_path / "out", format="glm:int8")
    assert dtypes(tmp_path / "out") == {"dense:bf16"}
    assert qformats.open(tmp_path / "out").config["dtype"] == "bfloat16"


def test_another_one(gguf, tmp_path):
    qformats.export(gguf, tmp_path / "out", format="glm:int8", options={"plain-dtype": "f16"})
    assert dtypes(tmp_path / "out") == {"dense:f16"}
    with pytest.raises(ConfigError, match="plain-dtype: found 'i8'; expected one of f32, f16, bf16"):
        qformats.export(gguf, tmp_path / "never", format="glm:int8", options={"plain-dtype": "i8"})


def test_a_mixture_that_was_asked_for(gguf, tmp_path):
    with pytest.warns(UserWarning, match=r"several dtypes \(bf16, f32\).*-O plain-dtype=f16"):
        qformats.export(gguf, tmp_path / "out", format="glm:int8", token_embedding_type="dense:f32")
    assert dtypes(tmp_path / "out") == {"dense:bf16", "dense:f32"}


def test_norms_that_the_dtype_holds_stay_exact(gguf, tmp_path):
    """They were bfloat16 before they became float32 in the GGUF file."""
    qformats.export(gguf, tmp_path / "out", format="glm:int8-f32")
    before, after = qformats.open(gguf), qformats.open(tmp_path / "out")
    for name in after.tensors:
        if "norm" in name:
            assert (before.read(name) == after.read(name)).all()
