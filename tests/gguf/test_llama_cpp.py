"""What is exported runs in llama.cpp: the numbers of Transformers, the ids of the tokenizer, the same continuation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import tiny
from models.text import PROMPTS
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats.sources import open_model
from qformats_gguf.superblocks.layout import LAYOUTS

POSITIONS = 96
LOG_PROB = 1e-4
# llama.cpp computes GELU from a table of 16-bit floats: that alone moves GPT-2's log-probabilities by 2e-3.
LOG_PROB_GELU_TABLE = 5e-3
# llama.cpp's CPU kernels round activations to 8 bits wherever weights are quantized.
KL_EIGHT_BIT_ACTIVATIONS = 5e-3


@pytest.fixture(scope="module", params=["demo", *tiny.TINY])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model: the demo and a tiny random one of each architecture and feature."""
    if request.param == "demo":
        return open_model("demo", {}).path
    return tiny.build(request.param, tmp_path_factory.mktemp("model") / request.param)


def ids_of(gguf: LlamaCpp, count: int = POSITIONS) -> list[int]:
    """Text of several scripts as ids, long enough for rotary scaling to matter."""
    ids = gguf.tokenize("\n".join(PROMPTS) * 3)
    assert len(ids) >= count
    return ids[:count]


def kl_divergence(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """Mean over positions of KL(p || q)."""
    return float((np.exp(log_p.astype(np.float64)) * (log_p - log_q)).sum(-1).mean())


def test_float32_gives_the_numbers_of_transformers(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    qformats.export(model, target, format="gguf:f32")
    reference = hf.load(model)
    tolerance = LOG_PROB_GELU_TABLE if model.name == "gpt2" else LOG_PROB
    with LlamaCpp(target) as gguf:
        ids = ids_of(gguf)
        ours, theirs = gguf.log_probs(ids), hf.log_probs(reference, ids)
        assert np.abs(ours - theirs).max() < tolerance
        assert kl_divergence(theirs, ours) < 1e-6
        assert gguf.greedy(ids[:16], 24) == hf.greedy(reference, ids[:16], 24)


def test_token_ids_are_the_tokenizers(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    qformats.export(model, target, format="gguf:q8_0")
    tokenizer = hf.tokenizer_json(model)
    with LlamaCpp(target, vocab_only=True) as gguf:
        for text in PROMPTS:
            assert gguf.tokenize(text, parse_special=True) == tokenizer.encode(text).ids, text


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantized_weights_run_as_their_values(model: Path, kind: str, tmp_path: Path) -> None:
    """llama.cpp on the packed file, against Transformers on the same weights dequantized by us."""
    target, folder = tmp_path / "model.gguf", tmp_path / "dense"
    qformats.export(model, target, format=f"gguf:{kind}")
    qformats.export(target, folder, format="dense:f32")
    reference = hf.load(folder)
    with LlamaCpp(target) as gguf:
        ids = ids_of(gguf)
        assert kl_divergence(hf.log_probs(reference, ids), gguf.log_probs(ids)) < KL_EIGHT_BIT_ACTIVATIONS


@pytest.mark.parametrize("kind", LAYOUTS)
def test_searched_types_run_as_their_values(kind: str, tmp_path: Path) -> None:
    """The same with the types that gguf-py does not encode; widths of the demo model divide into their blocks."""
    target, folder = tmp_path / "model.gguf", tmp_path / "dense"
    report = qformats.export("demo", target, format=f"gguf:{kind}", pure=True)
    assert set(report.types) == {f"gguf:{kind}", "gguf:f32"}
    qformats.export(target, folder, format="dense:f32")
    reference = hf.load(folder)
    with LlamaCpp(target) as gguf:
        ids = ids_of(gguf)
        assert kl_divergence(hf.log_probs(reference, ids), gguf.log_probs(ids)) < KL_EIGHT_BIT_ACTIVATIONS
