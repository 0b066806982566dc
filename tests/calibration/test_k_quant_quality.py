"""K-quant mixes of the demo model by GPTQ: closer to the model than files of the same size made with an imatrix."""

import json

import pytest
import torch
from oracles import hf

import qformats

WINDOWS, WINDOW = 16, 512
LIMITS = {"q4_k_m": 0.0060, "q3_k_m": 0.0240}
"""Mean KL divergence in nats a token; by llama.cpp's rule with an imatrix it is 0.0083 and 0.0337."""


@pytest.fixture(scope="module")
def model():
    return hf.load(qformats.open("demo").path)


@pytest.fixture(scope="module")
def ids():
    demo = qformats.open("demo").path
    text = (demo / "heldout.txt").read_text()
    encoded = hf.tokenizer_json(demo).encode(text[: 40 * WINDOWS * WINDOW], add_special_tokens=False).ids
    return torch.tensor(encoded[: WINDOWS * WINDOW]).view(WINDOWS, WINDOW)


@pytest.fixture(scope="module")
def before(model, ids):
    return _log_probs(model, ids)


@pytest.fixture(scope="module")
def importance(tmp_path_factory):
    path = tmp_path_factory.mktemp("imatrix") / "imatrix.gguf"
    qformats.imatrix("demo", path, chunks=48, device="cpu")
    return path


def _log_probs(model, ids):
    with torch.inference_mode():
        return torch.cat([torch.log_softmax(model(part).logits, -1) for part in ids.split(4)])


def _divergence(model, ids, before, file):
    written = qformats.open(file)
    kept = {name: value.data for name, value in model.named_parameters()}
    try:
        for name, value in model.named_parameters():
            value.data = written.read(name).reshape(value.shape)
        after = _log_probs(model, ids)
    finally:
        for name, value in model.named_parameters():
            value.data = kept[name]
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("mix", LIMITS)
def test_calibrated_mixes_beat_an_imatrix_of_the_same_size(mix, model, ids, before, importance, tmp_path):
    files = {name: tmp_path / f"{name}.gguf" for name in ("weighed", "calibrated")}
    qformats.export("demo", files["weighed"], format=f"gguf:{mix}", imatrix=importance)
    log = tmp_path / "log.jsonl"
    report = qformats.export(
        "demo",
        files["calibrated"],
        format=f"gguf:{mix}",
        quantizer="gptq",
        quantizer_options={"samples": "64", "device": "cpu", "log": str(log)},
    )
    found, theirs = (
        {name: (tensor.format, tensor.nbytes) for name, tensor in qformats.open(file).tensors.items()}
        for file in (files["calibrated"], files["weighed"])
    )
    assert found == theirs
    # Every matrix is calibrated in the type that the mix gives it; the embedding, which has no inputs, is not logged.
    logged = {line["layer"]: line["format"] for line in map(json.loads, log.read_text().splitlines())}
    quantized = {name: kind for name, (kind, _) in found.items() if kind != "gguf:f32"}
    assert logged == {name: kind for name, kind in quantized.items() if "embed_tokens" not in name}
    assert len(set(quantized.values())) >= 2
    assert report.quantizer == "gptq"
    weighed, calibrated = (_divergence(model, ids, before, files[name]) for name in files)
    assert calibrated < LIMITS[mix]
    assert calibrated < 0.75 * weighed
