"""Perplexity and divergence of real models against llama.cpp on the same tokens.

llama.cpp's kernels round activations to 8 bits where weights are quantized. Both models are therefore given to it as
plain numbers: the values that the quantized file stands for.
"""

import numpy as np
import pytest
from compare import perplexity_oracle as oracle
from models import smollm2
from oracles.llama_cpp import LlamaCpp

import qformats


def _logits(path, windows):
    """llama.cpp's logits at the scored positions of every window."""
    length = windows.shape[1]
    with LlamaCpp(path, n_ctx=length) as model:
        parts = [model.logits(ids.tolist())[length // 2 : length - 1] for ids in windows]
    return np.concatenate(parts)


def _windows(path, text, length, count):
    """Windows as llama.cpp's own tokenizer makes them."""
    with LlamaCpp(path, vocab_only=True) as model:
        ids = model.tokenize(text, parse_special=False)
        special = model.special_ids()
    windows = np.array(ids[: length * count]).reshape(count, length)
    if special["add_bos"]:
        windows[:, 0] = special["bos"]
    return windows


def _check(base, model, plain_base, plain_model, folder, length, count, rounding):
    """Every statistic within tolerances that are multiples of `rounding`, relative."""
    text = (qformats.open("demo").path / "heldout.txt").read_text(encoding="utf-8")[: 12 * length * count]
    file = folder / "text.txt"
    file.write_text(text, encoding="utf-8")
    report = qformats.compare(base, model, text=file, window=length, windows=count)
    windows = _windows(plain_base, text, length, count)
    before, after = _logits(plain_base, windows), _logits(plain_model, windows)
    targets = windows[:, length // 2 + 1 :].reshape(-1)
    expected = oracle.statistics(*oracle.per_token(before, after, targets))
    found = oracle.told(report.models[0].behaviour)
    perplexity = report.base.behaviour.perplexity
    assert report.text.scored == len(targets)
    np.testing.assert_allclose((perplexity.value, perplexity.error), expected["ppl_base"], rtol=rounding)
    for name, rtol, atol in (
        ("ppl", rounding, 0),
        ("ratio", rounding, rounding),
        ("log_ratio", rounding, rounding),
        ("correlation", rounding, 0),
        ("kl", 10 * rounding, 0),
        ("change", 10 * rounding, rounding / 10),
        ("rms", 10 * rounding, 0),
        ("same_top", 0, 1.5 / len(targets)),
    ):
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=atol, err_msg=name)
    median, highest = (
        [kinds["kl_percentiles"][name] for kinds in (found, expected)] for name in ("median", "max")
    )
    assert median[0] == pytest.approx(median[1], rel=20 * rounding)
    assert highest[0] == pytest.approx(highest[1], rel=20 * rounding)


def test_the_demo_model(made, tmp_path):
    base, model = tmp_path / "base.gguf", tmp_path / "model.gguf"
    qformats.export("demo", base, format="gguf:f32")
    qformats.export(made("q4_0"), model, format="gguf:f32")
    _check("demo", made("q4_0"), base, model, tmp_path, length=512, count=2, rounding=2e-4)


def test_smollm2(tmp_path):
    source = smollm2.path()
    quantized, base, model = tmp_path / "q.gguf", tmp_path / "base.gguf", tmp_path / "model.gguf"
    qformats.export(source, quantized, format="gguf:q4_0", pure=True)
    qformats.export(source, base, format="gguf:f16")
    qformats.export(quantized, model, format="gguf:f16")
    # llama.cpp multiplies float16 weights with activations in float16.
    _check(source, quantized, base, model, tmp_path, length=128, count=1, rounding=1e-3)
