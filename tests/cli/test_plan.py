"""``qformats inspect --plan``: bytes and memory from a configuration alone."""

import json

import pytest
from cli.command import call
from models import tiny

import qformats

LLAMA_13B = {
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float16",
    "tie_word_embeddings": False,
}
CHATGLM2 = {
    "model_type": "chatglm",
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "ffn_hidden_size": 13696,
    "hidden_size": 4096,
    "kv_channels": 128,
    "layernorm_epsilon": 1e-5,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 32,
    "num_layers": 28,
    "original_rope": True,
    "padded_vocab_size": 65024,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 32768,
    "torch_dtype": "float16",
}
GLM_130B = {
    "model_type": "glm-130b",
    "num_layers": 70,
    "hidden_size": 12288,
    "inner_hidden_size": 32768,
    "num_attention_heads": 96,
    "vocab_size": 150528,
}


@pytest.fixture
def planned(capsys, tmp_path):
    def plan(config: object, format: str, *more: str) -> dict:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        result = call(capsys, "inspect", "--plan", format, file, "--json", *more)
        assert result.code == 0, result.err
        return json.loads(result.out)

    return plan


# Published sizes: of the files (GGML era) for Llama-2-13B, of the index for ChatGLM2-6B in float16.
@pytest.mark.parametrize(
    ("config", "format", "more", "nbytes"),
    [
        (LLAMA_13B, "gguf:q4_0", ("--pure",), 7_322_849_280),
        (LLAMA_13B, "gguf:q4_1", ("--pure",), 8_136_314_880),
        (LLAMA_13B, "gguf:q5_0", ("--pure",), 8_949_780_480),
        (LLAMA_13B, "gguf:q5_1", ("--pure",), 9_763_246_080),
        (LLAMA_13B, "gguf:q8_0", (), 13_830_574_080),
        (LLAMA_13B, "dense:f16", (), 26_031_728_640),
        (CHATGLM2, "glm:int4", (), 3_923_601_472),
        (CHATGLM2, "glm:int8", (), 6_778_873_920),
        (CHATGLM2, "dense:f16", ("--container", "chatglm"), 12_487_168_064),
        (CHATGLM2, "gguf:q4_0", ("--pure",), 3_513_262_080),
        (GLM_130B, "glm:int4", (), 67_159_745_280),
        (GLM_130B, "glm:int8", (), 130_577_621_760),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
def test_worked_sizes(planned, config, format, more, nbytes):
    found = planned(config, format, *more)
    assert found["nbytes"] == nbytes
    assert sum(tensor[2] for tensor in found["tensors"]) == nbytes


def test_memory_of_running_it(planned):
    """ChatGLM2-6B, from its shapes: 28 layers, 2 groups of 128, 16-bit keys and values."""
    found = planned(CHATGLM2, "glm:int4", "--context", "8192")
    assert found["cache"] == 28 * 2 * 128 * 2 * 2 * 8192
    assert found["decoded"] == 27392 * 4096 * 2
    assert found["activations"] == 512 * (4 * 4096 + 2 * 13696) * 2 + 65024 * 4
    assert found["running"] == found["nbytes"] + found["cache"] + found["decoded"] + found["activations"]
    assert planned(CHATGLM2, "glm:int4")["context"] == 32768


def test_a_plan_is_what_an_export_writes(capsys, tmp_path):
    """From the demo model's configuration alone, against the export of the model."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(qformats.open("demo").config))
    for format in (
        "glm:int4",
        "glm:int8",
        "gguf:q5_1",
        "dense:f16",
        "bitsandbytes:nf4-dq",
        "bitsandbytes:int8",
    ):
        result = call(capsys, "inspect", folder, "--plan", format, "--json")
        assert result.code == 0, result.err
        found = json.loads(result.out)
        target = tmp_path / format.replace(":", "-")
        report = qformats.export("demo", target, format=format)
        assert sorted(found["tensors"]) == sorted([t.name, t.format, t.nbytes] for t in report.tensors)


def test_conv1d_models_are_planned_as_they_are_written(capsys, tmp_path):
    """GPT-2 keeps its matrices the other way round; a scale per row counts the rows of the weight, not of the file."""
    source = tiny.build("gpt2", tmp_path / "gpt2")
    (tmp_path / "config.json").write_text(json.dumps(qformats.open(source).config))
    result = call(capsys, "inspect", tmp_path / "config.json", "--plan", "glm:int4", "--json")
    assert result.code == 0, result.err
    written = qformats.export(source, tmp_path / "out", format="glm:int4")
    planned = {name: (format, nbytes) for name, format, nbytes in json.loads(result.out)["tensors"]}
    packed = {t.name: (t.format, t.nbytes) for t in written.tensors if t.format == "glm:int4"}
    assert packed
    assert {name: planned[name] for name in packed} == packed


def test_stacked_experts_are_matrices_of_their_own(planned):
    config = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 320,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 128,
        "dtype": "bfloat16",
    }
    found = planned(config, "glm:int4")
    experts = [t for t in found["tensors"] if ".experts." in t[0]]
    assert {t[1] for t in experts} == {"glm:int4"}
    # Of each layer and expert: gate and up, and down, half a byte per weight, and two bytes per row.
    assert sum(t[2] for t in experts) == 2 * 3 * (3 * 64 * 128 // 2 + 2 * (2 * 128 + 64))


def test_the_table(capsys, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CHATGLM2))
    result = call(capsys, "inspect", "--plan", "glm:int4", file, "--tensors")
    assert result.code == 0
    for text in ("3,923,601,472", "glm:int4", "largest matrix", "32,768 tokens", "together"):
        assert text in result.out


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("[]", (), "a JSON list; expected an object"),
        ("{", (), "is not JSON"),
        ('{"model_type": "never"}', (), "'never'"),
        ('{"model_type": "llama", "hidden_size": -4}', (), "does not describe a model"),
        ('{"model_type": ["llama"]}', (), "model_type ['llama']"),
        ('{"model_type": "llama", "num_hidden_layers": 1e18}', (), "from 1 to 4096"),
        ('{"model_type": "llama", "num_hidden_layers": 1152921504606846976}', (), "from 1 to 4096"),
        (json.dumps(LLAMA_13B), ("--context", "0"), "context"),
        (json.dumps(LLAMA_13B), ("--container", "nowhere"), "nowhere"),
        (json.dumps(LLAMA_13B), ("--container", "gguf"), "found 'gguf'; expected one that can hold glm:int4"),
    ],
    ids=[
        "list",
        "cut off",
        "unknown",
        "negative",
        "list of types",
        "no layers",
        "layers",
        "context",
        "container",
        "another container",
    ],
)
def test_bad_configurations(capsys, tmp_path, content, more, message):
    file = tmp_path / "config.json"
    file.write_text(content)
    result = call(capsys, "inspect", "--plan", "glm:int4", file, *more)
    assert result.code != 0
    assert message in result.err
    assert "Traceback" not in result.err


def test_options_of_a_plan_without_one(capsys):
    for option in (("--context", "5"), ("--pure",), ("--container", "gguf")):
        result = call(capsys, "inspect", "demo", *option)
        assert result.code != 0
        assert "--plan" in result.err


# GLM-130B in int4 needs four cards of 24 GB: https://github.com/THUDM/GLM-130B, docs/quantization.md.
@pytest.mark.parametrize(("ranks", "code"), [(2, 1), (4, 0), (8, 0)])
def test_each_card_of_several_has_room(capsys, tmp_path, ranks, code):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GLM_130B))
    arguments = ("inspect", "--plan", "glm:int4", file, "--ranks", ranks, "--fits", "24GB")
    done = call(capsys, *map(str, arguments))
    assert done.code == code, done.err
    assert ("Yes, it fits" if code == 0 else "No, it does not fit") in done.out
    assert f"running on each of {ranks}" in done.out


def test_ranks_share_the_model(planned):
    whole, parts = planned(GLM_130B, "glm:int4"), planned(GLM_130B, "glm:int4", "--ranks", "4")
    assert parts["ranks"] == [parts["nbytes"] // 4] * 4
    # Norms and the scales of row-parallel weights are in every rank.
    assert whole["nbytes"] < parts["nbytes"] < 1.001 * whole["nbytes"]
    assert parts["cache"] * 4 == whole["cache"]
    assert parts["parameters"] == whole["parameters"]


# Published for ChatGLM2-6B in int4: 5.1 GB at 1,024 tokens and 5.5 GB at 8,192 on a card of 6 GB.
@pytest.mark.parametrize("context", [1024, 8192])
def test_chatglm2_in_four_bits_fits_a_card_of_6_gb(planned, context):
    found = planned(CHATGLM2, "glm:int4", "--fits", "6GB", "--context", str(context))
    assert found["fits"]
    assert 4.5e9 < found["needed"] == found["running"] + found["runtime"] < 5.5e9


@pytest.mark.parametrize(
    ("format", "more", "told"),
    [
        ("gguf:q4_0", ("--ranks", "2"), "a format that can be divided"),
        ("glm:int4", ("--ranks", "5"), "a number that divides the 96 heads"),
        ("glm:int4", ("--ranks", "2", "-O", "tensor-parallel=4"), "as -O tensor-parallel says"),
        ("glm:int4", ("--fits", "much"), "a size such as 500MB"),
    ],
)
def test_plans_that_cannot_be(capsys, tmp_path, format, more, told):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(GLM_130B))
    done = call(capsys, "inspect", "--plan", format, str(file), *more)
    assert done.code == 2
    assert told in done.err
