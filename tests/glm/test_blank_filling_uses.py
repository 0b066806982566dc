"""Comparing, calibrating and training ChatGLM-6B and GLM-130B: what needs more than one forward pass."""

from __future__ import annotations

import os

import pytest
import torch
from models import tokenizers
from models.glm_goldens import chatglm_6b, glm_130b
from oracles import REQUIRE
from torch.nn import functional

import qformats
from qformats.runtime import PackedLayer

try:
    import peft
except ImportError:
    if os.environ.get(REQUIRE) == "1":
        raise
    peft = None

TEXT = (
    "The keeper of the lighthouse counts 12 ships, then 34; nobody knows whose they are, or where they go.\n"
    * 60
)
PREFIX = {"chatglm-6b": [401, 404], "glm-130b": [701, 704]}
NAMES = list(PREFIX)
WINDOW = 32


def load(path, **options):
    return qformats.load_model(path, device="cpu", **options)


@pytest.fixture(scope="module", params=NAMES)
def packed(request, tmp_path_factory):
    """Name of a model, and a folder of it in int8 with a tokenizer, though not one of the published kind."""
    folder = tmp_path_factory.mktemp("models")
    if request.param == "chatglm-6b":
        path = chatglm_6b(folder / "int8", 8)
    else:
        # Files of ranks have no place for a tokenizer.
        qformats.export(glm_130b(folder / "ranks"), folder / "int8", format="bitsandbytes:int8")
        path = folder / "int8"
    assert tokenizers.build("gpt-2", path)["size"] <= 768
    (folder / "text.txt").write_text(TEXT)
    return request.param, path, folder / "text.txt"


def windows(name, path, count=None):
    """The text as the model reads it: every piece begins with a blank, and an answer that is the text."""
    ids = PREFIX[name] + qformats.load_tokenizer(path)(TEXT, add_special_tokens=False)["input_ids"]
    cut = torch.tensor(ids[: len(ids) // WINDOW * WINDOW]).view(-1, WINDOW)[:count]
    cut[:, :2] = torch.tensor(PREFIX[name])
    return cut


@torch.no_grad()
def test_compare_runs_over_texts_that_begin_with_a_blank(packed, tmp_path):
    name, path, text = packed
    qformats.export(path, tmp_path / "nf4", format="bitsandbytes:nf4")
    report = qformats.compare(path, tmp_path / "nf4", text=text, window=WINDOW, windows=3, speed=True)
    assert report.base.speed.tokens_per_second > 0
    ids = windows(name, path, 3)
    for found, folder in ((report.base, path), (report.models[0], tmp_path / "nf4")):
        logits = load(folder)(ids).logits[:, WINDOW // 2 : -1]
        loss = functional.cross_entropy(logits.double().flatten(0, 1), ids[:, WINDOW // 2 + 1 :].flatten())
        assert found.behaviour.perplexity.value == pytest.approx(float(loss.exp()), rel=1e-4)


@torch.no_grad()
def test_calibration_over_packed_weights(packed, tmp_path):
    name, path, text = packed
    options = {"calibration": str(text), "samples": "24", "sequence-length": str(WINDOW), "device": "cpu"}
    errors = {}
    ids = windows(name, path)
    expected = load(path)(ids).logits
    for quantizer in ("rtn", "gptq"):
        given = options if quantizer == "gptq" else None
        target = tmp_path / quantizer
        report = qformats.export(
            path, target, format="gptq:4bit-32g", quantizer=quantizer, quantizer_options=given
        )
        assert [t.format for t in report.tensors].count("gptq:4bit-32g") == 12
        errors[quantizer] = float((load(target)(ids).logits - expected).square().mean())
    assert errors["gptq"] < 0.8 * errors["rtn"], errors


@pytest.mark.skipif(peft is None, reason="peft is not installed: pip install 'qformats[peft]'")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_adapters_train_over_packed_weights(name, checkpointing, tmp_path):
    source = chatglm_6b(tmp_path / "in", 4) if name == "chatglm-6b" else glm_130b(tmp_path / "in", 4)
    mask, sop = PREFIX[name]
    prompt = torch.tensor([[11, 12, 13, mask, sop], [21, 22, 23, mask, sop]])
    answer = torch.tensor([[31, 32, 33, 34], [41, 42, 43, 44]])
    ids = torch.cat([prompt, answer], 1)
    labels = torch.cat([torch.full_like(prompt, -100), answer], 1)
    model = qformats.prepare_for_training(load(source), gradient_checkpointing=checkpointing)
    assert sum(isinstance(module, PackedLayer) for module in model.modules()) == 12
    torch.manual_seed(0)
    # PEFT knows the names of ChatGLM's layers.
    named = {} if name == "chatglm-6b" else {"target_modules": ["query_key_value", "dense_4h_to_h"]}
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **named)
    under = peft.get_peft_model(model, config).train()
    optimizer = torch.optim.AdamW([w for w in under.parameters() if w.requires_grad], lr=2e-2)
    losses = []
    for _ in range(12):
        loss = under(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0], losses
    under.eval()
    with torch.no_grad():
        trained = under(ids).logits
    # What it has learned is what it writes.
    written = under.generate(input_ids=prompt, max_new_tokens=4, do_sample=False)
    assert torch.equal(written, ids)

    under.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(load(source), tmp_path / "adapter").eval()
    with torch.no_grad():
        assert (again(ids).logits - trained).abs().max() < 1e-4
    for how in ({}, {"adapter": tmp_path / "adapter"}):
        adapter = how.get("adapter", under)
        target = tmp_path / f"merged-{len(how)}"
        qformats.merge_adapter(adapter, target, format="dense:f32", source=source)
        with torch.no_grad():
            assert (load(target)(ids).logits - trained).abs().max() < 1e-3
