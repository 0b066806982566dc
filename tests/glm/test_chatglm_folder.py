"""ChatGLM2-like folders, read as Transformers' own class, and written as their code reads them."""

import json

import pytest
import torch
from models import chatglm
from oracles import hf
from safetensors.torch import load_file, save_file

import qformats
from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError

IDS = [5, 17, 90, 3, 3, 44, 61, 8, 0, 95, 33, 12, 70, 2, 51]


@pytest.fixture(scope="module")
def model():
    return chatglm.model(rope_ratio=50)


def _logits(model):
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float()


def _read_as(checkpoint, reference):
    state = reference.state_dict()
    assert set(checkpoint.tensors) == set(state)
    for name, values in state.items():
        assert torch.equal(checkpoint.read(name), values), name


@pytest.mark.parametrize(
    "kind",
    [
        {"bits": 0},
        {"bits": 0, "container": "bin", "shards": 3, "dtype": "bfloat16"},
        {"bits": 4, "container": "bin"},
        {"bits": 4, "shards": 4},
        {"bits": 4, "dtype": "bfloat16", "declare": False},
        {"bits": 8, "container": "bin", "shards": 2, "declare": False},
        {"bits": 8, "dtype": "float32"},
        {"bits": 4, "interleaved": True},
    ],
    ids=str,
)
def test_reads_and_computes_what_the_folder_holds(kind, tmp_path):
    made = chatglm.model(
        rope_ratio=1.5,
        num_key_value_heads=4 if kind.get("interleaved") else 2,
        dtype=kind.get("dtype", "float16"),
    )
    reference = chatglm.save(made, tmp_path / "in", **kind)
    checkpoint = qformats.open(tmp_path / "in")
    assert checkpoint.container == "chatglm"
    assert checkpoint.architecture == "glm"
    suffix = {"float16": "", "bfloat16": "-bf16", "float32": "-f32"}[kind.get("dtype", "float16")]
    formats = {
        tensor.format for name, tensor in checkpoint.tensors.items() if "proj" in name and "bias" not in name
    }
    assert formats == ({f"glm:int{kind['bits']}{suffix}"} if kind["bits"] else formats)
    _read_as(checkpoint, reference)
    qformats.export(checkpoint, tmp_path / "out", format="dense:f32")
    assert torch.equal(_logits(hf.load(tmp_path / "out")), _logits(reference))


def test_the_native_configuration(model, tmp_path):
    chatglm.save(model, tmp_path / "in", bits=4)
    config = qformats.open(tmp_path / "in").config
    assert config["model_type"] == "glm"
    assert config["rope_parameters"] == {
        "rope_theta": 500000.0,
        "rope_type": "default",
        "partial_rotary_factor": 0.5,
    }
    assert config["intermediate_size"] == 88
    assert config["num_key_value_heads"] == 2
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, 2)
    # Nothing that would make Transformers run the repository's code, or look for quantized weights.
    assert not {"auto_map", "quantization_bit"} & config.keys()


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_written_are_those_of_the_rule(bits, model, tmp_path):
    """Quantized here from the plain folder, tensor for tensor what the transcription of upstream's rule gives."""
    chatglm.save(model, tmp_path / "plain")
    chatglm.save(model, tmp_path / "expected", bits=bits)
    report = qformats.export(tmp_path / "plain", tmp_path / "out", format=f"glm:int{bits}")
    assert report.format == f"glm:int{bits}"
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        assert torch.equal(found[name], values), name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == json.loads((tmp_path / "expected" / "config.json").read_text())
    code = "modeling_chatglm.py"
    assert (tmp_path / "out" / code).read_bytes() == (tmp_path / "plain" / code).read_bytes()


def test_what_is_quantized_already_is_copied(model, tmp_path):
    chatglm.save(model, tmp_path / "in", bits=4, container="bin", shards=2)
    report = qformats.export(tmp_path / "in", tmp_path / "out", format="glm:int4", require_exact=True)
    assert report.nbytes == report.source_nbytes
    chatglm.save(model, tmp_path / "same", bits=4)
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "same"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_native_folder_becomes_a_chatglm_folder(model, tmp_path):
    model.half().save_pretrained(tmp_path / "native")
    model.float()
    qformats.export(tmp_path / "native", tmp_path / "out", format="glm:int4", container="chatglm")
    expected = chatglm.save(model, tmp_path / "expected", bits=4)
    found = load_file(tmp_path / "out" / "model.safetensors")
    wanted = load_file(tmp_path / "expected" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert torch.equal(found[name], values), name
    declared = json.loads((tmp_path / "out" / "config.json").read_text())
    known = json.loads((tmp_path / "expected" / "config.json").read_text())
    del known["auto_map"]
    assert {name: declared.get(name) for name in known} == known
    back = qformats.open(tmp_path / "out")
    _read_as(back, expected)


@pytest.mark.parametrize("head", [False, True])
def test_a_native_folder_without_its_embedding(model, tmp_path, head):
    model.half().save_pretrained(tmp_path / "native")
    model.float()
    file = tmp_path / "native" / "model.safetensors"
    left = load_file(file)
    del left["model.embed_tokens.weight"]
    if not head:
        del left["lm_head.weight"]
    save_file(left, file)
    with pytest.raises(CheckpointError, match=r"native: tensor 'model.embed_tokens.weight': is missing"):
        qformats.export(tmp_path / "native", tmp_path / "out", format="glm:int4", container="chatglm")
    assert not (tmp_path / "out").exists()


def test_plain_numbers_in_a_chatglm_folder(model, tmp_path):
    reference = chatglm.save(model, tmp_path / "in", bits=8)
    qformats.export(tmp_path / "in", tmp_path / "out", format="dense:f32", container="chatglm")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_bit" not in config
    assert config["torch_dtype"] == "float32"
    _read_as(qformats.open(tmp_path / "out"), reference)


def test_a_native_folder_in_the_same_numbers(model, tmp_path):
    """The four packed matrices become seven, cut on the bytes; Transformers' class with qformats' fields."""
    reference = chatglm.save(model, tmp_path / "in", bits=4)
    qformats.export(
        tmp_path / "in", tmp_path / "out", format="glm:int4", container="huggingface", require_exact=True
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "glm:int4"
    checkpoint = qformats.open(tmp_path / "out")
    assert checkpoint.container == "huggingface"
    assert checkpoint.tensors["model.layers.0.self_attn.k_proj.weight"].format == "glm:int4"
    _read_as(checkpoint, reference)
    # And back again: three cut matrices are one, byte for byte.
    qformats.export(
        tmp_path / "out", tmp_path / "back", format="glm:int4", container="chatglm", require_exact=True
    )
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("back", "in"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_when_written(model, tmp_path):
    reference = chatglm.save(model, tmp_path / "in")
    qformats.export(
        tmp_path / "in", tmp_path / "out", format="glm:int8-bf16", options={"max-shard-size": "20KB"}
    )
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    checkpoint = qformats.open(tmp_path / "out")
    assert checkpoint.tensors["model.layers.1.mlp.down_proj.weight"].format == "glm:int8-bf16"
    assert set(checkpoint.tensors) == set(reference.state_dict())


def test_only_what_chatglms_code_quantizes_is_quantized(model, tmp_path):
    chatglm.save(model, tmp_path / "in")
    for types in ({"mlp.dense_h_to_4h": "dense:f16"}, {"output_layer": "glm:int4"}):
        with pytest.raises(ConfigError, match="ChatGLM's code expects the four linear layers"):
            qformats.export(tmp_path / "in", tmp_path / "out", format="glm:int4", tensor_types=types)
        assert not (tmp_path / "out").exists()


def test_models_that_chatglms_code_cannot_compute(model, tmp_path):
    model.save_pretrained(tmp_path / "in")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    for changes, message in (
        ({"model_type": "llama"}, "model_type"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}},
            "partial",
        ),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ):
        (tmp_path / "in" / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(UnsupportedModelError, match=message):
            qformats.export(tmp_path / "in", tmp_path / "out", format="glm:int4", container="chatglm")


def test_a_native_folder_with_tied_embeddings_and_no_biases(tmp_path):
    made = chatglm.model(rope_ratio=3, tie_word_embeddings=True, attention_bias=False)
    made.save_pretrained(tmp_path / "native")
    qformats.export(tmp_path / "native", tmp_path / "out", format="dense:f32", container="chatglm")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    embedding = stored["transformer.embedding.word_embeddings.weight"]
    assert torch.equal(stored["transformer.output_layer.weight"], embedding)
    qformats.export(tmp_path / "out", tmp_path / "back", format="dense:f32", container="huggingface")
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["attention_bias"], config["tie_word_embeddings"]) == (False, False)
    assert torch.equal(_logits(hf.load(tmp_path / "back")), _logits(made))


def test_a_native_folder_that_is_not_complete(model, tmp_path):
    model.save_pretrained(tmp_path / "native")
    file = tmp_path / "native" / "model.safetensors"
    whole = load_file(file)
    for change, error, message in (
        (("model.layers.1.self_attn.k_proj.weight", None), CheckpointError, "k_proj.weight'?: is missing"),
        (
            ("model.layers.1.post_mlp_layernorm.weight", torch.ones(64)),
            UnsupportedModelError,
            "post_mlp_layernorm",
        ),
    ):
        name, value = change
        tensors = {key: values for key, values in whole.items() if key != name}
        save_file(tensors if value is None else tensors | {name: value}, file, metadata={"format": "pt"})
        with pytest.raises(error, match=message):
            qformats.export(tmp_path / "native", tmp_path / "out", format="glm:int4", container="chatglm")
        assert not (tmp_path / "out").exists()
