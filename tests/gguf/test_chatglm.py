"""GLM and ChatGLM as GGUF: the numbers of Transformers in llama.cpp, and back, with q, k and v apart or as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import glm, tiny
from models.text import PROMPTS
from oracles import hf
from oracles.llama_cpp import LlamaCpp, LlamaCppError
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, UnsupportedModelError
from qformats_gguf.architectures import Architecture
from qformats_gguf.metadata import Metadata, ValueType, array, f32, string, u32
from qformats_gguf.reader import read

LOG_PROB = 1e-4
KL_EIGHT_BIT_ACTIVATIONS = 5e-3
ATTENTION = ("attn_q", "attn_k", "attn_v")


@pytest.fixture(scope="module", params=glm.GLM)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return glm.build(request.param, tmp_path_factory.mktemp("model") / request.param)


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def kl_divergence(log_p: np.ndarray, log_q: np.ndarray) -> float:
    return float((np.exp(log_p.astype(np.float64)) * (log_p - log_q)).sum(-1).mean())


def ids_of(runtime: LlamaCpp) -> list[int]:
    ids = runtime.tokenize("\n".join(PROMPTS) * 3)
    assert len(ids) >= 96
    return ids[:96]


# In llama.cpp


def test_float32_gives_the_numbers_of_transformers(model: Path, tmp_path: Path) -> None:
    qformats.export(model, tmp_path / "m.gguf", format="gguf:f32")
    reference = hf.load(model)
    with LlamaCpp(tmp_path / "m.gguf") as runtime:
        ids = ids_of(runtime)
        # Measured: 9e-6, with logits up to 6.
        ours, theirs = runtime.log_probs(ids), hf.log_probs(reference, ids)
        assert np.abs(ours - theirs).max() < LOG_PROB
        assert kl_divergence(theirs, ours) < 1e-6
        assert runtime.greedy(ids[:16], 24) == hf.greedy(reference, ids[:16], 24)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_quantized_weights_run_as_their_values(model: Path, kind: str, tmp_path: Path) -> None:
    qformats.export(model, tmp_path / "m.gguf", format=f"gguf:{kind}")
    qformats.export(tmp_path / "m.gguf", tmp_path / "dense", format="dense:f32")
    reference = hf.load(tmp_path / "dense")
    with LlamaCpp(tmp_path / "m.gguf") as runtime:
        ids = ids_of(runtime)
        assert kl_divergence(hf.log_probs(reference, ids), runtime.log_probs(ids)) < KL_EIGHT_BIT_ACTIVATIONS


@pytest.mark.parametrize(
    "change",
    [
        {"chatglm.rope.dimension_count": u32(16)},
        {"chatglm.rope.freq_base": f32(10000.0)},
        {"chatglm.attention.layer_norm_rms_epsilon": f32(0.1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_number_of_the_metadata_shows(change: Metadata, tmp_path: Path) -> None:
    """What the first test would not notice could be wrong: so change it, and see."""
    folder = glm.build("chatglm3-rope-ratio", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    write(tmp_path / "right.gguf", folder, state)
    write(tmp_path / "wrong.gguf", folder, state, change)
    ids = list(range(100, 196))
    with LlamaCpp(tmp_path / "right.gguf") as right, LlamaCpp(tmp_path / "wrong.gguf") as wrong:
        assert np.abs(right.logits(ids) - hf.logits(folder, ids)).max() < 1e-4
        assert np.abs(wrong.logits(ids) - right.logits(ids)).max() > 0.1


# Names, keys, and back


def test_folder_to_gguf_to_folder_keeps_weights_and_logits(model: Path, tmp_path: Path) -> None:
    qformats.export(model, tmp_path / "m.gguf", format="gguf:f32")
    qformats.export(tmp_path / "m.gguf", tmp_path / "back", format="dense:f32")
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert set(before) == set(after)
    for key, value in before.items():
        assert torch.equal(value, after[key]), key
    ids = list(range(3, 103))
    assert np.array_equal(hf.logits(model, ids), hf.logits(tmp_path / "back", ids))


def test_the_configuration_comes_back(model: Path, tmp_path: Path) -> None:
    from transformers import GlmConfig

    qformats.export(model, tmp_path / "m.gguf", format="gguf:q8_0")
    before, after = GlmConfig.from_pretrained(model), GlmConfig(**qformats.open(tmp_path / "m.gguf").config)
    for key in (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
        *("tie_word_embeddings", "attention_bias", "pad_token_id", "rope_parameters"),
    ):
        assert getattr(after, key) == getattr(before, key), key


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_gguf_to_folder_to_gguf_keeps_the_bytes(model: Path, kind: str, tmp_path: Path) -> None:
    qformats.export(model, tmp_path / "a.gguf", format=f"gguf:{kind}")
    qformats.export(tmp_path / "a.gguf", tmp_path / "folder", format="dense:f32")
    qformats.export(tmp_path / "folder", tmp_path / "b.gguf", format=f"gguf:{kind}")
    with read(tmp_path / "a.gguf") as one, read(tmp_path / "b.gguf") as other:
        assert set(one.tensors) == set(other.tensors)
        for name in one.tensors:
            assert np.array_equal(one.data(name), other.data(name)), name
        names = {"general.name", "general.size_label"}
        for key in one.metadata.keys() - names:
            assert repr(other.metadata[key]) == repr(one.metadata[key]), key


def test_names_are_those_of_upstream(model: Path) -> None:
    architecture = Architecture.from_config(config_of(model))
    upstream = gguf.get_tensor_name_map(gguf.MODEL_ARCH.CHATGLM, 2)
    names = list(load_file(model / "model.safetensors"))
    mapped = {name: architecture.map_tensor(name) for name in names}
    assert {name: m.gguf for name, m in mapped.items() if m} == {
        name: upstream.get_name(name, (".weight", ".bias")) for name in names
    }
    assert not any(m.permute for m in mapped.values() if m)
    assert {t.canonical for t in architecture.expected_tensors()} == set(names)


def test_metadata() -> None:
    """The values of ChatGLM2-6B, the types of upstream's converter."""
    config = {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "vocab_size": 65024,
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 28,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000, "partial_rotary_factor": 0.5},
    }
    expected = {
        "general.architecture": string("chatglm"),
        "general.type": string("model"),
        "general.name": string("ChatGLM2-6B"),
        "chatglm.block_count": u32(28),
        "chatglm.context_length": u32(32768),
        "chatglm.embedding_length": u32(4096),
        "chatglm.feed_forward_length": u32(13696),
        "chatglm.attention.head_count": u32(32),
        "chatglm.attention.head_count_kv": u32(2),
        "chatglm.attention.layer_norm_rms_epsilon": f32(1e-5),
        "chatglm.rope.dimension_count": u32(64),
        "chatglm.rope.freq_base": f32(500000.0),
        "general.quantization_version": u32(2),
    }
    assert Architecture.from_config(config).metadata(name="ChatGLM2-6B") == expected
    # Neither the old spelling of the base nor the default of the factor changes anything.
    old = {key: value for key, value in config.items() if key != "rope_parameters"} | {"rope_theta": 500000}
    assert Architecture.from_config(old).metadata(name="ChatGLM2-6B") == expected


# Fused attention, as upstream writes it from ChatGLM's own checkpoints


def fuse(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    block, _, suffix = name.partition(".attn_qkv.")
    prefix = f"model.layers.{block.removeprefix('blk.')}.self_attn."
    return torch.cat([state[f"{prefix}{part}_proj.{suffix}"] for part in "qkv"])


def write(
    path: Path,
    folder: Path,
    state: dict[str, torch.Tensor],
    change: Metadata | None = None,
    *,
    kind: str = "f32",
    both: bool = False,
    cut: int | None = None,
) -> None:
    """Write a file as upstream does, with gguf-py: names, keys and encoders are its own, q, k and v are one tensor."""
    config = config_of(folder)
    exported = path.with_suffix(".vocabulary.gguf")
    qformats.export(folder, exported, format="gguf:f32")
    with read(exported) as file:
        vocabulary = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    writer = gguf.GGUFWriter(path, "chatglm")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"] // 2)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    for key, value in (change or {}).items():
        writer.kv_data[0].pop(key)
        writer.add_key_value(key, value.data, gguf.GGUFValueType(int(value.type)))
    for key, value in vocabulary.items():
        item = None if value.item is None else gguf.GGUFValueType(int(value.item))
        data = value.data.tolist() if isinstance(value.data, np.ndarray) else value.data
        writer.add_key_value(key, data, gguf.GGUFValueType(int(value.type)), item)
    upstream = gguf.get_tensor_name_map(gguf.MODEL_ARCH.CHATGLM, config["num_hidden_layers"])
    tensors: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        mapped = upstream.get_name(name, (".weight", ".bias")) or name
        if both or not any(f".{part}." in mapped for part in ATTENTION):
            tensors[mapped] = value
        if ".attn_q." in mapped:
            fused = mapped.replace("attn_q", "attn_qkv")
            tensors[fused] = fuse(state, fused)[:cut]
    for name, value in tensors.items():
        number = gguf.GGMLQuantizationType[kind.upper() if value.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(value.numpy(), number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("name", ["chatglm2", "chatglm3-rope-ratio", "glm-plain"])
def test_fused_attention_is_read_apart(name: str, kind: str, tmp_path: Path) -> None:
    folder = glm.build(name, tmp_path / name)
    state = load_file(folder / "model.safetensors")
    write(tmp_path / "fused.gguf", folder, state, kind=kind)
    fused = qformats.open(tmp_path / "fused.gguf")
    assert set(fused.tensors) == set(state)
    assert fused.config["attention_bias"] is (name != "glm-plain")
    number = gguf.GGMLQuantizationType[kind.upper()]
    for key, value in state.items():
        expected = value.numpy()
        if value.ndim == 2:
            expected = gguf.dequantize(gguf.quantize(expected, number), number)
        assert np.array_equal(fused.read(key).numpy(), expected), key
    k = fused.tensors["model.layers.1.self_attn.k_proj.weight"]
    assert (k.shape, k.format) == ((32, 64), f"gguf:{kind}")
    assert k.nbytes == 32 * gguf.quant_shape_to_byte_shape((64,), number)[0]

    qformats.export(tmp_path / "fused.gguf", tmp_path / "dense", format="dense:f32")
    ids = list(range(100, 196))
    with LlamaCpp(tmp_path / "fused.gguf") as runtime:
        mean = kl_divergence(hf.log_probs(tmp_path / "dense", ids), runtime.log_probs(ids))
        assert mean < (1e-6 if kind == "f32" else KL_EIGHT_BIT_ACTIVATIONS)


def test_between_gguf_files_fused_attention_stays(tmp_path: Path) -> None:
    folder = glm.build("chatglm2", tmp_path / "model")
    write(tmp_path / "fused.gguf", folder, load_file(folder / "model.safetensors"))
    qformats.export(tmp_path / "fused.gguf", tmp_path / "out.gguf", format="gguf:q8_0")
    with read(tmp_path / "out.gguf") as file:
        assert file.tensors["blk.0.attn_qkv.weight"].type.name == "q8_0"
        assert "blk.0.attn_q.weight" not in file.tensors
    with LlamaCpp(tmp_path / "out.gguf") as runtime:
        assert runtime.n_vocab == glm.SIZE


def test_fused_and_apart_at_once_is_refused(tmp_path: Path) -> None:
    folder = glm.build("chatglm2", tmp_path / "model")
    write(tmp_path / "both.gguf", folder, load_file(folder / "model.safetensors"), both=True)
    with pytest.raises(
        CheckpointError, match=r"both\.gguf: tensor 'blk\.0\.attn_qkv\.bias': is stored twice"
    ):
        qformats.open(tmp_path / "both.gguf")
    with pytest.raises(LlamaCppError):
        LlamaCpp(tmp_path / "both.gguf")


def test_fused_attention_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = glm.build("glm-plain", tmp_path / "model")
    write(tmp_path / "cut.gguf", folder, load_file(folder / "model.safetensors"), cut=100)
    expected = r"tensor 'blk\.0\.attn_qkv\.weight': shape \(100, 64\); expected \(128, 64\)"
    with pytest.raises(CheckpointError, match=expected):
        qformats.open(tmp_path / "cut.gguf")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    folder = glm.build("chatglm2", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    architecture = Architecture.from_config(config_of(folder))
    names = [m.gguf for name in state if (m := architecture.map_tensor(name)) and ".attn_" not in m.gguf]
    names += ["blk.0.attn_qkv.weight", "blk.0.attn_qkv.bias", "blk.0.attn_output.weight"]
    assert {t.gguf for t in architecture.missing(names)} == {
        "blk.1.attn_norm.weight",
        "blk.0.attn_norm.weight",
        "blk.1.attn_output.weight",
        *(f"blk.1.{part}.{suffix}" for part in ATTENTION for suffix in ("weight", "bias")),
    }


def test_fused_attention_of_other_architectures(tmp_path: Path) -> None:
    """With upstream's --fuse-qkv; the rows of a llama's q and k are reordered before."""
    folder = tiny.build("llama-bias", tmp_path / "model")
    qformats.export(folder, tmp_path / "apart.gguf", format="gguf:f32")
    writer = gguf.GGUFWriter(tmp_path / "fused.gguf", "llama")
    with read(tmp_path / "apart.gguf") as file:
        for key, value in file.metadata.items():
            if key != "general.architecture":
                item = None if value.item is None else gguf.GGUFValueType(int(value.item))
                data = value.data.tolist() if isinstance(value.data, np.ndarray) else value.data
                writer.add_key_value(key, data, gguf.GGUFValueType(int(value.type)), item)
        tensors = {
            name: file.data(name).view(np.float32).reshape(t.shape) for name, t in file.tensors.items()
        }
        for name, value in tensors.items():
            if ".attn_q." in name:
                parts = [tensors[name.replace("attn_q", part)] for part in ATTENTION]
                writer.add_tensor(name.replace("attn_q", "attn_qkv"), np.concatenate(parts))
            elif ".attn_k." not in name and ".attn_v." not in name:
                writer.add_tensor(name, value.copy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    qformats.export(tmp_path / "fused.gguf", tmp_path / "back", format="dense:f32")
    before, after = (
        load_file(folder / "model.safetensors"),
        load_file(tmp_path / "back" / "model.safetensors"),
    )
    assert set(before) == set(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    ids = list(range(3, 67))
    with LlamaCpp(tmp_path / "fused.gguf") as runtime:
        assert np.abs(runtime.logits(ids) - hf.logits(folder, ids)).max() < 1e-4


# From ChatGLM's own folders


@pytest.mark.parametrize(
    ("stored", "kind"), [("dense:f32", "f32"), ("glm:int4", "q4_0"), ("glm:int8", "q8_0")]
)
def test_a_folder_as_chatglm_has_it(stored: str, kind: str, tmp_path: Path) -> None:
    """What its code would read becomes a file of the same values, block for block where rows were quantized."""
    native, own = glm.build("chatglm3-rope-ratio", tmp_path / "native"), tmp_path / "own"
    qformats.export(native, own, format=stored, container="chatglm")
    assert config_of(own)["model_type"] == "chatglm"
    qformats.export(own, tmp_path / "m.gguf", format=f"gguf:{kind}", require_exact=True)
    qformats.export(own, tmp_path / "dense", format="dense:f32")
    reference = hf.load(tmp_path / "dense")
    with LlamaCpp(tmp_path / "m.gguf") as runtime:
        ids = ids_of(runtime)
        ours, theirs = runtime.log_probs(ids), hf.log_probs(reference, ids)
        assert kl_divergence(theirs, ours) < (1e-6 if kind == "f32" else KL_EIGHT_BIT_ACTIVATIONS)
        assert runtime.special_ids()["eot"] == glm.PIECES + 6


# What is refused


CHATGLM2: dict[str, Any] = {
    "model_type": "glm",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 32}, r"head_dim: found 32.*hidden_size / num_attention_heads \(16\)"),
        ({"head_dim": None, "hidden_act": "gelu"}, "hidden_act: found 'gelu'"),
        ({"is_causal": False}, "is_causal"),
        ({"partial_rotary_factor": 0.45}, r"partial_rotary_factor: found 0\.45.*even number of the 16"),
        ({"partial_rotary_factor": 0.05}, r"partial_rotary_factor: found 0\.05"),
        ({"partial_rotary_factor": 1e308}, r"partial_rotary_factor: found 1e\+308"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type: found 'dynamic'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "rope_type: found 'llama3'; expected one of default, linear, yarn",
        ),
        ({"model_type": "glm_moe_dsa"}, "model_type: found 'glm_moe_dsa'"),
        ({"model_type": "chatglm"}, "model_type: found 'chatglm'"),
        ({"architectures": ["GlmForSequenceClassification"]}, "GlmForSequenceClassification"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        Architecture.from_config(CHATGLM2 | change)


def test_llama_cpp_loads_no_other_head_size(tmp_path: Path) -> None:
    folder = glm.build("chatglm2", tmp_path / "model", head_dim=32)
    with pytest.warns(UserWarning, match="head_dim = 32 was ignored"):
        qformats.export(folder, tmp_path / "m.gguf", format="gguf:f32", options={"ignore-unsupported": "yes"})
    with pytest.raises(LlamaCppError, match="wrong shape"):
        LlamaCpp(tmp_path / "m.gguf")


def test_a_head_size_that_is_not_said_is_that_of_transformers() -> None:
    config = {key: value for key, value in CHATGLM2.items() if key != "head_dim"}
    with pytest.raises(UnsupportedModelError, match="head_dim: found 128"):
        Architecture.from_config(config)


def test_the_rotated_part_that_is_not_said_is_that_of_transformers() -> None:
    from transformers import GlmConfig

    made = Architecture.from_config(CHATGLM2).config["rope_parameters"]
    assert made == GlmConfig(**CHATGLM2).rope_parameters


def test_other_architectures_still_rotate_whole_heads() -> None:
    with pytest.raises(UnsupportedModelError, match=r"partial_rotary_factor: found 0\.5; expected 1\.0"):
        Architecture.from_config(CHATGLM2 | {"model_type": "llama", "partial_rotary_factor": 0.5})


def back(**changes: Any) -> Architecture:
    metadata = Architecture.from_config(CHATGLM2).metadata(name="m")
    metadata["tokenizer.ggml.tokens"] = array(ValueType.STRING, [f"<{i}>" for i in range(96)])
    names = [t.gguf for t in Architecture.from_config(CHATGLM2).expected_tensors()]
    metadata |= {"chatglm." + key.replace("__", "."): value for key, value in changes.items()}
    return Architecture.from_metadata({k: v for k, v in metadata.items() if v is not None}, names)


@pytest.mark.parametrize(
    ("rotated", "error"),
    [
        (u32(7), r"chatglm\.rope\.dimension_count = 7.*even number up to 16"),
        (u32(18), r"dimension_count = 18"),
        (u32(0), r"dimension_count: found 0"),
        (string("8"), r"dimension_count: found '8'"),
    ],
)
def test_impossible_rotary_sizes_are_refused(rotated: Any, error: str) -> None:
    with pytest.raises(CheckpointError, match=error):
        back(rope__dimension_count=rotated)


def test_without_a_rotary_size_whole_heads_are_rotated() -> None:
    assert back(rope__dimension_count=None).config["rope_parameters"]["partial_rotary_factor"] == 1
    assert back().config["rope_parameters"]["partial_rotary_factor"] == 0.5


@given(st.integers(1, 512), st.data())
def test_the_rotated_part_comes_back_as_transformers_counts_it(head_dim: int, data: st.DataObject) -> None:
    head_dim *= 2
    rotated = 2 * data.draw(st.integers(1, head_dim // 2))
    sizes = {"attention__key_length": u32(head_dim), "attention__value_length": u32(head_dim)}
    config = back(rope__dimension_count=u32(rotated), **sizes).config
    assert int(head_dim * config["rope_parameters"]["partial_rotary_factor"]) == rotated


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("model.layers.1.mlp.gate_up_proj.weight", (96, 64)),
        ("model.layers.0.self_attn.k_proj.bias", (64,)),
        ("model.layers.0.self_attn.q_proj.weight", (64, 32)),
    ],
)
def test_a_folder_whose_tensor_has_another_shape(tensor: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    folder = glm.build("chatglm2", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state[tensor] = torch.zeros(shape)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"tensor '{tensor}': shape \({shape[0]},.*expected \("):
        qformats.export(folder, tmp_path / "out.gguf", format="gguf:q8_0")


def test_a_bias_too_many_is_refused(tmp_path: Path) -> None:
    folder = glm.build("glm-plain", tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    state["model.layers.0.self_attn.o_proj.bias"] = torch.zeros(64)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"o_proj\.bias': unknown"):
        qformats.export(folder, tmp_path / "out.gguf", format="gguf:q8_0")
