"""ChatGLM-6B, which no class of Transformers runs: tensor by tensor, under its own names."""

import json

import pytest
import torch
from models import chatglm
from safetensors.torch import load_file

import qformats

VARIANTS = (
    {"bits": 0},
    {"bits": 4},
    {"bits": 8, "container": "safetensors"},
    {"bits": 4, "embeddings": True},
    {"bits": 4, "embeddings": True, "container": "safetensors"},
)


def _same(checkpoint, values):
    assert set(checkpoint.tensors) == set(values)
    for name, expected in values.items():
        assert torch.equal(checkpoint.read(name), expected), name


@pytest.mark.parametrize("kind", VARIANTS, ids=str)
def test_reads_every_tensor(kind, tmp_path):
    values = chatglm.save_6b(tmp_path / "in", **kind)
    checkpoint = qformats.open(tmp_path / "in")
    assert checkpoint.architecture == "chatglm-6b"
    assert not {"quantization_bit", "quantization_embeddings"} & checkpoint.config.keys()
    # The shared output layer is listed once, under the name of the embedding.
    assert ("lm_head.weight" in checkpoint.tensors) is not kind.get("embeddings", False)
    _same(checkpoint, values)


@pytest.mark.parametrize("kind", VARIANTS, ids=str)
def test_converts_tensor_by_tensor(kind, tmp_path):
    values = chatglm.save_6b(tmp_path / "in", **kind)
    qformats.export(tmp_path / "in", tmp_path / "f32", format="dense:f32")
    _same(qformats.open(tmp_path / "f32"), values)
    qformats.export(tmp_path / "in", tmp_path / "int8", format="glm:int8")
    written = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert written["quantization_bit"] == 8
    assert written.get("quantization_embeddings", False) is kind.get("embeddings", False)
    back = qformats.open(tmp_path / "int8")
    name = "transformer.layers.1.mlp.dense_4h_to_h.weight"
    assert back.tensors[name].format == "glm:int8"
    # 4 bits with their scale are 8 bits with the same scale.
    if kind["bits"]:
        _same(back, values)
    else:
        error = (back.read(name) - values[name]).abs().amax() / values[name].abs().amax()
        assert error < 0.5 / 127 * 1.1


@pytest.mark.parametrize("container", ["bin", "safetensors"])
def test_the_quantized_embedding_is_stored_once(container, tmp_path):
    values = chatglm.save_6b(tmp_path / "in", bits=4, embeddings=True, container=container)
    report = qformats.export(tmp_path / "in", tmp_path / "out", format="glm:int4", require_exact=True)
    assert report.nbytes == report.source_nbytes
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored["transformer.word_embeddings.weight"].dtype == torch.int8
    assert not [name for name in stored if name.startswith("lm_head")]
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["quantization_bit"], written["quantization_embeddings"]) == (4, True)
    _same(qformats.open(tmp_path / "out"), values)


def test_the_embedding_as_plain_numbers_again(tmp_path):
    values = chatglm.save_6b(tmp_path / "in", bits=4, embeddings=True)
    qformats.export(tmp_path / "in", tmp_path / "out", format="dense:f32", container="chatglm")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization_bit", "quantization_embeddings"} & written.keys()
    _same(qformats.open(tmp_path / "out"), values)
