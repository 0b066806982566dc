"""Adapters as PEFT saves them: recognised where a model is expected, and merged into their base in any format."""

import json
import shutil
import warnings

import numpy as np
import peft
import pytest
import torch
import transformers
from cli.command import call
from models import tiny
from oracles import hf
from safetensors.torch import load_file

import qformats
from qformats.errors import CheckpointError, ConfigError, ModelNotFoundError

IDS = np.arange(3, 40, dtype=np.int64)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("base") / "llama")


def saved(base, target, change=None, **options):
    """An adapter on the base, saved by PEFT; and the logits of the base under it."""
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False, **options}
    torch.manual_seed(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
        if change is not None:
            change(adapted)
        adapted.save_pretrained(target)
    with torch.no_grad():
        return adapted(torch.from_numpy(IDS)[None]).logits[0].numpy()


def merged(adapter, target, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return qformats.merge_adapter(adapter, target, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "lora_alpha": 5, "rank_pattern": {"layers.1.self_attn.q_proj": 7}},
        {"alpha_pattern": {"q_proj": 3}, "layers_to_transform": [1], "target_modules": ["q_proj", "up_proj"]},
        {"target_modules": ["embed_tokens", "v_proj"]},
        {"target_modules": "all-linear"},
        {"target_modules": ["lm_head", "o_proj"]},
    ],
    ids=["plain", "ranks", "alphas", "embedding", "all", "head"],
)
def test_the_sum_is_what_peft_computes(base, options, tmp_path):
    expected = saved(base, tmp_path / "adapter", **options)
    report = merged(tmp_path / "adapter", tmp_path / "out", source=base)
    assert report.tensors
    found = hf.logits(hf.load(tmp_path / "out"), IDS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


@pytest.mark.filterwarnings("always::UserWarning")
def test_the_command(base, capsys, tmp_path):
    """Into a quantized base: what rounding has cost is said."""
    expected = saved(base, tmp_path / "adapter")
    qformats.export(base, tmp_path / "base.gguf", format="gguf:q8_0")
    done = call(capsys, "merge", tmp_path / "adapter", tmp_path / "base.gguf", "-o", tmp_path / "out.gguf")
    assert done.code == 0, done.err
    assert "quantized again to gguf:q8_0" in " ".join(done.err.split())
    done = call(
        *(capsys, "merge", tmp_path / "adapter", tmp_path / "base.gguf", "-o", tmp_path / "plain"),
        *("--format", "dense:f32", "--json"),
    )
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert {tensor["format"] for tensor in told["tensors"]} == {"dense:f32"}
    found = hf.logits(hf.load(tmp_path / "plain"), IDS)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_an_adapter_is_no_model(base, capsys, tmp_path):
    saved(base, tmp_path / "adapter")
    for command in (["inspect"], ["export", "--format", "gptq", "-o", tmp_path / "o"]):
        done = call(capsys, command[0], tmp_path / "adapter", *command[1:])
        assert done.code == 3
        assert "an adapter (LORA) for " in done.err
        assert f"qformats merge {tmp_path / 'adapter'} {base} -o OUT" in done.err
    # Trainers leave the base's configuration in the same folder.
    shutil.copy(base / "config.json", tmp_path / "adapter")
    with pytest.raises(ModelNotFoundError, match="an adapter"):
        qformats.open(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=f"source: found None.*it was trained on {base}"):
        qformats.merge_adapter(tmp_path / "adapter", tmp_path / "out")


def test_an_adapter_beside_the_weights_is_mentioned(base, capsys, tmp_path):
    """Transformers, with PEFT installed, applies it; what is exported is the base."""
    folder = tmp_path / "both"
    shutil.copytree(base, folder)
    saved(base, folder)
    done = call(capsys, "export", folder, "--format", "gguf:q8_0", "-o", tmp_path / "o.gguf")
    assert done.code == 0, done.err
    assert "adapter_config.json" in done.out
    assert "qformats merge" in done.out
    expected = hf.logits(hf.load(folder), IDS)
    merged(folder, tmp_path / "out", source=folder)
    found = hf.logits(hf.load(tmp_path / "out"), IDS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def test_a_whole_module_that_was_not_trained_is_a_copy(base, tmp_path):
    """PEFT saves it with the adapter; nothing is lost without it."""
    expected = saved(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    merged(tmp_path / "adapter", tmp_path / "out", source=base)
    found = hf.logits(hf.load(tmp_path / "out"), IDS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()


def _trained_head(model):
    torch.nn.init.normal_(model.get_base_model().lm_head.modules_to_save["default"].weight)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"use_dora": True}, None, "plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, _trained_head, "a whole lm_head.weight"),
        ({"bias": "lora_only", "target_modules": ["q_proj"]}, None, "bias"),
        ({"layer_replication": [[0, 2], [1, 2]]}, None, "layer_replication"),
        ({"init_lora_weights": "pissa"}, None, "init_lora_weights"),
        ({"init_lora_weights": "olora"}, None, "init_lora_weights"),
    ],
    ids=["dora", "whole", "bias", "replicas", "pissa", "olora"],
)
def test_what_is_not_a_sum_is_refused(base, options, change, message, tmp_path):
    saved(base, tmp_path / "adapter", change, **options)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        qformats.merge_adapter(tmp_path / "adapter", tmp_path / "out", source=base)
    assert not (tmp_path / "out").exists()


def test_pickled_adapters(base, tmp_path):
    """PEFT's older files; what their pickle may call is what a model's may."""
    expected = saved(base, tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    merged(tmp_path / "adapter", tmp_path / "out", source=base)
    found = hf.logits(hf.load(tmp_path / "out"), IDS)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    elsewhere = tmp_path / "elsewhere.bin"
    weights.with_suffix(".bin").rename(elsewhere)
    weights.with_suffix(".bin").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="link"):
        qformats.merge_adapter(tmp_path / "adapter", tmp_path / "other", source=base)


def test_folders_that_do_not_fit(base, tmp_path):
    saved(base, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        qformats.merge_adapter(tmp_path, tmp_path / "out", source=base)
    with pytest.raises(CheckpointError, match="trained on this model"):
        qformats.merge_adapter(tmp_path / "adapter", tmp_path / "out", source="demo")
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        qformats.merge_adapter(tmp_path / "nope", tmp_path / "out", source=base)
    for change, message in (
        ({"target_modules": ["q_proj"]}, r"holds unknown .*down_proj"),
        ({"target_modules": ["q_proj", "down_proj", "up_proj"]}, r"lacks .*up_proj"),
        ({"peft_type": "NONSENSE"}, "NONSENSE"),
        ({"target_modules": ["nothing"]}, "nothing"),
    ):
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            qformats.merge_adapter(tmp_path / "adapter", tmp_path / "out", source=base)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="adapter"):
        qformats.merge_adapter(tmp_path / "adapter", tmp_path / "out", source=base)


@pytest.mark.parametrize("trained_on", ["llama", "llama-tied"])
@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_an_adapter_on_a_tied_layer_is_said_to_be_that(trained_on, target, suffix, tmp_path):
    """Also if the adapter was trained on a base that is not tied, and holds a copy of its layer."""
    tied = tiny.build("llama-tied", tmp_path / "tied")
    saved(tiny.build(trained_on, tmp_path / "other"), tmp_path / "adapter", target_modules=[target])
    if suffix:
        qformats.export(tied, tmp_path / "tied.gguf", format="gguf:f32")
        tied = tmp_path / "tied.gguf"
    first, second = "lm_head.weight", "model.embed_tokens.weight"
    if target == "embed_tokens":
        first, second = second, first
    with pytest.raises(CheckpointError, match=rf"an adapter on {first}, which .*tied\S* ties to {second}"):
        qformats.merge_adapter(tmp_path / "adapter", tmp_path / "out", source=tied)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("suffix", ["", ".gguf"])
def test_swapped_arguments(base, capsys, suffix, tmp_path):
    saved(base, tmp_path / "adapter")
    model = base
    if suffix:
        model = tmp_path / "model.gguf"
        qformats.export(base, model, format="gguf:f32")
    done = call(capsys, "merge", model, tmp_path / "adapter", "-o", tmp_path / "out")
    assert (done.code, done.out) == (3, "")
    right = f"qformats merge {tmp_path / 'adapter'} {model} -o OUT"
    assert done.err == (
        f"qformats: {model}: no adapter, while {tmp_path / 'adapter'} is one. The adapter comes first: {right}.\n"
    )
    with pytest.raises(ModelNotFoundError, match="The adapter comes first"):
        qformats.merge_adapter(model, tmp_path / "out", source=tmp_path / "adapter")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:.*quantized again:UserWarning")
@pytest.mark.parametrize("format", [None, "gguf:q8_0"])
def test_rules_that_nobody_gave_are_not_shown(base, capsys, format, tmp_path):
    saved(base, tmp_path / "adapter")
    qformats.export(base, tmp_path / "base", format="gptq:8bit-32g", quantizer="rtn")
    chosen = () if format is None else ("--format", format)
    for shown in ((), ("--json",)):
        target = tmp_path / f"out{len(shown)}"
        done = call(capsys, "merge", tmp_path / "adapter", tmp_path / "base", "-o", target, *chosen, *shown)
        assert done.code == 0, done.err
        assert done.out
        assert "by rule" not in done.out
        assert "^model" not in done.out
