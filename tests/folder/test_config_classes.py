"""The record of Transformers' classes is what the installed Transformers says, and spares its import."""

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from models import tiny
from safetensors.torch import load_file, save_file

import qformats
from qformats.folder.config_class import RECORD, ask, causal_types, config_class, recorded
from qformats_gguf.architectures.rows import ROWS

ROOT = Path(__file__).parents[2]
TYPES = [model.model_type for row in ROWS.values() for model in row.models]


def test_the_record_is_what_transformers_says():
    spec = importlib.util.spec_from_file_location("make", ROOT / "scripts" / "make_config_classes.py")
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    # What Transformers has a class for, so that a plan of it needs none.
    assert set(make.types()) == set(TYPES) & set(json.loads(RECORD.read_text())["causal_types"])
    found = json.loads(RECORD.read_text())
    assert f"transformers=={found['transformers']}" in (ROOT / "constraints.txt").read_text().splitlines()
    if version("transformers") == found["transformers"]:
        assert make.record() == RECORD.read_text()
    else:
        assert recorded("llama") is None
        assert causal_types() is None


def test_another_transformers_is_asked_itself(monkeypatch):
    module = sys.modules["qformats.folder.config_class"]
    monkeypatch.setattr(module, "_same_version", lambda: False)
    assert recorded("llama") is None
    assert causal_types() is None
    assert config_class("llama") == ask("llama")


def test_the_record_is_used_where_transformers_is_not_loaded():
    code = (
        "import sys; from qformats.folder.config_class import config_class;"
        "print(config_class('llama').defaults['hidden_size'], 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "4096 False\n"
    assert recorded("llama").defaults == ask("llama").defaults
    assert recorded("gpt2").aliases == ask("gpt2").aliases


def test_other_types_are_not_recorded():
    assert recorded("opt") is None
    assert recorded(["llama"]) is None
    assert config_class("opt").defaults["hidden_size"] == 768
    assert "opt" in causal_types()
    with pytest.raises(KeyError):
        config_class("nothing")


def test_other_names_of_keys_win_as_in_transformers():
    from transformers import GPT2Config

    for config in ({"hidden_size": 32}, {"hidden_size": 32, "n_embd": 64}, {"n_embd": 64, "hidden_size": 32}):
        assert config_class("gpt2").completed(config)["n_embd"] == GPT2Config(**config).n_embd


def _glm(folder):
    from transformers import GlmConfig, GlmForCausalLM

    sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    tokens = {"pad_token_id": 0, "eos_token_id": 0, "max_position_embeddings": 128}
    GlmForCausalLM(GlmConfig(**sizes, **heads, **tokens)).save_pretrained(folder)
    return folder


def _published_gpt2(folder):
    """Without the prefix of the base model, with masks, and with the few keys of its first config.json."""
    tiny.build("gpt2", folder)
    weights = load_file(folder / "model.safetensors")
    bare = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    masks = {f"h.{n}.attn.bias": weights["transformer.ln_f.bias"].new_ones(1, 1, 8, 8) for n in range(2)}
    save_file(bare | masks, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for key in ("tie_word_embeddings", "n_inner", "dtype"):
        config.pop(key)
    (folder / "config.json").write_text(json.dumps(config | {"n_ctx": 256, "do_sample": True}))
    return folder


def _few_keys(folder):
    """As the first llamas: no groups, nothing about ties, and a key that no class knows."""
    tiny.build("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    for key in ("tie_word_embeddings", "attention_bias", "mlp_bias", "head_dim"):
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config | {"max_sequence_length": 256, "trained_by": "us"}))
    return folder


MODELS = {
    **{kind: lambda folder, kind=kind: tiny.build(kind, folder) for kind in tiny.TINY if kind in TYPES},
    "glm": _glm,
    "published gpt2": _published_gpt2,
    "few keys": _few_keys,
}
PLANS = """
import sys
from qformats.cli.inspect import inspect
for model in sys.argv[1:]:
    for format in ("gguf:q4_0", "bitsandbytes:nf4", "glm:int4", "gptq:4bit-128g"):
        inspect(model, plan=format)
        assert "transformers" not in sys.modules, (model, format)
"""


def test_a_plan_of_layers_of_several_kinds_needs_no_transformers(tmp_path):
    """Whose tensors the architecture's table tells, of a config.json alone."""
    from models.architectures import CASES, SHARED_SIZES
    from transformers import AutoConfig

    names = ["falcon-40b", "llama4", "internlm3", "qwen3_next", "lfm2", "lfm2_moe", "mamba", "glm4_moe_lite"]
    files = []
    for name in names:
        case = CASES[name]
        config = AutoConfig.for_model(case.model_type, **{**SHARED_SIZES, "vocab_size": 96, **case.config})
        config.architectures = [case.cls]
        config.save_pretrained(tmp_path / name)
        files.append(tmp_path / name / "config.json")
    done = subprocess.run([sys.executable, "-c", PLANS, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_of_any_architecture_needs_no_transformers(tmp_path, name):
    folder = MODELS[name](tmp_path / "model")
    models = [folder / "config.json", folder]
    if name != "glm":
        # The tiny one has no tokenizer, without which there is no such file.
        models.append(tmp_path / "model.gguf")
        qformats.export(folder, models[-1], format="gguf:q8_0")
    done = subprocess.run(
        [sys.executable, "-c", PLANS, *map(str, models)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
