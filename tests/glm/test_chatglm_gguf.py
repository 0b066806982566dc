"""A packed ChatGLM folder as a GGUF file: the same values in other bytes, and llama.cpp computes with them."""

import numpy as np
import pytest
import torch
from models import chatglm, glm
from models.text import PROMPTS
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats


@pytest.mark.parametrize(("bits", "block"), [(4, "q4_0"), (8, "q8_0")])
def test_every_value_is_kept(bits, block, tmp_path):
    made = chatglm.model(rope_ratio=50, vocab_size=glm.SIZE, intermediate_size=96)
    reference = chatglm.save(made, tmp_path / "in", bits=bits, container="bin", shards=2)
    glm.tokenizer("chatglm2", tmp_path / "in")
    qformats.export(
        tmp_path / "in",
        tmp_path / "m.gguf",
        format=f"gguf:{block}",
        output_type="f16",
        token_embedding_type="f16",
        require_exact=True,
    )
    checkpoint = qformats.open(tmp_path / "m.gguf")
    for name, values in reference.state_dict().items():
        assert torch.equal(checkpoint.read(name), values), name
    formats = {tensor.format for name, tensor in checkpoint.tensors.items() if name.endswith("_proj.weight")}
    assert formats == {f"gguf:{block}"}
    reference.save_pretrained(tmp_path / "f32")
    with LlamaCpp(tmp_path / "m.gguf") as runtime:
        ids = runtime.tokenize("\n".join(PROMPTS))[:48]
        ours, theirs = runtime.log_probs(ids), hf.log_probs(hf.load(tmp_path / "f32"), ids)
    # llama.cpp rounds the activations to 8 bits; Kullback-Leibler divergence a token.
    divergence = (np.exp(theirs.astype(np.float64)) * (theirs - ours)).sum(-1).mean()
    assert divergence < 5e-3
