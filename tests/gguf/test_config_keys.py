"""Every configuration key that changes what Transformers computes is carried into the GGUF file or refused."""

import functools
import inspect
import json
import re

import pytest
from models import tokenizers
from models.architectures import CASES, WITH_CODE

import qformats
from qformats.errors import UnsupportedModelError
from qformats_gguf.architectures import Architecture
from qformats_gguf.architectures.keys import HARMLESS, understood
from qformats_gguf.architectures.rows import ROWS

# Of a type with several rows the first, as a folder of it is written.
MODELS = {
    model.model_type: (row, model)
    for row in reversed([*ROWS.values()])
    for model in row.models
    if row.only != "read" and model.model_type not in WITH_CODE
}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "glm": {"head_dim": 8},
    "gpt2": {
        **{"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        **{"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2},
    },
}
OWN["bert"] = OWN["nomic_bert"] = {"pad_token_id": 0}
OWN["roberta"] = OWN["xlm-roberta"] = {"pad_token_id": 1}
OWN["lfm2"] = {"layer_types": ["conv", "full_attention"]}
OWN["mamba"] = {"intermediate_size": 64}
OWN["exaone4"] = {"sliding_window": None, "layer_types": ["full_attention"] * 2}
OWN["lfm2_moe"] = CASES["lfm2_moe"].config | {"layer_types": ["conv", "full_attention"]}
OWN["glm4_moe_lite"] = CASES["glm4_moe_lite"].config | {"mlp_layer_types": ["dense", "sparse"]}
OWN = {case.model_type: case.config for case in reversed(CASES.values())} | OWN
# Keys that every configuration takes though none declares them.
EXTRA = ("rope_theta", "rope_scaling", "partial_rotary_factor", "per_layer_config")
# Where the type of the default does not tell another value.
OTHER = {
    "hidden_act": "gelu",
    "activation_function": "relu",
    "head_dim": 24,
    "num_key_value_heads": 4,
    "n_inner": 40,
    "vocab_size": 80,
    "sliding_window": 6,
    "layer_types": ["full_attention", "chunked_attention"],
    "dtype": "float16",
    "problem_type": "regression",
    "id2label": {"0": "a", "1": "b", "2": "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "architectures": None,
    "transformers_version": "4.0.0",
    "pad_token_id": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
    "rope_scaling": {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
    "rope_theta": 77.0,
    "original_max_position_embeddings": 24,
    "partial_rotary_factor": 0.25,
    "per_layer_config": {"1": {"intermediate_size": 16, "n_inner": 16}},
    "num_hidden_layers": 3,
    "n_layer": 3,
    "summary_type": "first",
    "summary_activation": "tanh",
    "quantization_config": {},
    "rms_norm_eps": 0.5,
    "layer_norm_epsilon": 0.5,
    "use_sliding_window": True,
    "max_window_layers": 1,
    "hidden_activation": "gelu",
    "final_logit_softcapping": 2.5,
    "attn_logit_softcapping": 2.5,
    "use_bidirectional_attention": True,
    "no_rope_layers": [1, 0] * 4,
    "mlp_only_layers": [1],
    "decoder_sparse_step": 2,
    "num_kv_heads": 4,
    "num_ln_in_parallel_attn": 1,
    "ffn_hidden_size": 40,
    "activation": "relu",
    "seq_length": 99,
    "time_step_init_scheme": "constant",
    "time_step_rank": 5,
    "full_attn_idxs": [0],
    "full_attention_interval": 2,
    "moe_layers": [0],
    "mlp_layer_types": ["sparse", "dense"],
    "attention_chunk_size": 8,
    "floor_scale": 4,
    "swiglu_limit": 0.05,
    "n_group": 2,
    "classifier_dropout": 0.5,
    "topk_group": 1,
    "topk_method": "group_limited_greedy",
}
# Together with these other keys they take effect.
TOGETHER = {
    "use_sliding_window": {"sliding_window": 6, "max_window_layers": 1, "layer_types": None},
    "per_layer_config": {},
    "attn_scale": {"floor_scale": 4},
    "topk_method": {"n_group": 4, "topk_group": 2},
}
# Keys that no class of the table has, or that only some have.
FOREIGN = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.015,
    "logits_scaling": 8.0,
    "logit_scale": 0.06,
    "no_rope_layers": [1, 0],
    "final_logit_softcapping": 30.0,
    "clip_qkv": 0.1,
    "rope_interleaved": True,
    "temperature": 0.7,
}


@functools.cache
def configuration(model_type):
    """A config.json as Transformers writes it."""
    from transformers import CONFIG_MAPPING

    _, model = MODELS[model_type]
    base = OWN[model_type] if model_type == "gpt2" else SIZES | OWN[model_type]
    config = CONFIG_MAPPING[model_type](**base, architectures=list(model.architectures))
    return json.loads(config.to_json_string(use_diff=False))


def auto(model_type):
    """Transformers' classes for models that write text, or that make embeddings."""
    from transformers import AutoModel, AutoModelForCausalLM

    encoder = model_type in MODELS and not MODELS[model_type][0].causal
    return AutoModel if encoder else AutoModelForCausalLM


def build(config):
    from transformers import AutoConfig

    copied = json.loads(json.dumps(config))
    return auto(config["model_type"]).from_config(AutoConfig.for_model(**copied)).eval()


@functools.cache
def base(model_type):
    """A model of random numbers, all of which show in its logits."""
    import torch

    torch.manual_seed(7)
    model = build(configuration(model_type))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0
            parameter.copy_(centre + torch.randn(parameter.shape) * 0.3)
    return model


def logits(model):
    import torch

    with torch.no_grad():
        output = model(torch.arange(24)[None] * 7 % 64)
    return (output.last_hidden_state if "logits" not in output else output.logits).float()


def changes_the_numbers(model_type, config):
    """Whether Transformers computes something else from the same weights; None if it does not run at all."""
    import torch

    before = base(model_type)
    try:
        after = build(config)
        mine, theirs = before.state_dict(), after.state_dict()
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in theirs.items()}:
            return True
        after.load_state_dict(mine)
        return not torch.equal(logits(before), logits(after))
    except Exception:  # whatever Transformers raises for a value that it does not take
        return None


def described(config):
    """Everything that a GGUF file of this configuration says, or why there is none."""
    try:
        architecture = Architecture.from_config(config)
    except UnsupportedModelError as refusal:
        return refusal
    tensors = [(t.gguf, t.shape) for t in architecture.expected_tensors()]
    return architecture.metadata(name="m"), tensors


def another(key, default):
    if key in OTHER:
        return OTHER[key]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default * 2 or 4
    if isinstance(default, float):
        return default * 2 or 0.5
    raise AssertionError(f"no other value known for {key} = {default!r}: add one to OTHER")


def declared(model_type):
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    return {
        name: p.default for name, p in inspect.signature(cls).parameters.items() if p.kind is p.KEYWORD_ONLY
    }


@functools.cache
def undeclared(model_type):
    """Attributes that Transformers looks for while it builds and runs a model, though its class has none such."""
    from transformers import CONFIG_MAPPING

    cls, missing = CONFIG_MAPPING[model_type], set()

    class Spy(cls):
        def __getattr__(self, name):
            missing.add(name)
            raise AttributeError(name)

    spy = Spy(**{key: value for key, value in configuration(model_type).items() if key != "model_type"})
    missing.clear()
    logits(auto(model_type)._model_mapping[cls](spy).eval())
    return {name for name in missing if not name.startswith("_")}


def test_shared_code_reads_keys_of_no_class():
    assert "is_causal" in undeclared("llama")
    assert "head_dim" in undeclared("qwen2")


@pytest.mark.parametrize("model_type", MODELS)
def test_a_key_that_changes_the_logits_is_carried_or_refused(model_type):
    config = configuration(model_type)
    row, model = MODELS[model_type]
    keys = declared(model_type) | dict.fromkeys(model.aliases, 4)
    keys |= dict.fromkeys({*undeclared(model_type), *EXTRA} - set(keys), True)
    assert len(keys) > 20
    before, wrong, seen = described(config), [], 0
    for key, default in keys.items():
        changed = {**config, key: another(key, config.get(key, default)), **TOGETHER.get(key, {})}
        differs, after = changes_the_numbers(model_type, changed), described(changed)
        seen += differs is True
        if differs is True and after == before:
            wrong.append(f"{key} = {changed[key]!r} changes the logits and is lost")
        if differs is False and isinstance(after, UnsupportedModelError) and key not in REFUSED_ANYWAY:
            wrong.append(f"{key} = {changed[key]!r} changes nothing and is refused: {after}")
    assert not wrong
    # BERT's class has few.
    assert seen >= (10 if row.causal else 8)


REFUSED_ANYWAY = {
    "is_encoder_decoder",  # with a second model's states it would compute something else
    "partial_rotary_factor",  # ignored by the classes of whole heads with the default rotary type only
    "layer_types",
    "tie_word_embeddings",  # an output layer of its own, which some architectures do not have; here it is a copy
    "attn_logit_softcapping",  # of Gemma 3, where not every implementation of attention applies it
    "is_causal",  # ignored by some classes
    "attn_temperature_tuning",  # of Llama 4, where it shows after 8192 tokens
    "interleave_moe_layer_step",  # of Llama 4, where moe_layers say the same in another way
    "norm_topk_prob",  # of DeepSeek V2, whose own code computes it
    "use_bidirectional_attention",  # ignored by some classes that have it
}


@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3"])
def test_rotary_parameters_for_no_kind_of_layer_count_for_none(model_type):
    """Where layers have their own kinds, Transformers looks for theirs alone."""
    config = configuration(model_type) | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    assert changes_the_numbers(model_type, config) is False
    assert described(config) == described(configuration(model_type))


@pytest.mark.parametrize("model_type", MODELS)
def test_keys_of_other_classes_change_nothing_and_are_accepted(model_type):
    own = declared(model_type)
    config = configuration(model_type) | {key: value for key, value in FOREIGN.items() if key not in own}
    assert changes_the_numbers(model_type, config) is False
    assert described(config) == described(configuration(model_type))


@pytest.mark.parametrize("model_type", MODELS)
def test_every_key_that_the_configuration_class_takes_beside_its_fields_is_known(model_type):
    from transformers import CONFIG_MAPPING

    source = inspect.getsource(CONFIG_MAPPING[model_type])
    row, entry = MODELS[model_type]
    taken = set(re.findall(r"kwargs\.\w+\(\s*\"(\w+)\"", source))
    assert taken <= understood(row, entry) | set(HARMLESS) | set(entry.neutral)
    assert model_type != "glm" or taken == {"partial_rotary_factor"}


@pytest.mark.parametrize("model_type", MODELS)
def test_no_key_is_in_two_lists(model_type):
    row, entry = MODELS[model_type]
    # RoBERTa counts positions behind that of the padding; to others the key means nothing.
    harmless = set(HARMLESS) - ({"pad_token_id"} if row.name == "roberta" else set())
    assert not understood(row, entry) & (harmless | set(entry.neutral))


@pytest.mark.parametrize("model_type", ["helium", "arcee"])
@pytest.mark.parametrize("options", [{}, {"arch": "llama"}, {"arch": "llama", "ignore-unsupported": "yes"}])
def test_models_that_only_look_like_a_llama_leave_no_file(tmp_path, model_type, options):
    special = tokenizers.build("smollm", tmp_path / "model")
    sizes = SIZES | {
        "vocab_size": special["size"],
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    build({"model_type": model_type, **sizes, "head_dim": 8}).save_pretrained(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=f"model_type: found '{model_type}'") as refused:
        qformats.export(tmp_path / "model", tmp_path / "m.gguf", format="gguf:q8_0", options=options)
    assert "--arch" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
