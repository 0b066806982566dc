"""Folders whose embedding or head is quantized: written, run, converted back; what others make of them is said."""

import json
import warnings

import pytest
import torch
from models import tiny

import qformats
from qformats.errors import ConfigError

IDS = torch.tensor([[1, 5, 9, 33, 7, 2, 60, 12]])
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FORMATS = ["gptq:4bit-32g", "gptq:4bit-32g-asym", "bitsandbytes:nf4", "bitsandbytes:nf4-dq", "glm:int4"]


ROWS = 544
"""Of the embedding: formats of GPTQ and kernels of bitsandbytes take multiples of 32."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return _widened("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return _widened("llama-tied", tmp_path_factory.mktemp("models") / "tied")


def _widened(name, folder):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.build(name, folder), dtype=torch.float32)
    model.resize_token_embeddings(ROWS, mean_resizing=False)
    model.save_pretrained(folder)
    return folder


def _logits(model):
    with torch.inference_mode():
        return model(IDS, use_cache=False).logits


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("option", ["token_embedding_type", "output_type"])
def test_runs_and_converts_like_its_plain_numbers(llama, tmp_path, format, option):
    name = EMBEDDING if option == "token_embedding_type" else HEAD
    variant = format.partition(":")[2]
    usual = qformats.export(llama, tmp_path / "usual", format=format, quantizer="rtn")
    report = qformats.export(llama, tmp_path / "packed", format=format, quantizer="rtn", **{option: variant})
    opened = qformats.open(tmp_path / "packed")
    assert opened.tensors[name].format == format
    saved = qformats.open(llama).tensors[name].nbytes - opened.tensors[name].nbytes
    assert saved > 0
    assert sum(t.nbytes for t in usual.tensors) - sum(t.nbytes for t in report.tensors) == saved
    qformats.export(tmp_path / "packed", tmp_path / "dense", format="dense:f32")
    qformats.export(tmp_path / "packed", tmp_path / "again", format=format, require_exact=True)
    packed = qformats.load_model(tmp_path / "packed", device="cpu")
    dense = qformats.load_model(tmp_path / "dense", device="cpu")
    layer = packed.get_submodule(name.removesuffix(".weight"))
    assert type(layer).__name__ in ("QuantEmbedding", "QuantLinear")
    torch.testing.assert_close(_logits(packed), _logits(dense), rtol=1e-5, atol=1e-5)
    assert torch.equal(packed.generate(IDS, max_new_tokens=8), dense.generate(IDS, max_new_tokens=8))
    again = qformats.open(tmp_path / "again")
    assert {n: t.format for n, t in again.tensors.items()} == {n: t.format for n, t in opened.tensors.items()}


@pytest.mark.parametrize("format", ["gptq:4bit-32g", "bitsandbytes:nf4"])
def test_a_tied_embedding_is_the_head_too(tied, tmp_path, format):
    variant = format.partition(":")[2]
    qformats.export(tied, tmp_path / "out", format=format, quantizer="rtn", token_embedding_type=variant)
    opened = qformats.open(tmp_path / "out")
    assert opened.tensors[EMBEDDING].format == format
    assert HEAD not in opened.tensors
    model = qformats.load_model(tmp_path / "out", device="cpu")
    assert torch.equal(model.lm_head.packed().dequantize(), model.model.embed_tokens.packed().dequantize())


@pytest.mark.parametrize(
    ("format", "option", "said"),
    [
        ("gptq:4bit-32g", "token_embedding_type", "Transformers and GPTQModel do not"),
        ("gptq:4bit-32g", "output_type", "GPTQModel load; Transformers does not"),
        ("bitsandbytes:nf4", "token_embedding_type", "Transformers does not"),
        ("bitsandbytes:nf4", "output_type", None),
        ("glm:int4", "token_embedding_type", None),
    ],
)
def test_what_others_do_not_load_is_said_once(llama, tmp_path, format, option, said):
    variant = {option: format.partition(":")[2]}
    report = qformats.export(llama, tmp_path / "out", format=format, quantizer="rtn", **variant)
    told = [note for note in report.notes if "quantized" in note]
    assert [said in note for note in told] == ([True] if said else [])
    usual = qformats.export(llama, tmp_path / "usual", format=format, quantizer="rtn")
    assert not [note for note in usual.notes if "quantized" in note]


def test_bytes_that_transformers_would_take_for_weights_are_refused(llama, tmp_path):
    """An int8 embedding has the shape of a plain one; there it loads without a word and gives nonsense."""
    with pytest.raises(ConfigError, match=r"embed_tokens.*without an error"):
        qformats.export(llama, tmp_path / "out", format="bitsandbytes:int8", token_embedding_type="int8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", ["nf4", "int8"])
def test_transformers_loads_a_quantized_head_and_refuses_a_quantized_embedding(llama, tmp_path, variant):
    pytest.importorskip("bitsandbytes", reason="Transformers loads such folders with bitsandbytes")
    from transformers import AutoModelForCausalLM

    format = f"bitsandbytes:{variant}"
    qformats.export(llama, tmp_path / "head", format=format, output_type=variant)
    config = json.loads((tmp_path / "head" / "config.json").read_text())["quantization_config"]
    assert config["llm_int8_skip_modules"] == []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, info = AutoModelForCausalLM.from_pretrained(
            tmp_path / "head", output_loading_info=True, dtype=torch.float32
        )
        assert not any(info.values()), info
        assert type(theirs.lm_head).__name__ == {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[variant]
        ours = _logits(qformats.load_model(tmp_path / "head", device="cpu"))
        # Their layers round what they multiply, nf4 ones to bfloat16 on a CPU; of another head it would be 1.
        assert (_logits(theirs) - ours).norm() / ours.norm() < 0.05
        if variant == "int8":
            return
        qformats.export(llama, tmp_path / "embedding", format=format, token_embedding_type=variant)
        with pytest.raises(RuntimeError, match="mismatched"):
            AutoModelForCausalLM.from_pretrained(tmp_path / "embedding", dtype=torch.float32)
