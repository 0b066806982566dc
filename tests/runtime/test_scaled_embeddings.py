"""Embeddings that scale their rows stay packed, too."""

import copy

import pytest
import torch
from models.architectures import build
from torch import nn
from transformers.models.bart.modeling_bart import BartLearnedPositionalEmbedding, BartScaledWordEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

import qformats
from qformats.runtime.linear import QuantEmbedding
from qformats.runtime.scaled import gives_scaled_rows


class Shifted(nn.Embedding):
    def __init__(self, rows, columns, padding, embed_scale=1.0):
        super().__init__(rows, columns, padding)
        self.embed_scale = embed_scale

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale + 1


class Squared(Shifted):
    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


@pytest.mark.parametrize(
    ("kind", "scales"),
    [
        (Gemma3TextScaledWordEmbedding, True),
        (BartScaledWordEmbedding, True),
        (nn.Embedding, False),
        (BartLearnedPositionalEmbedding, False),
        (Shifted, False),
        (Squared, False),
        (nn.Linear, False),
    ],
)
def test_classes_are_tried(kind, scales):
    assert gives_scaled_rows(kind) is scales


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    path = tmp_path_factory.mktemp("gemma")
    folder = build("gemma3", path / "in")
    qformats.export(folder, path / "m.gguf", format="gguf:q8_0")
    qformats.export(path / "m.gguf", path / "dense", format="dense:f32")
    return path


@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_gemma(gemma, dtype):
    packed = qformats.load_model(gemma / "m.gguf", device="cpu", dtype=dtype)
    table = packed.get_input_embeddings()
    assert isinstance(table, QuantEmbedding)
    dense = qformats.load_model(gemma / "dense", device="cpu", dtype=dtype)
    ids = torch.arange(20)[None] % table.num_embeddings
    with torch.inference_mode():
        assert torch.equal(table(ids), dense.get_input_embeddings()(ids))
        found, expected = packed(ids).logits, dense(ids).logits
    assert (found - expected).norm() <= (1e-5 if dtype is None else 3e-2) * expected.norm()


def test_casts_and_copies_keep_the_scale(gemma):
    model = qformats.load_model(gemma / "m.gguf", device="cpu")
    ids = torch.arange(5)[None]
    with torch.inference_mode():
        rows = model.get_input_embeddings()(ids)
        other = copy.deepcopy(model).to(torch.bfloat16)
        halves = other.get_input_embeddings()(ids)
    assert halves.dtype == torch.bfloat16
    assert torch.allclose(halves.float(), rows, rtol=2e-2, atol=1e-3)
    assert not any("embed_scale" in name for name in model.state_dict())
