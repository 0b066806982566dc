"""Tensors are compared with the model's own class: what Transformers accepts passes, what is no model does not."""

import copy
import json
import re
import shutil

import pytest
import torch
from cli.command import call
from models import tiny, zoo
from models.records import forget
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import qformats
from qformats.errors import CheckpointError, ConfigError
from qformats.folder.fit import _asked, fitted
from qformats.folder.usual import usual_class, usual_fit


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    made = {}

    def build(name):
        if name not in made:
            made[name] = zoo.build(name, tmp_path_factory.mktemp("zoo") / name)
        return made[name]

    return build


@pytest.fixture
def copied(built, tmp_path):
    """A model of the zoo that the test may change."""

    def copied(name):
        return shutil.copytree(built(name), tmp_path / "in" / name)

    return copied


def _state(folder):
    return load_file(folder / "model.safetensors")


def _save(folder, state):
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _rename(folder, rename):
    _save(folder, {rename(name): value for name, value in _state(folder).items()})


def _configure(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def _export(folder, out, format="dense:f16"):
    return qformats.export(folder, out, format=format, force=True)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_models_as_transformers_saves_them_pass(name, built, tmp_path):
    fit = fitted(qformats.open(built(name)))
    assert fit.model_class == zoo.ZOO[name][1]
    assert fit.notes == ()
    report = _export(built(name), tmp_path / "out")
    assert {t.name for t in report.tensors} == set(_state(built(name)))
    assert fitted(qformats.open(tmp_path / "out")).model_class == fit.model_class


@pytest.mark.parametrize("name", zoo.ZOO)
def test_no_tensor_may_be_missing_added_or_misshapen(name, copied, tmp_path):
    folder = copied(name)
    state = _state(folder)
    names = list(state)
    for victim in names[:: max(1, len(names) // 3)]:
        _save(folder, {k: v for k, v in state.items() if k != victim})
        with pytest.raises(CheckpointError, match=r"lacks|do not make|shape"):
            _export(folder, tmp_path / "out")
        _save(folder, {**state, victim: torch.zeros([size + 2 for size in state[victim].shape] or [3])})
        with pytest.raises(CheckpointError, match=r"shape|do not make"):
            _export(folder, tmp_path / "out")
    _save(folder, {**state, "model.layers.0.self_attn.extra.weight": torch.zeros(2, 2)})
    with pytest.raises(
        CheckpointError, match=r"1 tensor not part of \w+.*model\.layers\.0\.self_attn\.extra\.weight"
    ):
        _export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Names under which models are found, and which Transformers accepts.


def test_old_names_of_layer_norms_pass(copied):
    folder = copied("bert")
    _rename(
        folder,
        lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    )
    assert any(name.endswith("gamma") for name in _state(folder))
    assert fitted(qformats.open(folder)).notes == ()


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama-tied"])
def test_base_model_prefixes_may_be_left_out(name, copied, tmp_path):
    folder = copied(name)
    prefix = "model." if name.startswith("llama") else "transformer."
    _rename(folder, lambda n: n.removeprefix(prefix))
    AutoModelForCausalLM.from_pretrained(folder)
    assert fitted(qformats.open(folder)).notes == ()
    assert "wte.weight" not in {t.name for t in _export(folder, tmp_path / "out").tensors} or name == "gpt2"


def test_hub_names_of_gemma3_pass(copied):
    """As the published files have them, for which Transformers renames."""
    folder = copied("gemma3")
    names = set(_state(folder))
    assert {name.partition(".")[0] for name in names} == {
        "language_model",
        "vision_tower",
        "multi_modal_projector",
    }
    assert fitted(qformats.open(folder)).model_class == "Gemma3ForConditionalGeneration"


def test_what_classes_compute_is_kept_and_said(copied, tmp_path):
    """Rotary tables of old checkpoints, attention masks of GPT-2, the ids of positions."""
    for name, extra in (
        ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
        ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 128, 128)}),
        ("gpt2", {"h.0.attn.masked_bias": torch.tensor(-1e4)}),
        ("bert", {"bert.embeddings.position_ids": torch.arange(128)[None]}),
    ):
        folder = copied(name) if not (tmp_path / "in" / name).exists() else tmp_path / "in" / name
        _save(folder, {**_state(folder), **extra})
        report = _export(folder, tmp_path / "out")
        assert extra.keys() <= {t.name for t in report.tensors}
        assert any(next(iter(extra)) in note and "does not read" in note for note in report.notes)


def test_layers_that_predict_more_tokens_pass_if_the_configuration_counts_them(copied, tmp_path):
    folder = copied("deepseek_v3")
    state = _state(folder)
    more = {n.replace("layers.1.", "layers.2."): v.clone() for n, v in state.items() if ".layers.1." in n}
    more["model.layers.2.eh_proj.weight"] = torch.zeros(64, 128)
    _save(folder, state | more)
    _configure(folder, num_nextn_predict_layers=1)
    report = _export(folder, tmp_path / "out")
    assert {t.name for t in report.tensors} == {*state, *more}
    assert any("model.layers.2." in note for note in report.notes)
    _configure(folder, num_nextn_predict_layers=None)
    with pytest.raises(CheckpointError, match=r"not part of DeepseekV3ForCausalLM.*model\.layers\.2\."):
        _export(folder, tmp_path / "out")


@pytest.mark.parametrize("name", ["gpt2", "deepseek_v3"])
def test_what_is_ignored_here_does_not_keep_a_model_from_running(name, copied):
    folder = copied(name)
    wanted = qformats.load_model(folder)(torch.tensor([[1, 2, 3]])).logits
    state = _state(folder)
    if name == "gpt2":
        more = {"h.0.attn.bias": torch.ones(1, 1, 128, 128), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    else:
        more = {n.replace("layers.1.", "layers.2."): v.clone() for n, v in state.items() if ".layers.1." in n}
        _configure(folder, num_nextn_predict_layers=1)
    _save(folder, state | more)
    assert torch.equal(qformats.load_model(folder)(torch.tensor([[1, 2, 3]])).logits, wanted)


def test_a_head_of_another_class_of_the_same_type_passes(copied):
    """bert-base-uncased names BertForMaskedLM and has the head of the sentence prediction too."""
    folder = copied("bert")
    _configure(folder, architectures=["BertForMaskedLM"])
    fit = fitted(qformats.open(folder))
    assert fit.model_class == "BertForMaskedLM"
    assert "cls.seq_relationship.weight" in fit.ignored


# Names that no class has.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda n: f"_orig_mod.{n}",
        lambda n: f"module.{n}",
        lambda n: f"module._orig_mod.{n}",
        lambda n: f"base_model.model.{n}",
        lambda n: n.replace("model.layers.", "model._orig_mod.layers."),
        lambda n: re.sub(r"(layers\.\d+)\.", r"\1._fsdp_wrapped_module._checkpoint_wrapped_module.", n),
        lambda n: f"language_model.{n}",
        lambda n: f"model.{n}",
        lambda n: f"net.inner.{n}",
    ],
    ids=["compiled", "parallel", "both", "peft", "compiled-inside", "fsdp", "cut-out", "trained", "nested"],
)
@pytest.mark.parametrize("format", ["dense:f32", "bitsandbytes:nf4"])
def test_prefixes_of_wrappers_are_removed_and_said(wrap, format, built, copied, tmp_path, capsys):
    folder = copied("qwen2")
    _rename(folder, wrap)
    assert set(_state(folder)) != set(_state(built("qwen2")))
    result = call(capsys, "export", folder, "--format", format, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert "removed" in result.out
    assert qformats.open(tmp_path / "out").tensors.keys() == _state(built("qwen2")).keys()
    if format == "dense:f32":
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
        for name, value in _state(built("qwen2")).items():
            assert torch.equal(read[name], value), name


def test_wrapped_names_become_those_of_a_gguf(tmp_path):
    folder = tiny.build("qwen2", tmp_path / "in")
    qformats.export(folder, tmp_path / "plain.gguf", format="gguf:q8_0")
    _rename(folder, lambda n: f"module._orig_mod.{n}")
    qformats.export(folder, tmp_path / "in.gguf", format="gguf:q8_0")
    plain, wrapped = qformats.open(tmp_path / "plain.gguf"), qformats.open(tmp_path / "in.gguf")
    assert plain.tensors.keys() == wrapped.tensors.keys()
    for name in plain.tensors:
        assert torch.equal(plain.read(name), wrapped.read(name)), name


def test_a_wrapped_copy_of_a_tied_weight_is_one(tmp_path):
    folder = tiny.build("llama-tied", tmp_path / "in")
    state = _state(folder)
    _save(folder, state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()})
    _rename(folder, lambda n: f"_orig_mod.{n}")
    report = _export(folder, tmp_path / "out")
    assert {tensor.name for tensor in report.tensors} == state.keys()
    assert "lm_head.weight" in str(report.left_out)


def test_wrapped_names_that_collide_are_refused(copied, tmp_path):
    folder = copied("llama")
    state = _state(folder)
    _save(folder, {**state, "_orig_mod.model.norm.weight": torch.zeros(64)})
    with pytest.raises(
        CheckpointError, match=r"not part of LlamaForCausalLM.*_orig_mod\.model\.norm\.weight"
    ):
        _export(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "extra",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_B.default.weight",
        "model.layers.0.self_attn.q_proj.base_layer.weight",
        "lm_head.modules_to_save.default.weight",
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_matrices_of_adapters_are_no_model(extra, alone, copied, tmp_path):
    folder = copied("llama")
    _save(folder, {extra: torch.zeros(4, 64)} | ({} if alone else _state(folder)))
    with pytest.raises(CheckpointError, match=r"adapter.*Merge"):
        _export(folder, tmp_path / "out", "bitsandbytes:nf4")
    assert not (tmp_path / "out").exists()


def test_biases_that_the_index_forgets_are_read(copied, built, tmp_path):
    folder = copied("qwen2")
    state = _state(folder)
    shard = "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / shard)
    listed = {name: shard for name in state if not name.endswith("k_proj.bias")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    _export(folder, tmp_path / "out", "dense:f32")
    written = _state(tmp_path / "out")
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], value) for name, value in state.items())


def test_integers_of_a_quantized_model_are_no_weights(copied, tmp_path):
    folder = copied("llama")
    state = _state(folder)
    name = "model.layers.0.mlp.up_proj"
    state[f"{name}.qweight"] = torch.zeros(8, 96, dtype=torch.int32)
    del state[f"{name}.weight"]
    _save(folder, state)
    with pytest.raises(CheckpointError, match=r"quantiz|qweight"):
        _export(folder, tmp_path / "out")


# Every direction that ends in a folder.


@pytest.mark.parametrize("source", ["gptq:4bit-32g", "bitsandbytes:nf4", "glm:int8"])
@pytest.mark.parametrize("target", ["dense:f32", "bitsandbytes:int8", "gptq:8bit-32g"])
def test_a_quantized_model_that_lacks_a_tensor_is_refused(source, target, built, tmp_path):
    qformats.export(built("qwen2"), tmp_path / "q", format=source, quantizer="rtn")
    state = _state(tmp_path / "q")
    del state["model.layers.1.self_attn.k_proj.bias"]
    _save(tmp_path / "q", state)
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensor that .*model\.layers\.1\.self_attn\.k_proj\.bias"
    ):
        qformats.export(tmp_path / "q", tmp_path / "out", format=target, quantizer="rtn")


def test_a_format_that_no_tensor_gets_is_refused(copied, tmp_path):
    folder = copied("llama")
    with pytest.raises(
        ConfigError, match="'bitsandbytes:nf4'; expected one that holds a tensor of this model"
    ):
        qformats.export(folder, tmp_path / "out", format="bitsandbytes:nf4", tensor_types={".*": "dense:f32"})


@pytest.mark.parametrize("target", ["dense:f32", "glm:int8"])
def test_biases_of_zeros_are_those_of_the_class(target, built, tmp_path):
    """Tools for GPTQ give one to every layer. Those that the class has stay; the others are left out, by name."""
    qformats.export(built("qwen2"), tmp_path / "q", format="gptq:4bit-32g", quantizer="rtn")
    state = _state(tmp_path / "q")
    own = {name for name in state if name.endswith("_proj.bias")}
    assert len(own) == 6
    assert not any(state[name].any() for name in own)
    modules = {name.removesuffix(".qweight") for name in state if name.endswith(".qweight")}
    more = {f"{module}.bias": torch.zeros(state[f"{module}.qweight"].shape[1]) for module in modules}
    _save(tmp_path / "q", more | state)
    forget(tmp_path / "q")
    report = qformats.export(tmp_path / "q", tmp_path / "out", format=target, quantizer="rtn")
    assert {name for name in _state(tmp_path / "out") if name.endswith("_proj.bias")} == own
    assert {tensor.name for tensor in report.left_out} == more.keys() - own


# Where nobody can tell.


def test_an_unknown_type_is_said_not_refused(copied, tmp_path, capsys):
    folder = copied("llama")
    _configure(folder, model_type="nobody_knows", auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (folder / "modeling.py").write_text("raise SystemExit('was run')")
    _save(folder, {**_state(folder), "model.novelty": torch.zeros(3)})
    for more in ([], ["--dry-run"]):
        result = call(
            capsys, "export", folder, "--format", "bitsandbytes:nf4", "-o", tmp_path / "out", *more, "--force"
        )
        assert result.code == 0, result.err
        told = " ".join(result.out.split())
        assert "no class to compare names and shapes with" in told
        assert "nobody_knows and its own code is not run" in told


def test_code_of_its_own_under_a_known_type_is_said(copied, tmp_path):
    folder = copied("llama")
    _rename(folder, lambda n: f"decoder.{n.replace('layers', 'blocks')}")
    _configure(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert "code of its own" in _export(folder, tmp_path / "out").notes[0]
    _configure(folder, auto_map=None)
    with pytest.raises(CheckpointError, match="none of its"):
        _export(folder, tmp_path / "out")


def test_a_native_model_with_code_beside_it_is_checked(copied, tmp_path):
    folder = copied("qwen2")
    _configure(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    assert _export(folder, tmp_path / "out").notes == ()
    _save(folder, {k: v for k, v in _state(folder).items() if "norm" not in k})
    with pytest.raises(CheckpointError, match="lacks"):
        _export(folder, tmp_path / "out")


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_local_experts", "num_labels"])
def test_absurd_numbers_are_refused_at_once(key, copied, tmp_path):
    folder = copied("mixtral")
    # With another activation than usual, its class in Transformers is asked, which would allocate for each of them.
    _configure(folder, **{key: 10**9, "hidden_act": "gelu"})
    with pytest.raises(CheckpointError, match=f"{10**9} {key}"):
        _export(folder, tmp_path / "out")


def test_a_configuration_that_no_class_understands_is_said(copied, tmp_path):
    folder = copied("llama")
    _configure(folder, hidden_size="sixty-four")
    assert "no class to compare" in _export(folder, tmp_path / "out").notes[0]


# The short cut for the most common types.


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("llama", {"mlp_bias": True, "head_dim": 8}),
        ("mistral", {}),
        ("mistral", {"head_dim": 32}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
        ("qwen3", {"attention_bias": True, "head_dim": 32}),
        ("glm", {"head_dim": 16}),
        ("glm", {"attention_bias": False, "head_dim": 32}),
    ],
)
def test_usual_models_are_those_of_transformers(kind, more, tied):
    sizes = {**zoo._SIZES, **more, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for spelled in (sizes | {"model_type": kind}, json.loads(config.to_json_string())):
        assert usual_class(spelled, shapes) == type(model).__name__
        less = copy.copy(shapes)
        assert less.pop("model.norm.weight")
        assert usual_class(spelled, less) is None
        assert usual_class(spelled, shapes | {"more": (1,)}) is None
        assert usual_class(spelled, shapes | {"model.norm.weight": (65,)}) is None
    without = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    assert usual_class(sizes | {"model_type": kind}, without) == (type(model).__name__ if tied else None)


# As published: GPT-2 without the prefix of its base model and with masks, the first llamas with rotations.
OLD = {
    "gpt2": ("gpt2", "transformer.", "h.{}.attn.bias", (1, 1, 8, 8)),
    "gpt2-own-names": ("gpt2", "", "transformer.h.{}.attn.masked_bias", ()),
    "llama": ("llama", "", "model.layers.{}.self_attn.rotary_emb.inv_freq", (8,)),
}


@pytest.mark.parametrize("name", OLD)
def test_tables_that_a_class_computes_are_told_as_transformers_tells_them(name):
    kind, prefix, table, shape = OLD[name]
    config = AutoConfig.for_model(kind, **(zoo._GPT2 if kind == "gpt2" else zoo._SIZES))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    kept = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight" or not prefix}
    shapes = {name.removeprefix(prefix): tuple(value.shape) for name, value in kept.items()}
    shapes |= {table.format(number): shape for number in range(2)}
    written = json.loads(config.to_json_string())
    asked, problem = _asked(json.dumps(written), tuple(shapes.items()))
    assert problem is None
    assert len(asked.ignored) == 2
    assert usual_fit(written, shapes) == (asked.model_class, asked.ignored)
    assert usual_fit(written, shapes | {table.format(0) + ".more": shape}) is None


def test_usual_models_need_no_transformers(built, tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, qformats; qformats.export(sys.argv[1], sys.argv[2], format='bitsandbytes:nf4');"
        "sys.exit('transformers' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, built("llama"), tmp_path / "out"], check=False).returncode
        == 0
    )
