"""Whole comparisons: files, formats that are tried, the base's kept predictions, and models that do not fit."""

import json
import math
import shutil

import pytest
import torch
from models import tiny
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

import qformats
from qformats.comparing.report import CompareReport
from qformats.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConfigError,
    NonFiniteError,
    QFormatsError,
)
from qformats.runtime import load as runtime
from qformats.work.progress import Silent

TEXT = {"text": "demo", "window": 64, "windows": 2}


@pytest.mark.parametrize("format", ["gguf:q4_0", "gptq:4bit-128g", "bitsandbytes:nf4-dq"])
def test_a_tried_format_is_what_its_export_is(format, made):
    """The same bytes, hence the same distances and the same predictions; and nothing is written."""
    path = made({"gguf:q4_0": "q4_0", "gptq:4bit-128g": "gptq", "bitsandbytes:nf4-dq": "nf4-dq"}[format])
    report = qformats.compare("demo", path, try_=[format], quantizer="rtn", **TEXT)
    file, tried = report.models
    assert tried.name == (f"{format} (rtn)" if format.startswith("gptq") else format)
    assert tried.tried
    assert tried.quantizer == "rtn"
    assert not file.tried
    assert file.quantizer == ""
    assert tried.weights == file.weights
    assert tried.behaviour == file.behaviour
    for name in ("format", "formats", "container", "nbytes", "parameters", "bits_per_weight"):
        assert getattr(tried, name) == getattr(file, name), name
    pair = report.identical[-1]
    assert len(pair.same_bytes) == pair.common == len(qformats.open("demo").tensors)


def test_a_calibrating_quantizer_can_be_tried(made):
    """It works on the whole model first, and gives up nearness of weights for nearness of outputs.

    Options go to the formats whose quantizer has them.
    """
    options = {"samples": "2", "sequence-length": "32"}
    report = qformats.compare("demo", made("gptq"), try_=["gptq", "gguf:q8_0"], quantizer_options=options)
    rounded, calibrated, plain = report.models
    assert (plain.name, plain.quantizer) == ("gguf:q8_0", "rtn")
    assert calibrated.name == "gptq:4bit-128g"
    assert calibrated.quantizer == "gptq"
    assert calibrated.format == rounded.format == "gptq:4bit-128g"
    assert calibrated.nbytes == rounded.nbytes
    with pytest.raises(ConfigError, match="sampels"):
        qformats.compare("demo", try_=["gptq", "gguf:q8_0"], quantizer_options={"sampels": "2"})
    assert rounded.weights.linears.rmse < calibrated.weights.linears.rmse < 2 * rounded.weights.linears.rmse


def test_without_a_text_only_weights(made):
    report = qformats.compare("demo", made("q8_0"))
    assert report.text is None
    assert report.base.behaviour is report.models[0].behaviour is report.models[0].speed is None
    assert 40 < report.models[0].weights.linears.sqnr_db < 50
    assert any("--text" in note for note in report.notes)


def test_speed_and_memory(made):
    report = qformats.compare("demo", made("q8_0"), speed=True, device="cpu")
    for model in (report.base, *report.models):
        assert model.speed.device == "cpu"
        assert model.speed.load_seconds > 0
        assert 0 < model.speed.tokens_per_second < model.speed.prompt_tokens_per_second
        assert model.speed.peak_bytes > 0
        assert model.behaviour is None


def test_report_round_trip(made):
    report = qformats.compare("demo", "demo", made("gptq"), **TEXT)
    again = CompareReport.from_dict(json.loads(report.to_json()))
    assert again == report
    same = report.models[0]
    assert same.weights.total.sqnr_db == math.inf
    assert report.to_dict()["models"][0]["weights"]["total"]["sqnr_db"] is None
    lines = report.to_csv().splitlines()
    assert len(lines) == 4
    head = lines[0].split(",")
    assert {"name", "format", "weights.linears.sqnr_db", "behaviour.against.kl.mean.value"} <= {*head}
    with pytest.raises(ConfigError, match="a whole report"):
        CompareReport.from_dict({"models": []})


def test_a_mix_of_one_family_says_so():
    """No type has nine tenths of the weights of q4_k_m here: 23 of 28 matrices are q4_k."""
    (tried,) = qformats.compare("demo", try_=["gguf:q4_k_m"]).models
    assert {"gguf:q4_k", "gguf:q6_k"} <= {*tried.formats}
    assert tried.format == "gguf:mixed"


def test_names_are_told_apart(made):
    report = qformats.compare("demo", "demo", "demo", made("q8_0"), try_=["gguf:q4_0", "gguf:q4_0"])
    names = [report.base.name, *(model.name for model in report.models)]
    assert len({*names}) == 6
    assert names[0] == "demo-llama"
    assert report.base.format == "dense:bf16"
    assert [model.format for model in report.models[2:]] == ["gguf:q8_0", "gguf:q4_0", "gguf:q4_0"]


def test_kept_predictions_stand_for_the_base(made, tmp_path, monkeypatch):
    file = tmp_path / "predictions"
    first = qformats.compare("demo", made("gptq"), logits=file, **TEXT)
    assert file.stat().st_size < 2 * 31 * (2 * 2048 + 64) + 1024
    before = file.stat().st_mtime_ns
    loaded = []
    load = runtime.load_model
    monkeypatch.setattr(runtime, "load_model", lambda m, **k: loaded.append(m.name) or load(m, **k))
    second = qformats.compare("demo", made("gptq"), logits=file, **TEXT)
    assert loaded == ["gptq"]
    assert file.stat().st_mtime_ns == before
    assert second.base.behaviour == first.base.behaviour
    assert second.models[0].behaviour == first.models[0].behaviour
    for changes, what in (
        ({"window": 32}, "text or tokenizer and another window"),
        ({"windows": 3}, "text or tokenizer"),
        ({"dtype": "bf16"}, "dtype"),
    ):
        with pytest.raises(CheckpointError, match=f"another {what}"):
            qformats.compare("demo", made("gptq"), logits=file, **{**TEXT, **changes})
    with pytest.raises(CheckpointError, match="another model"):
        qformats.compare(made("f16"), made("gptq"), logits=file, **TEXT)


def test_a_text_that_is_too_short(tmp_path):
    file = tmp_path / "short.txt"
    file.write_text("It is a truth universally acknowledged, that a single man")
    with pytest.raises(ConfigError) as caught:
        qformats.compare("demo", try_=["gguf:q8_0"], text=file)
    message = str(caught.value)
    assert str(file) in message
    assert "512 or more" in message
    assert "--window" in message
    report = qformats.compare("demo", try_=["gguf:q8_0"], text=file, window=8)
    assert any("Too few tokens for a verdict" in note for note in report.notes)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"text": "demo", "window": 4096}, "at most"),
        ({"text": "demo", "window": 2}, "4 tokens or more"),
        ({"text": "demo", "windows": 0}, "1 or more"),
        ({"text": "no/such/file.txt"}, "no/such/file.txt: cannot be read"),
        ({"logits": "somewhere"}, r"expected a text too"),
        ({"device": "abacus"}, "found 'abacus'; expected cpu"),
        ({"dtype": "f8"}, "f32, f16, bf16"),
        ({"workers": 0}, "1 or more"),
        ({"options": {"colour": "red"}}, "colour"),
    ],
)
def test_settings_that_are_not_possible(settings, says):
    with pytest.raises(QFormatsError, match=says):
        qformats.compare("demo", try_=["gguf:q8_0"], **settings)


def test_something_to_compare_is_needed():
    with pytest.raises(ConfigError, match="models: found 0; expected one or more"):
        qformats.compare("demo")


def test_a_text_that_is_no_text(tmp_path):
    file = tmp_path / "bytes"
    file.write_bytes(b"\xff\xfe\xfd" * 1000)
    with pytest.raises(CheckpointError, match="not UTF-8 text"):
        qformats.compare("demo", try_=["gguf:q8_0"], text=file)


@pytest.fixture
def broken(tmp_path):
    """The demo model with finite weights that overflow in its third block."""
    folder = tmp_path / "broken"
    shutil.copytree(qformats.open("demo").path, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"].fill_(3e38)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_a_model_that_gives_nan(broken, made):
    """Its first bad module is named, and the other models keep their results."""
    report = qformats.compare("demo", broken, made("q8_0"), **TEXT)
    bad, good = report.models
    assert bad.behaviour is None
    assert bad.weights is not None
    assert any("model.layers.2.mlp.down_proj" in note for note in bad.notes)
    assert good.behaviour.against.kl.mean.value < 1e-2
    with pytest.raises(NonFiniteError, match=r"broken predicts NaN .* model\.layers\.2\.mlp\.down_proj"):
        qformats.compare(broken, "demo", **TEXT)


def _gpt2(folder):
    """A model that cannot read more than 64 tokens, with the demo's tokenizer."""
    demo = qformats.open("demo")
    config = GPT2Config(vocab_size=demo.config["vocab_size"], n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.path / name, folder)
    return folder


def test_models_with_less_context_than_a_window(made, tmp_path):
    """They are told so, whether they could read on or not; the others keep their results."""
    short = tmp_path / "short"
    shutil.copytree(qformats.open("demo").path, short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    settings = {**TEXT, "window": 128, "windows": 1}
    report = qformats.compare("demo", short, _gpt2(tmp_path / "gpt2"), made("q8_0"), **settings)
    llama, gpt2, good = report.models
    for model in (llama, gpt2):
        assert model.behaviour is None
        assert any("takes at most 64 tokens and a window has 128" in note for note in model.notes)
    assert llama.weights is not None
    assert good.behaviour is not None
    assert not good.notes
    (model,) = qformats.compare("demo", short, **{**settings, "window": 64}).models
    assert model.behaviour.against.kl.mean.value < 1e-7


@pytest.mark.parametrize("text", [{}, {"text": "demo", "window": 128, "windows": 1}])
def test_the_speed_of_a_model_with_little_context(text, tmp_path):
    report = qformats.compare("demo", _gpt2(tmp_path / "gpt2"), speed=True, device="cpu", **text)
    assert report.models[0].speed.tokens_per_second > 0
    assert not any("speed is not known" in note for note in report.models[0].notes)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("shapes do not fit\nand a trace"), "failed while running (shapes do not fit)."),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "does not have enough memory to run gptq. Use --device cpu",
        ),
    ],
)
def test_a_model_that_fails_while_it_runs(error, says, made, monkeypatch):
    """A note of its own; of the base, an error."""
    load = runtime.load_model

    def broken(model, **settings):
        found = load(model, **settings)
        if model.name == "gptq":

            def fail(*_):
                raise error

            found.model.layers[1].register_forward_pre_hook(fail)
        return found

    monkeypatch.setattr(runtime, "load_model", broken)
    report = qformats.compare("demo", made("gptq"), made("q8_0"), speed=True, device="cpu", **TEXT)
    bad, good = report.models
    assert (bad.behaviour, bad.speed) == (None, None)
    assert bad.weights is not None
    assert [note.partition(": cpu: ")[0] for note in bad.notes] == [
        "Its speed is not known",
        "Its behaviour is not known",
    ]
    assert all(says in note and "\n" not in note for note in bad.notes)
    assert good.behaviour is not None
    assert good.speed is not None
    with pytest.raises(BackendUnavailableError) as caught:
        qformats.compare(made("gptq"), made("q8_0"), device="cpu", **TEXT)
    assert says in str(caught.value)


def test_kept_predictions_know_the_options_that_decide(made, tmp_path):
    """Options of the base's loader that change values; not those of other loaders."""
    base, file = made("q8_0"), tmp_path / "predictions"
    qformats.compare(base, base, logits=file, **TEXT)
    qformats.compare(base, base, logits=file, options={"glu": "yes"}, **TEXT)
    with pytest.raises(CheckpointError, match="another loader option"):
        qformats.compare(base, base, logits=file, options={"arch": "llama"}, **TEXT)


def test_another_file_is_no_place_for_predictions(made):
    """It is refused before any work."""
    path = made("q8_0")
    told = []

    class Told(Silent):
        def start(self, *work):
            told.append(work)

    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="is not a file of predictions"):
        qformats.compare("demo", path, logits=path, progress=Told(), **TEXT)
    assert not told
    assert path.read_bytes() == before


def test_one_scored_token(made):
    report = qformats.compare("demo", made("q8_0"), text="demo", window=4, windows=1)
    assert report.notes == (
        "Too few tokens for a verdict: 1 token was scored, in 1 window; it takes 1,000 in 4 windows. About 999 more "
        "tokens are needed: 999 more windows of 4 (a longer text, or a higher --windows).",
    )


def test_other_architectures_and_vocabularies(tmp_path):
    llama, other = tiny.build("llama", tmp_path / "llama"), tiny.build("qwen2", tmp_path / "qwen2")
    text = tmp_path / "text.txt"
    text.write_text("The keeper of the lighthouse counts 12 ships, then 34.\n" * 40)
    report = qformats.compare(llama, other, llama, text=text, window=32, windows=2)
    foreign, same = report.models
    said = " ".join(foreign.notes)
    assert "It is a qwen2 and the base a llama" in said
    assert "tokenizer splits the text differently" in said
    assert foreign.behaviour is None
    assert foreign.weights is not None
    assert same.behaviour.against.kl.mean.value < 1e-7


def test_more_tokens_than_the_base_has(tmp_path):
    """The same tokenizer over a padded vocabulary: perplexity is known, divergence is not."""
    llama, padded = tiny.build("llama", tmp_path / "llama"), tmp_path / "padded"
    shutil.copytree(llama, padded)
    tensors = load_file(padded / "model.safetensors")
    config = json.loads((padded / "config.json").read_text())
    config["vocab_size"] += 8
    (padded / "config.json").write_text(json.dumps(config))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.zeros(8, tensors[name].shape[1])])
    save_file(tensors, padded / "model.safetensors", {"format": "pt"})
    text = tmp_path / "text.txt"
    text.write_text("The keeper of the lighthouse counts 12 ships, then 34.\n" * 40)
    report = qformats.compare(llama, padded, text=text, window=32, windows=2)
    (model,) = report.models
    assert model.behaviour.against is None
    assert model.behaviour.perplexity.value > 1
    assert any("It chooses among" in note for note in model.notes)


def test_a_model_that_cannot_be_run_keeps_its_weights(tmp_path):
    llama, strange = tiny.build("llama", tmp_path / "llama"), tmp_path / "strange"
    shutil.copytree(llama, strange)
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps({**config, "model_type": "never-heard-of"}))
    text = tmp_path / "text.txt"
    text.write_text("The keeper of the lighthouse counts 12 ships, then 34.\n" * 40)
    settings = {"text": text, "window": 32, "windows": 2}
    report = qformats.compare(llama, strange, **settings)
    assert any("cannot be run" in note and "never-heard-of" in note for note in report.models[0].notes)
    assert report.models[0].weights.total.max_error == 0
    assert report.base.behaviour is not None
    report = qformats.compare(strange, llama, **settings)
    assert any("behaviour is not compared" in note for note in report.notes)
    assert report.models[0].weights.total.max_error == 0
