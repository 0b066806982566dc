"""The oracles judged against each other, before anything of qformats is judged by them.

A GGUF file is written here by hand with gguf-py's writer: names, permutation and metadata come from the
format's description, not from qformats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import sentencepiece
from models import smollm2, tiny, tokenizers
from models.text import CHATML, CORPUS, PROMPTS
from oracles import ggml, hf
from oracles.llama_cpp import LlamaCpp, LlamaCppError

HEADS, KV_HEADS, LAYERS = 4, 2, 2
POSITIONS = 96
LOGITS = 1e-4

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rotate-half order to consecutive pairs, within each head."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(folder: Path, path: Path, *, permute: bool = True, rope_base: float = 50000.0) -> None:
    from safetensors.numpy import load_file

    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"]: token["special"] for token in tokenizer["added_tokens"]}
    tokens = dict(tokenizer["model"]["vocab"]) | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    ordered = sorted(tokens, key=tokens.__getitem__)
    types = [{True: 3, False: 4, None: 1}[special.get(i)] for i in range(len(ordered))]

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope_base)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(ordered)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)

    weights = load_file(folder / "model.safetensors")
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    writer.add_tensor("output.weight", weights["lm_head.weight"])
    for layer in range(LAYERS):
        for theirs, ours in NAMES.items():
            tensor = weights[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(ours)
            if heads and permute:
                tensor = interleave(tensor, heads)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="module")
def path(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "llama.gguf"
    write_gguf(folder, path)
    return path


@pytest.fixture(scope="module")
def llama_cpp(path: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(path) as model:
        yield model


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[int]:
    return list(hf.tokenizer_json(folder).encode(CORPUS).ids[:POSITIONS])


def test_logits_agree_with_transformers(llama_cpp: LlamaCpp, folder: Path, ids: list[int]) -> None:
    ours, theirs = llama_cpp.logits(ids), hf.logits(folder, ids)
    assert ours.shape == theirs.shape == (POSITIONS, llama_cpp.n_vocab)
    assert theirs.std() > 1, "nearly equal logits would hide every mistake"
    assert np.abs(ours - theirs).max() < LOGITS
    assert np.abs(llama_cpp.log_probs(ids) - hf.log_probs(folder, ids)).max() < LOGITS


def test_log_probs_are_normalized(llama_cpp: LlamaCpp, ids: list[int]) -> None:
    sums = np.exp(llama_cpp.log_probs(ids).astype(np.float64)).sum(axis=1)
    assert np.abs(sums - 1).max() < 1e-5


def test_greedy_continuation_agrees_with_transformers(
    llama_cpp: LlamaCpp, folder: Path, ids: list[int]
) -> None:
    assert llama_cpp.greedy(ids[:16], 32) == hf.greedy(hf.load(folder), ids[:16], 32)


def test_a_second_call_starts_from_nothing(llama_cpp: LlamaCpp, ids: list[int]) -> None:
    first = llama_cpp.logits(ids)
    llama_cpp.greedy(ids[:5], 3)
    assert np.array_equal(llama_cpp.logits(ids), first)


@pytest.mark.parametrize(
    "mistake", [{"permute": False}, {"rope_base": 10000.0}], ids=["permutation", "rope base"]
)
def test_a_mistake_in_the_file_shows(
    mistake: dict[str, float], folder: Path, ids: list[int], tmp_path: Path
) -> None:
    write_gguf(folder, tmp_path / "wrong.gguf", **mistake)
    with LlamaCpp(tmp_path / "wrong.gguf") as model:
        assert np.abs(model.logits(ids) - hf.logits(folder, ids)).max() > 1000 * LOGITS


def test_a_16_bit_cache_is_what_the_oracle_avoids(path: Path, folder: Path, ids: list[int]) -> None:
    with LlamaCpp(path, kv_type="f16") as model:
        assert np.abs(model.logits(ids) - hf.logits(folder, ids)).max() > LOGITS


@pytest.mark.parametrize("text", [*PROMPTS, "<|im_start|>user\nHello <note> you<|im_end|>\n"])
def test_tokenizing_agrees(llama_cpp: LlamaCpp, folder: Path, text: str) -> None:
    assert llama_cpp.tokenize(text) == hf.tokenizer_json(folder).encode(text).ids
    assert llama_cpp.detokenize(llama_cpp.tokenize(text)) == text


def test_special_tokens_as_plain_text(llama_cpp: LlamaCpp) -> None:
    parsed, plain = llama_cpp.tokenize("<|im_end|>"), llama_cpp.tokenize("<|im_end|>", parse_special=False)
    assert parsed == [2]
    assert len(plain) > 1
    assert llama_cpp.detokenize(plain) == "<|im_end|>"


def test_what_a_file_says_about_itself(path: Path, llama_cpp: LlamaCpp) -> None:
    with LlamaCpp(path, vocab_only=True) as vocab:
        assert vocab.metadata() == llama_cpp.metadata()
        assert vocab.metadata()["llama.attention.head_count_kv"] == "2"
        assert vocab.chat_template() == CHATML
        assert vocab.chat_template("tool_use") is None
        assert vocab.vocab_type == "bpe"
        ids = vocab.special_ids()
        assert (ids["bos"], ids["eos"], ids["add_bos"], ids["add_eos"]) == (1, 2, False, False)
        assert vocab.token(1)[0] == b"<|im_start|>"
        with pytest.raises(LlamaCppError, match="no weights are loaded"):
            vocab.logits([1])


def test_a_file_that_does_not_load_says_why(path: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        LlamaCppError, match=r"(?s)truncated\.gguf: llama\.cpp does not load.*not within the file"
    ):
        LlamaCpp(truncated)


def test_ids_and_positions_outside_are_refused(llama_cpp: LlamaCpp) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        llama_cpp.logits([llama_cpp.n_vocab])
    with pytest.raises(ValueError, match="set n_ctx"):
        llama_cpp.logits([1] * (llama_cpp.n_ctx + 1))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "MXFP4"])
def test_ggml_and_gguf_py_write_the_same_bytes(name: str) -> None:
    weights = np.random.default_rng(0).standard_normal((7, 512), np.float32)
    kind = gguf.GGMLQuantizationType[name]
    packed = ggml.quantize(name, weights)
    assert np.array_equal(packed, gguf.quants.quantize(weights, kind).view(np.uint8))
    assert ggml.validate(name, packed)


@pytest.mark.parametrize(
    "name", ["Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS"]
)
def test_ggml_and_gguf_py_read_the_same_values(name: str) -> None:
    rng = np.random.default_rng(1)
    packed = ggml.quantize(name, rng.standard_normal((5, 512), np.float32), rng.random(512, np.float32) + 0.1)
    values = ggml.dequantize(name, packed)
    assert values.shape == (5, 512)
    assert np.array_equal(values, gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name]))


def test_an_imatrix_changes_the_bytes_and_is_demanded_where_ggml_would_abort() -> None:
    weights = np.random.default_rng(2).standard_normal((2, 256), np.float32)
    importance = np.linspace(0.1, 10, 256, dtype=np.float32)
    assert not np.array_equal(ggml.quantize("q4_k", weights), ggml.quantize("q4_k", weights, importance))
    with pytest.raises(ValueError, match="needs an imatrix"):
        ggml.quantize("iq2_xxs", weights)
    with pytest.raises(ValueError, match="no multiple of the block"):
        ggml.quantize("q4_k", weights[:, :100])


def test_ggml_refuses_an_infinite_scale(capfd: pytest.CaptureFixture[str]) -> None:
    packed = ggml.quantize("q8_0", np.ones((1, 32), np.float32))
    packed[0, :2] = np.frombuffer(np.float16(np.inf).tobytes(), np.uint8)
    assert not ggml.validate("q8_0", packed)
    assert "inf" in capfd.readouterr().err


@pytest.mark.parametrize("name", sorted(tiny.TINY))
def test_every_tiny_model_is_the_same_twice_and_not_flat(name: str, tmp_path: Path) -> None:
    first, second = (tiny.build(name, tmp_path / part) for part in ("first", "second"))
    files = sorted(file.name for file in first.iterdir())
    assert files == sorted(file.name for file in second.iterdir())
    assert [file for file in files if (first / file).read_bytes() != (second / file).read_bytes()] == []
    ids = hf.tokenizer_json(first).encode(CORPUS).ids[:32]
    assert hf.logits(first, ids).std() > 1


@pytest.mark.parametrize("options", [{"bin_shards": 1}, {"bin_shards": 3}, {"max_shard_size": "100KB"}])
def test_files_of_other_kinds_hold_the_same_model(
    options: dict[str, int | str], folder: Path, tmp_path: Path
) -> None:
    other = tiny.build("llama", tmp_path / "other", legacy_config=True, **options)
    assert not (other / "model.safetensors").exists()
    ids = list(range(64))
    assert np.array_equal(hf.logits(other, ids), hf.logits(folder, ids))


@pytest.mark.parametrize("text", [text for text in PROMPTS if "<" not in text])
def test_the_llama_2_style_tokenizer_json_is_its_sentencepiece_model(text: str, tmp_path: Path) -> None:
    tokenizers.build("llama-spm", tmp_path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert hf.tokenizer_json(tmp_path).encode(text).ids == [1, *processor.encode(text)]


@pytest.mark.model
def test_the_real_model_runs() -> None:
    with LlamaCpp(smollm2.path(), n_ctx=64) as model:
        text = model.detokenize(model.greedy(model.tokenize("The capital of France is"), 1))
        assert text == " Paris"
