"""The architecture table against llama.cpp's converter and against Transformers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny
from models.architectures import WITH_CODE
from oracles import hf
from oracles.llama_cpp import LlamaCpp

from qformats.errors import CheckpointError, ConfigError, QFormatsError, ShapeError, UnsupportedModelError
from qformats_gguf.architectures import Architecture, Permute, size_label, supported_models
from qformats_gguf.architectures.llama3 import factors, fit
from qformats_gguf.architectures.rows import ROWS
from qformats_gguf.metadata import Value, ValueType, array, boolean, f32, string, u32

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_metadata"
CASES = json.loads((GOLDEN / "cases.json").read_text())
TYPES = {"UINT32": ValueType.U32, "FLOAT32": ValueType.F32, "STRING": ValueType.STRING}
LLAMA = CASES["llama"]["config"]
LLAMA3 = CASES["llama-3.1"]["config"]["rope_parameters"]
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def stored(value):
    """As it comes back from a file: float32 has lost its digits."""
    return float(np.float32(value.data)) if value.type is ValueType.F32 else value.data


def file_metadata(case):
    """The converter's metadata as a reader would give it, with a vocabulary of the model's size."""
    metadata = {
        key: Value(TYPES[kind], np.float32(value) if kind == "FLOAT32" else value)
        for key, (kind, value) in case["metadata"].items()
    }
    metadata["tokenizer.ggml.tokens"] = array(ValueType.STRING, [f"<{i}>" for i in range(96)])
    return metadata


def rope_values(case):
    return (
        {"rope_freqs.weight": np.frombuffer(bytes.fromhex(case["rope_freqs"]), "<f4")}
        if case["rope_freqs"]
        else {}
    )


def from_file(case, **changes):
    names = [*case["tensors"], *rope_values(case)]
    metadata = {key: value for key, value in (file_metadata(case) | changes).items() if value is not None}
    return Architecture.from_metadata(metadata, names, extra_tensors=rope_values(case), source="m.gguf")


def model_of(config):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))


def rotary_of(config):
    """Frequencies and magnitude of Transformers' own rotary embedding."""
    from transformers import AutoConfig, AutoModelForCausalLM

    rotary = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).model.rotary_emb
    return rotary.inv_freq.numpy(), rotary.attention_scaling


# Against the converter's output


@each_case
def test_metadata_equals_upstream(case):
    metadata = Architecture.from_config(case["config"]).metadata(name="tiny")
    assert metadata.pop("general.name") == string("tiny")
    expected = dict(case["metadata"])
    del expected["general.size_label"]
    assert {key: (value.type, stored(value)) for key, value in metadata.items()} == {
        key: (TYPES[kind], stored(Value(TYPES[kind], value))) for key, (kind, value) in expected.items()
    }


@each_case
def test_tensor_names_and_float32_tensors_equal_upstream(case):
    architecture = Architecture.from_config(case["config"])
    mapped = [t for name in case["canonical"] if (t := architecture.map_tensor(name)) is not None]
    assert {t.gguf: "F32" if t.force_f32 else "F16" for t in mapped} == {
        name: dtype for name, (_, dtype) in case["tensors"].items()
    }
    assert sorted(t.gguf for t in architecture.expected_tensors()) == sorted(case["tensors"])


@each_case
def test_row_order_equals_upstream(case):
    architecture = Architecture.from_config(case["config"])
    permuted = 0
    for name, rows in case["rows"].items():
        permute = architecture.unmap_tensor(name).permute
        expected = np.arange(len(rows)) if permute is None else permute.rows(len(rows))
        np.testing.assert_array_equal(expected, rows, err_msg=name)
        permuted += permute is not None
    # q and k of the first block, and their biases
    assert permuted == (
        0 if architecture.arch != "llama" else 4 if case["config"].get("attention_bias") else 2
    )


@each_case
def test_rope_factors_equal_upstream(case):
    made = Architecture.from_config(case["config"]).extra_tensors()
    assert {name: value.tobytes() for name, value in made.items()} == {
        name: value.tobytes() for name, value in rope_values(case).items()
    }
    assert all(value.dtype == np.float32 for value in made.values())


@pytest.mark.parametrize(
    "parameters", [74_000, 999_999, 1_000_001, 134_515_008, 8_030_261_248, 70_553_706_496]
)
def test_size_label_equals_upstream(parameters):
    import gguf

    assert size_label(parameters) == gguf.size_label(parameters, 0, 0, 0)


# Row order


@given(heads=st.integers(1, 12), pairs=st.integers(1, 40))
def test_permutation_is_the_interleaving_of_both_halves_of_a_head(heads, pairs):
    permute, size = Permute(heads), 2 * pairs
    rows = permute.rows(heads * size)
    expected = [h * size + s * pairs + j for h in range(heads) for j in range(pairs) for s in (0, 1)]
    assert rows.tolist() == expected
    assert rows[permute.inverse(heads * size)].tolist() == list(range(heads * size))


def test_permutation_keeps_attention_scores():
    """Rotating neighbours after the permutation gives the scores of rotating halves before it."""
    rng = np.random.default_rng(0)
    heads, size = 3, 8
    angles = rng.uniform(0, 6, size // 2)

    def rotate(x, first, second):
        out = x.copy()
        out[:, first] = x[:, first] * np.cos(angles) - x[:, second] * np.sin(angles)
        out[:, second] = x[:, second] * np.cos(angles) + x[:, first] * np.sin(angles)
        return out

    q, k = rng.normal(size=(2, heads * size))
    rows = Permute(heads).rows(heads * size)
    halves = [np.arange(size // 2), np.arange(size // 2) + size // 2]
    pairs = [np.arange(0, size, 2), np.arange(1, size, 2)]
    before = rotate(q.reshape(heads, size), *halves) * k.reshape(heads, size)
    after = rotate(q[rows].reshape(heads, size), *pairs) * k[rows].reshape(heads, size)
    np.testing.assert_allclose(before.sum(1), after.sum(1), rtol=1e-12)


@pytest.mark.parametrize("n_rows", [0, 9, 12])
def test_permutation_needs_whole_heads(n_rows):
    with pytest.raises(ShapeError, match="multiple of 8 rows for 4 heads"):
        Permute(4).rows(n_rows)


# And back


@each_case
def test_configuration_comes_back(case):
    original, restored = case["config"], from_file(case).config
    same = {"mistral": "llama"}.get(original["model_type"], original["model_type"])
    assert restored["model_type"] == same
    assert not from_file(case).ignored
    compared = [rule.config for rule in ROWS[from_file(case).arch].metadata]
    compared += ["tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "activation_function"]
    different = {
        key: (original[key], restored.get(key))
        for key in compared
        if original.get(key) is not None and original[key] != restored.get(key)
    }
    assert different == {}
    if "rope_parameters" in original:
        assert restored["rope_parameters"] == original["rope_parameters"]


@each_case
def test_transformers_takes_the_restored_configuration(case):
    architecture = from_file(case)
    model = model_of(architecture.config)
    parameters = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    expected = {
        architecture.unmap_tensor(name).canonical: shape for name, (shape, _) in case["tensors"].items()
    }
    if architecture.arch == "gpt2":
        # Conv1D keeps [in, out]; the framework's canonical tensors are [out, in].
        expected = {n: s[::-1] if ".c_" in n else s for n, s in expected.items()}
    assert parameters == expected
    assert [architecture.config["architectures"][0]] == [type(model).__name__]


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if "rope_parameters" in case["config"]]
)
def test_rotary_frequencies_come_back(name):
    case = CASES[name]
    frequencies, scaling = rotary_of(case["config"])
    restored, restored_scaling = rotary_of(from_file(case).config)
    np.testing.assert_array_equal(frequencies, restored)
    assert scaling == restored_scaling


@each_case
def test_names_are_inverse(case):
    architecture = Architecture.from_config(case["config"])
    for tensor in architecture.expected_tensors():
        assert architecture.map_tensor(tensor.canonical) == tensor
        assert architecture.unmap_tensor(tensor.gguf) == tensor


# Rotary scaling


def ggml_rope(metadata, prefix, size, positions):
    """Angles and magnitude as ggml's CPU kernel computes them, in float64 (llama.cpp:ggml-cpu/ops.cpp)."""

    def get(key, default):
        return metadata[prefix + key].data if prefix + key in metadata else default

    base, factor = get("rope.freq_base", 1e4), get("rope.scaling.factor", 1.0)
    context = get("rope.scaling.original_context_length", get("context_length", None))
    angle = positions[:, None] * base ** (-np.arange(0, size, 2) / size)
    magnitude = get("rope.scaling.attn_factor", 1.0)
    if get("rope.scaling.type", "linear") != "yarn":
        return angle / factor, magnitude
    low, high = (size * math.log(context / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1))
    low, high = max(0, math.floor(low)), min(size - 1, math.ceil(high))
    ramp = 1 - np.clip((np.arange(size // 2) - low) / max(0.001, high - low), 0, 1)
    magnitude *= 1 + 0.1 * math.log(factor) if factor > 1 else 1
    return angle / factor * (1 - ramp) + angle * ramp, magnitude


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 123456.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
        YARN,
        YARN | {"attention_factor": 1.0},
        YARN | {"attention_factor": 0.75, "factor": 32.0},
        YARN | {"mscale": 0.707, "mscale_all_dim": 1.0},
        YARN | {"original_max_position_embeddings": 64, "factor": 1.0},
    ],
)
@pytest.mark.parametrize("model", ["llama-head-dim", "qwen2", "qwen3"])
def test_llama_cpp_rotates_as_transformers_does_and_back(model, rope):
    config = CASES[model]["config"] | {"rope_parameters": rope, "max_position_embeddings": 16384}
    architecture = Architecture.from_config(config)
    metadata = architecture.metadata(name="m")
    size = config.get("head_dim") or 16
    positions = np.arange(0, 512, 7)
    angles, magnitude = ggml_rope(metadata, architecture.arch + ".", size, positions)
    frequencies, scaling = rotary_of(config)
    np.testing.assert_allclose(angles, positions[:, None] * frequencies.astype(np.float64), rtol=2e-6)
    assert magnitude == pytest.approx(scaling, rel=1e-6)

    tokens = {"tokenizer.ggml.tokens": array(ValueType.STRING, ["a"] * 96)}
    back = Architecture.from_metadata(metadata | tokens, CASES[model]["tensors"])
    again, again_scaling = rotary_of(back.config)
    np.testing.assert_allclose(again, frequencies, rtol=1e-6)
    assert again_scaling == pytest.approx(scaling, rel=1e-6)


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 10000.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
    ],
)
def test_older_configurations_say_the_same(old):
    config = {key: value for key, value in LLAMA.items() if key != "rope_parameters"}
    made = Architecture.from_config(config | old).metadata(name="m")
    new = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}
    assert made == Architecture.from_config(config | new).metadata(name="m")


def test_old_yarn_takes_its_context_from_the_model():
    config = LLAMA | {
        "rope_scaling": {"type": "yarn", "factor": 4.0},
        "rope_theta": 5000.0,
        "rope_parameters": None,
    }
    metadata = Architecture.from_config(config).metadata(name="m")
    assert metadata["llama.rope.scaling.original_context_length"] == u32(LLAMA["max_position_embeddings"])
    assert metadata["llama.rope.freq_base"] == f32(5000.0)


def test_upstreams_attention_factor_is_understood():
    """The converter writes it where llama.cpp does not look; the model meant it."""
    restored = from_file(CASES["llama-yarn"], **{"llama.rope.scaling.yarn_attn_factor": f32(0.9)})
    assert restored.config["rope_parameters"]["attention_factor"] == 0.9


def test_legacy_linear_scale():
    restored = from_file(CASES["llama"], **{"llama.rope.scale_linear": f32(4.0)})
    assert restored.config["rope_parameters"] == {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


# Llama 3's factors


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize(
    ("factor", "low", "high", "context"),
    [
        (8.0, 1.0, 4.0, 8192),
        (32.0, 1.0, 4.0, 8192),
        (4.0, 1.0, 4.0, 2048),
        (16.0, 0.5, 3.25, 8192),
        (3.0, 1.5, 9.0, 4096),
    ],
)
def test_factors_are_fitted_exactly(head_dim, factor, low, high, context):
    rope = {
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    values = factors(rope, head_dim)
    found = fit(values, 500000.0, int(context * factor))
    np.testing.assert_array_equal(factors({"rope_theta": 500000.0} | found, head_dim), values)
    if head_dim >= 64 and low == 1.0:
        assert found == {key: value for key, value in rope.items() if key != "rope_theta"}


def test_factors_of_another_vector_unit_are_fitted():
    """torch's power differs in the last bits between CPUs, so files do too."""
    rope = LLAMA3 | {"original_max_position_embeddings": 4096}
    values = factors(rope, 96)
    noisy = np.nextafter(values, np.float32(np.inf), where=(values > 1) & (values < 8), out=values.copy())
    assert (noisy != values).any()
    assert LLAMA3 | fit(noisy, 500000.0, 32768) == rope


@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 1.5, 8.0], [1.0, 1.0, np.nan, 8.0], [1.0, -1.0], np.linspace(1, 8, 64)]
)
def test_factors_of_something_else_are_refused(values):
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs\.weight"):
        fit(np.array(values, np.float32), 500000.0, 131072)


def test_factors_of_one_are_no_scaling():
    names = [*CASES["llama"]["tensors"], "rope_freqs.weight"]
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    restored = Architecture.from_metadata(file_metadata(CASES["llama"]), names, extra_tensors=ones)
    assert restored.config["rope_parameters"]["rope_type"] == "default"
    assert restored.is_extra("rope_freqs.weight")


def test_factors_must_be_read():
    case = CASES["llama-3.1"]
    with pytest.raises(ConfigError, match=r"values of 'rope_freqs\.weight'"):
        Architecture.from_metadata(file_metadata(case), [*case["tensors"], "rope_freqs.weight"])


# Refusals


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "'dynamic'; expected one of default",
        ),
        ("llama", {"rope_scaling": {"type": "su", "factor": 2.0}}, "found 'su'"),
        ("qwen2", {"rope_parameters": LLAMA3}, "found 'llama3'"),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, r"rope_parameters\.factor"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "'per layer'"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor: found 0\.5"),
        ("llama", {"rope_parameters": YARN | {"beta_fast": 16}}, "beta_fast: found 16"),
        ("llama", {"rope_parameters": YARN | {"truncate": False}}, "truncate: found False"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: found 'gelu'; expected one of silu, swish"),
        ("llama", {"is_causal": False}, "is_causal"),
        ("mistral", {"sliding_window": 128}, "longer than 128 tokens differ"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0},
            "sliding_window: found 128",
        ),
        ("qwen2", {"head_dim": 32}, r"hidden_size / num_attention_heads \(16\)"),
        ("qwen3", {"attention_bias": True}, r"no attn_output\.bias"),
        ("gpt2", {"activation_function": "relu"}, "activation_function: found 'relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"is_causal": False}, "is_causal"),
        ("llama", {"per_layer_config": {"1": {"intermediate_size": 8}}}, "per_layer_config"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder"),
        ("qwen2", {"layer_types": ["chunked_attention", "full_attention"]}, "layer_types"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(model, change, message):
    config = CASES[model]["config"] | {"layer_types": None} | change
    with pytest.raises(UnsupportedModelError, match=message) as refused:
        Architecture.from_config(config)
    assert "ignore-unsupported=yes exports it anyway" in str(refused.value)
    forced = Architecture.from_config(config, force=True)
    assert len(forced.ignored) >= 1
    assert "was ignored" in str(forced.ignored[0])
    forced.metadata(name="m")


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 256},
        {"sliding_window": None},
        {"hidden_act": "swish"},
        {"rope_parameters": {"type": "default", "rope_theta": 1e6}},
    ],
)
def test_what_makes_no_difference_is_accepted(change):
    assert not Architecture.from_config(CASES["mistral"]["config"] | change).ignored


def test_window_of_unused_layers_is_accepted():
    change = {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2, "layer_types": None}
    assert not Architecture.from_config(CASES["qwen2"]["config"] | change).ignored


def test_llama_has_no_window_whatever_its_configuration_says():
    assert not Architecture.from_config(LLAMA | {"sliding_window": 128}).ignored


def test_mistral_has_a_window_unless_it_says_no():
    config = {key: value for key, value in CASES["mistral"]["config"].items() if key != "sliding_window"}
    with pytest.raises(UnsupportedModelError, match="4096"):
        Architecture.from_config(config | {"max_position_embeddings": 32768})


def test_unknown_models_are_named():
    with pytest.raises(UnsupportedModelError, match=r"'opt'; expected one of .*glm, ") as refused:
        Architecture.from_config(LLAMA | {"model_type": "opt"})
    assert "--arch" not in str(refused.value)
    with pytest.raises(UnsupportedModelError, match="'LlamaForSequenceClassification'"):
        Architecture.from_config(LLAMA | {"architectures": ["LlamaForSequenceClassification"]})
    with pytest.raises(UnsupportedModelError, match="--arch: found 'lama'"):
        Architecture.from_config(LLAMA, override="lama")
    assert {"llama", "mistral", "mixtral"} <= set(supported_models()["llama"])


@pytest.mark.parametrize(
    ("model_type", "cls"),
    [
        ("helium", "HeliumForCausalLM"),
        ("arcee", "ArceeForCausalLM"),
        ("my-llama", "LlamaForCausalLM"),
        ("helium", None),
    ],
)
def test_no_override_makes_another_model_type_a_llama(model_type, cls):
    """Their tensors have a llama's names and shapes; their code computes something else with them."""
    config = LLAMA | {"model_type": model_type, "architectures": cls and [cls]}
    for override in (None, "llama"):
        with pytest.raises(UnsupportedModelError, match=f"model_type: found '{model_type}'") as refused:
            Architecture.from_config(config, override=override, force=True)
        assert "--arch" not in str(refused.value)


def test_override_chooses_among_rows_that_hold_the_model_type():
    assert Architecture.from_config(LLAMA, override="llama").arch == "llama"
    with pytest.raises(UnsupportedModelError, match=r"--arch: found 'qwen2'; expected llama.* type llama"):
        Architecture.from_config(LLAMA, override="qwen2")


def test_class_or_override_tells_the_row_where_no_model_type_does():
    without = {key: value for key, value in LLAMA.items() if key != "model_type"}
    assert Architecture.from_config(without).arch == "llama"
    nameless = {key: value for key, value in without.items() if key != "architectures"}
    with pytest.raises(UnsupportedModelError, match="model_type: found None"):
        Architecture.from_config(nameless)
    assert Architecture.from_config(nameless, override="llama").arch == "llama"
    with pytest.raises(UnsupportedModelError, match="embedding_multiplier: found 12"):
        Architecture.from_config(nameless | {"embedding_multiplier": 12}, override="llama")
    assert Architecture.from_config(LLAMA | {"embedding_multiplier": 12}).arch == "llama"


def test_keys_of_a_newer_transformers_are_refused_by_name(monkeypatch):
    from transformers import CONFIG_MAPPING, LlamaConfig

    class NewerLlama(LlamaConfig):
        model_type = "llama"
        depth_multiplier: float = 1.0

    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "llama", NewerLlama)
    assert Architecture.from_config(LLAMA | {"depth_multiplier": 1.0}).arch == "llama"
    with pytest.raises(UnsupportedModelError, match=r"depth_multiplier: found 2\.0; expected 1\.0"):
        Architecture.from_config(LLAMA | {"depth_multiplier": 2.0})
    forced = Architecture.from_config(LLAMA | {"depth_multiplier": 2.0}, force=True)
    assert [problem.key for problem in forced.ignored] == ["depth_multiplier"]


def test_biases_that_mistral_ignores_are_not_expected():
    config = CASES["mistral"]["config"]
    assert (
        Architecture.from_config(config | {"attention_bias": True, "mlp_bias": True}).expected_tensors()
        == Architecture.from_config(config).expected_tensors()
    )


def test_other_names_of_gpt2s_keys_win_as_in_transformers():
    from transformers import GPT2Config

    config = CASES["gpt2"]["config"] | {"num_hidden_layers": 1}
    assert GPT2Config(**config).n_layer == Architecture.from_config(config).block_count == 1


@pytest.mark.parametrize("value", [[4, 2], -1, 0, 2.5, "4", True, 2**32])
def test_sizes_are_positive_whole_numbers(value):
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        Architecture.from_config(LLAMA | {"num_attention_heads": value, "head_dim": 16})


def test_missing_sizes_are_named():
    config = {key: value for key, value in LLAMA.items() if key != "hidden_size"}
    with pytest.raises(CheckpointError, match=r"config\.json: no 'hidden_size'"):
        Architecture.from_config(config)


@pytest.mark.parametrize(
    "model",
    {m.model_type: m for row in ROWS.values() for m in row.models if m.model_type not in WITH_CODE}.values(),
    ids=lambda m: m.model_type,
)
def test_defaults_are_those_of_transformers(model):
    from transformers import CONFIG_MAPPING

    fresh = CONFIG_MAPPING[model.model_type]
    fields = {name: getattr(fresh, name) for name in model.defaults if hasattr(fresh, name)}
    assert {name: model.defaults[name] for name in fields} == fields
    # head_dim is no field of Qwen2's configuration, but its model class honours it; partial_rotary_factor is folded
    # into GLM's rope_parameters (compared with Transformers in test_chatglm.py)
    assert set(model.defaults) - set(fields) <= {"head_dim", "partial_rotary_factor"}


# Names


def test_base_model_names_and_junk():
    gpt2 = Architecture.from_config(CASES["gpt2"]["config"])
    assert gpt2.map_tensor("h.1.attn.c_attn.weight") == gpt2.map_tensor("transformer.h.1.attn.c_attn.weight")
    assert gpt2.map_tensor("h.1.attn.c_attn.weight").gguf == "blk.1.attn_qkv.weight"
    for junk in ("h.0.attn.bias", "transformer.h.0.attn.masked_bias", "lm_head.weight"):
        assert gpt2.map_tensor(junk) is None
    assert gpt2.map_tensor("h.0.attn.c_attn.bias").gguf == "blk.0.attn_qkv.bias"
    llama = Architecture.from_config(LLAMA)
    assert llama.map_tensor("model.layers.0.self_attn.rotary_emb.inv_freq") is None
    assert llama.map_tensor("layers.1.mlp.up_proj.weight").canonical == "model.layers.1.mlp.up_proj.weight"
    assert llama.map_tensor("lm_head.weight").gguf == "output.weight"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.0.self_attn.q_norm.weight", "only tensors of a llama model"),
        ("model.layers.0.self_attn.q_proj.bias", "attention_bias = False"),
        ("model.layers.2.mlp.up_proj.weight", "block 2; expected blocks 0 to 1"),
        ("model.layers.00.mlp.up_proj.weight", "unknown"),
        ("model.layers.0.mlp.up_proj.qweight", "unknown"),
        ("score.weight", "unknown"),
    ],
)
def test_unknown_tensors_are_named(name, message):
    with pytest.raises(CheckpointError, match=message) as refused:
        Architecture.from_config(LLAMA).map_tensor(name)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_up_exps.weight", "blk.0.attn_q.bias", "blk.7.attn_q.weight", "rope_freqs.weight"]
)
def test_unknown_gguf_tensors_are_named(name):
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor"):
        from_file(CASES["llama"]).unmap_tensor(name)


@each_case
def test_missing_tensors_are_named(case):
    there = Architecture.from_config(case["config"], source="model.safetensors")
    complete = [t.canonical for t in there.expected_tensors()]
    there.require(complete)
    there.require([name.removeprefix(there.row.prefix) for name in complete])
    lacking = [name for name in complete if ".1." not in name]
    assert {t.canonical for t in there.missing(lacking)} == set(complete) - set(lacking)
    with pytest.raises(
        CheckpointError, match=rf"{complete[-1]!r}: missing; expected the {len(complete)} tensors"
    ):
        there.require(complete[:-1])

    back = from_file(case)
    names = list(case["tensors"])
    back.require(names)
    with pytest.raises(CheckpointError, match=r"tensor 'blk\.1\."):
        back.require([name for name in names if not name.startswith("blk.1.")])


def test_one_bias_asks_for_all():
    names = [*CASES["llama"]["tensors"], "blk.0.attn_output.bias"]
    half = Architecture.from_metadata(file_metadata(CASES["llama"]), names)
    assert half.config["attention_bias"] is True
    assert "blk.0.attn_q.bias" in [t.gguf for t in half.missing(names)]


# Metadata that does not fit


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"general.architecture": string("rwkv7")},
            UnsupportedModelError,
            "'rwkv7'; expected one of .*chatglm",
        ),
        ({"general.architecture": None}, UnsupportedModelError, r"general\.architecture"),
        ({"llama.block_count": None}, CheckpointError, r"llama\.block_count"),
        (
            {"llama.feed_forward_length": array(ValueType.U32, [96, 64])},
            CheckpointError,
            "a positive whole number.*One value must hold for all layers",
        ),
        ({"llama.rope.dimension_count": u32(8)}, CheckpointError, r"rope\.dimension_count = 8; expected 16"),
        ({"llama.expert_count": u32(8)}, CheckpointError, r"no metadata key .llama\.expert_used_count"),
        ({"llama.attention.causal": boolean(False)}, UnsupportedModelError, r"attention\.causal"),
        ({"llama.logit_scale": f32(2.0)}, UnsupportedModelError, "no such key"),
        ({"llama.rope.scaling.type": string("longrope")}, UnsupportedModelError, "'longrope'"),
        ({"llama.rope.scaling.attn_factor": f32(1.2)}, UnsupportedModelError, r"attn_factor: found 1\.2"),
    ],
)
def test_metadata_that_no_configuration_says_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        from_file(CASES["llama"], **change)


ODD = [
    *(Value(kind, data) for kind in (ValueType.U32, ValueType.I64) for data in (0, 1, 2**32 - 1)),
    *(f32(data) for data in (0.0, -1.0, 1.0, math.nan, math.inf, 1e38)),
    *(string(""), string("yarn"), boolean(True), array(ValueType.U32, []), array(ValueType.STRING, ["a"])),
    Value(ValueType.ARRAY, np.arange(3, dtype=np.uint32), ValueType.U32),
    Value(ValueType.I32, -1),
    None,
]


def refusal(call):
    """Message of our own error, or nothing; any other exception fails the test."""
    try:
        call()
    except QFormatsError as error:
        return str(error)
    return ""


KEYS = [
    *CASES["llama-3.1"]["metadata"],
    *(
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.bos_token_id",
        "llama.rope.scale_linear",
        "llama.expert_count",
    ),
    *(f"llama.rope.scaling.{key}" for key in ("type", "factor", "attn_factor", "original_context_length")),
]


@given(
    changes=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(range(len(ODD))), min_size=1, max_size=3)
)
def test_odd_metadata_is_read_or_refused(changes):
    case = CASES["llama-3.1"]
    odd = {key: ODD[value] for key, value in changes.items()}
    message = refusal(lambda: from_file(case, **odd).missing(list(case["tensors"])))
    assert not message or "m.gguf" in message or "rope_freqs" in message


ODD_JSON = [None, 0, 1, -1, 2**40, 0.5, "x", "yarn", True, [], [2, 2], {}, {"a": {}}, math.nan, math.inf]


ALL_KEYS = sorted({key for case in CASES.values() for key in case["config"]} | {"rope_theta", "rope_scaling"})
odd_json = st.sampled_from(range(len(ODD_JSON)))


# The first key that no list knows imports the configurations of Transformers.
@settings(deadline=None)
@given(
    model=st.sampled_from(sorted(CASES)),
    changes=st.dictionaries(st.sampled_from(ALL_KEYS), odd_json, max_size=2),
    rope=st.dictionaries(st.sampled_from(sorted(LLAMA3)), odd_json, max_size=2),
)
def test_odd_configurations_are_taken_or_refused(model, changes, rope):
    config = CASES[model]["config"] | {key: ODD_JSON[value] for key, value in changes.items()}
    if isinstance(config.get("rope_parameters"), dict):
        odd = {key: ODD_JSON[value] for key, value in rope.items()}
        config["rope_parameters"] = config["rope_parameters"] | odd

    def use():
        architecture = Architecture.from_config(config)
        architecture.metadata(name="m")
        architecture.missing(CASES[model]["canonical"])

    message = refusal(use)
    assert not message or "config.json" in message


def test_more_blocks_than_tensors_are_refused_at_once():
    hostile = Architecture.from_config(LLAMA | {"num_hidden_layers": 4_000_000_000})
    with pytest.raises(CheckpointError, match="only 3 tensors; expected enough for 4000000000 blocks"):
        hostile.missing(["a", "b", "c"])


def test_factors_of_another_head_size_are_refused():
    ones = {"rope_freqs.weight": np.ones(7, np.float32)}
    with pytest.raises(CheckpointError, match="7 values; expected 8, half the size of a head"):
        Architecture.from_metadata(file_metadata(CASES["llama"]), ["rope_freqs.weight"], extra_tensors=ones)


def test_force_reads_on():
    metadata = file_metadata(CASES["llama"]) | {"llama.logit_scale": f32(2.0)}
    forced = Architecture.from_metadata(metadata, CASES["llama"]["tensors"], force=True)
    assert [problem.key for problem in forced.ignored] == ["llama.logit_scale"]


def test_defaults_of_llama_cpp_hold_where_keys_are_absent():
    case = CASES["llama"]
    absent = ["attention.head_count_kv", "attention.key_length", "attention.value_length", "vocab_size"]
    absent += ["rope.freq_base", "rope.dimension_count"]
    restored = from_file(case, **{"llama." + key: None for key in absent}).config
    assert (restored["num_key_value_heads"], restored["head_dim"], restored["vocab_size"]) == (4, 16, 96)
    assert restored["rope_parameters"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_neutral_keys_say_nothing():
    neutral = {"llama.expert_count": u32(0), "llama.attention.causal": boolean(True)}
    neutral["llama.tensor_data_layout"] = string("Meta AI original pth")
    assert from_file(CASES["llama"], **neutral).config == from_file(CASES["llama"]).config


def test_special_tokens_beyond_the_vocabulary_are_none():
    ids = {"bos": u32(1), "eos": u32(95), "padding": u32(2**32 - 1)}
    restored = from_file(
        CASES["llama"], **{f"tokenizer.ggml.{key}_token_id": value for key, value in ids.items()}
    )
    assert [restored.config[f"{key}_token_id"] for key in ("bos", "eos", "pad")] == [1, 95, None]


# Around


def test_gpt2_keeps_its_inner_size():
    """Upstream's converter writes four times the hidden size whatever the model has."""
    made = Architecture.from_config(CASES["gpt2"]["config"] | {"n_inner": 96}).metadata(name="m")
    assert made["gpt2.feed_forward_length"] == u32(96)


def test_metadata_names_the_model():
    made = Architecture.from_config(LLAMA).metadata(name="Tiny", parameters=134_515_008)
    assert next(iter(made)) == "general.architecture"
    assert made["general.size_label"] == string("135M")


def test_configuration_is_not_touched():
    config = json.loads(json.dumps(CASES["llama-3.1"]["config"]))
    Architecture.from_config(config).metadata(name="m")
    assert config == CASES["llama-3.1"]["config"]


def test_import_is_lean():
    code = (
        "import qformats_gguf.architectures, sys; "
        "print([m for m in ('torch', 'transformers', 'gguf', 'numba') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# In llama.cpp itself


def write_f32(path, folder, architecture, **changes):
    """Write a file with the table's names, rows and metadata through gguf-py, without a tokenizer."""
    import gguf
    from safetensors.numpy import load_file

    writer = gguf.GGUFWriter(path, architecture.arch)
    metadata = {architecture.arch + ".vocab_size": u32(architecture.config["vocab_size"])}
    metadata |= architecture.metadata(name="tiny") | {"tokenizer.ggml.model": string("none")} | changes
    del metadata["general.architecture"]
    for key, value in metadata.items():
        if value is not None:
            writer.add_key_value(key, value.data, gguf.GGUFValueType(int(value.type)))
    for name, tensor in load_file(folder / "model.safetensors").items():
        mapping = architecture.map_tensor(name)
        if mapping is None:
            continue
        if architecture.arch == "gpt2" and ".c_" in name and tensor.ndim == 2:
            tensor = np.ascontiguousarray(tensor.T)
        writer.add_tensor(
            mapping.gguf, tensor if not mapping.permute else tensor[mapping.permute.rows(len(tensor))]
        )
    for name, tensor in architecture.extra_tensors().items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logit_difference(tmp_path, model, rope=None, **changes):
    config = json.loads((tiny.build(model, tmp_path) / "config.json").read_text())
    if rope is not None:
        config["rope_parameters"] = rope
        (tmp_path / "config.json").write_text(json.dumps(config))
    write_f32(tmp_path / "m.gguf", tmp_path, Architecture.from_config(config), **changes)
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], 160).tolist()
    with LlamaCpp(tmp_path / "m.gguf") as runtime:
        return np.abs(runtime.logits(ids) - hf.logits(tmp_path, ids)).max()


SHORT_YARN = YARN | {"original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("model", "rope"),
    [
        *((model, None) for model in tiny.TINY if model not in ("gpt2", "llama-spm")),
        ("llama", SHORT_YARN | {"attention_factor": 0.7}),
        ("qwen2", SHORT_YARN | {"mscale": 0.707, "mscale_all_dim": 1.0}),
        ("qwen3", SHORT_YARN | {"attention_factor": 1.5}),
        ("qwen3", {"rope_type": "linear", "rope_theta": 50000.0, "factor": 3.0}),
    ],
)
def test_llama_cpp_computes_the_same_logits(tmp_path, model, rope):
    # Measured: 6e-6 to 4e-5, with logits up to 7.
    assert logit_difference(tmp_path, model, rope) < 1e-4


def test_llama_cpp_computes_gpt2_up_to_its_table_of_gelu(tmp_path):
    # llama.cpp looks GELU up in a table of 16-bit floats; measured 2e-3.
    assert logit_difference(tmp_path, "gpt2") < 1e-2


def test_the_key_of_upstreams_converter_does_not_reach_llama_cpp(tmp_path):
    """Why an attention factor is written as attn_factor: the day this fails, rope.py may be simplified."""
    changes = {"llama.rope.scaling.attn_factor": None, "llama.rope.scaling.yarn_attn_factor": f32(0.7)}
    assert logit_difference(tmp_path, "llama", SHORT_YARN | {"attention_factor": 0.7}, **changes) > 0.1
