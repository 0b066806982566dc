"""Internals of other libraries: if one is gone, the test that fails has its name."""

import sys

import pytest
import torch
import transformers
from models import tiny

from qformats.errors import BackendUnavailableError
from qformats.work import compat


@pytest.mark.parametrize("name", [name for name in compat.__all__ if name != "MODEL_ATTRIBUTES"])
def test_internal_exists(name):
    found = getattr(compat, name)
    assert callable(found) or len(found) > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny.build("llama-tied", tmp_path_factory.mktemp("model") / "llama")
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", compat.MODEL_ATTRIBUTES)
def test_model_attribute_exists(model, name):
    assert hasattr(model, name)


def test_tied_weights_are_told(model):
    assert dict(model.all_tied_weights_keys) == {"lm_head.weight": "model.embed_tokens.weight"}


def test_quantizer_is_asked_as_it_expects():
    """Names of the methods that Transformers calls."""
    for name in (
        *("validate_environment", "_process_model_before_weight_loading", "param_needs_quantization"),
        *("_process_model_after_weight_loading", "get_quantize_ops", "is_serializable", "is_trainable"),
    ):
        assert hasattr(compat.HfQuantizer, name), name


def test_modules_of_torch_keep_their_tensors_where_they_did():
    module = torch.nn.Linear(2, 2)
    assert {*module._parameters} == {"weight", "bias"}
    assert module._buffers == {}
    assert callable(module._load_from_state_dict)
    assert callable(module._save_to_state_dict)
    assert callable(module._apply)


def test_a_release_without_one_is_named(monkeypatch):
    """One sentence: what is installed, what it lacks, what to install."""
    monkeypatch.delitem(sys.modules, "qformats.work.compat")
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    with pytest.raises(BackendUnavailableError) as caught:
        import qformats.work.compat  # noqa: F401
    told = str(caught.value)
    assert told.startswith(f"transformers {transformers.__version__} with torch {torch.__version__}: lacks")
    assert "transformers.conversion_mapping" in told
    assert "pip install 'transformers>=5.17,<6' 'torch>=2.11,<3'" in told
