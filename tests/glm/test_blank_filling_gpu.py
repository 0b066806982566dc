"""ChatGLM-6B and GLM-130B on a GPU: packed weights run in the shared kernels, in float16 and in float32."""

from __future__ import annotations

import pytest
import torch
from models.glm_goldens import chatglm_6b, glm_130b, golden

import qformats
from qformats.runtime.decoding import loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

FILES = {"chatglm-6b": (chatglm_6b, ""), "glm-130b": (glm_130b, "gmask.")}


@pytest.mark.filterwarnings("error:tokens are computed one operation at a time")
@pytest.mark.parametrize("bits", [0, 8, 4])
@pytest.mark.parametrize("name", FILES)
def test_logits_and_greedy_texts(name, bits, tmp_path):
    make, part = FILES[name]
    known = golden(name)
    path, ids = make(tmp_path / "in", bits), known[f"{part}prefill.input_ids"].cuda()
    expected = known[f"int{bits}.{part}prefill.logits" if bits else f"{part}prefill.logits"]
    off = {}
    for dtype in ("f32", "f16"):
        model = qformats.load_model(path, device="cuda", dtype=dtype)
        assert len(model.qformats_report.weights) == (12 if bits else 0)
        with torch.no_grad():
            off[dtype] = float((model(ids).logits.float().cpu() - expected).abs().max())
        if not bits and dtype == "f32":
            found = model.generate(ids, max_new_tokens=8, do_sample=False)
            assert torch.equal(found[:, ids.shape[1] :].cpu(), known[f"{part}greedy.tokens"])
        settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
        # By captured steps, and by Transformers' own loop.
        found, own = model.generate(ids, **settings), type(model).generate(model, ids, **settings)
        assert loop._sessions[model].graph is not None
        if dtype == "f32":
            assert torch.equal(found, own)
    # Measured on an H200 with torch 2.11 and Transformers 5.17: 7e-6 and 0.012 for the small model, 3.4e-5 and 0.094
    # for the large one, whose logits are three times as large.
    assert off["f32"] < 1e-4, off
    assert off["f16"] < (0.05 if name == "chatglm-6b" else 0.3), off


@pytest.mark.parametrize("name", FILES)
def test_a_padded_batch_on_a_gpu(name, tmp_path):
    make, _ = FILES[name]
    model = qformats.load_model(make(tmp_path / "in", 4), device="cuda", dtype="f16")
    config, pad = model.config, model.config.pad_token_id
    text = [31, 32, config.mask_token_id, 34, config.bos_token_id]
    batch = torch.tensor([[pad] * 3 + text, [41, 42, 43, *text]], device="cuda")
    keep = torch.tensor([[0] * 3 + [1] * 5, [1] * 8], device="cuda")
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    found = model.generate(batch, attention_mask=keep, **options)
    alone = model.generate(batch[:1, 3:], **options)
    assert torch.equal(found.sequences[0, 8:], alone.sequences[0, 5:])
    assert (found.logits[0][0] - alone.logits[0][0]).abs().max() < 0.05
