"""`--mix measured`: no more bytes than the named mix, less divergence, ordinary types, and reasons for all of it."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from cli.command import call
from models import tiny
from oracles.llama_cpp import LlamaCpp

import qformats
from qformats.calibration.measured import with_measured_mix
from qformats.errors import ConfigError
from qformats.exporting import Recipe, make_plan
from qformats.work.progress import Silent

FEW = {"samples": "2", "sequence-length": "48", "device": "cpu"}


def _plan(source, format, **changes):
    options = tuple((changes.pop("quantizer_options", {}) | FEW).items())
    recipe = Recipe(format, quantizer_options=options, **changes)
    target = Path("model.gguf")
    named = make_plan(source, target, Recipe(format, **changes), {})
    return named, make_plan(source, target, with_measured_mix(source, target, recipe, {}, Silent()), {})


@pytest.fixture(scope="module")
def demo():
    return qformats.open("demo")


@pytest.fixture(scope="module")
def divergence():
    """Mean KL divergence of a file from the demo model, on 4 x 512 held-out tokens."""
    text = files("qformats").joinpath("demo", "heldout.txt").read_text(encoding="utf-8")[:16_000]
    ids = qformats.load_tokenizer("demo")(text, verbose=False)["input_ids"]
    tokens = torch.tensor(ids[: 4 * 512]).view(4, 512)

    def logarithms(model):
        with torch.inference_mode():
            return model(tokens, use_cache=False).logits.log_softmax(-1)

    before = logarithms(qformats.load_model("demo", device="cpu", dtype="f32"))

    def of(file):
        after = logarithms(qformats.load_model(file, device="cpu", dtype="f32"))
        return float((before.exp() * (before - after)).sum(-1).mean())

    return of


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:q4_k_m", "gguf:q2_k", "gguf:q8_0"])
def test_takes_no_more_bytes_than_the_name(demo, format):
    named, measured = _plan(demo, format)
    assert measured.layout.nbytes <= named.layout.nbytes
    assert [t.name for t in measured.tensors] == [t.name for t in named.tensors]
    # Most of the budget is spent: the smallest step here is 32 KB.
    assert named.layout.nbytes - measured.layout.nbytes < 33_000
    for before, after in zip(named.tensors, measured.tensors, strict=True):
        if not before.packer.quantizes:
            assert after.packer.name == before.packer.name
            continue
        note = after.assignment.note
        if after.packer.name == before.packer.name:
            assert note == "measured: as by name"
        else:
            assert note == f"measured: instead of {before.packer.spec.variant}"
    assert [note.startswith("measured: 30 weights cost") for note in measured.notes] == [True]


@pytest.mark.parametrize("format", ["gguf:q4_0", "gguf:q2_k"])
def test_diverges_a_fifth_less_at_least(format, divergence, tmp_path):
    options = {"samples": "8", "sequence-length": "128", "device": "cpu"}
    named = qformats.export("demo", tmp_path / "named.gguf", format=format)
    measured = qformats.export(
        "demo", tmp_path / "measured.gguf", format=format, mix="measured", quantizer_options=options
    )
    assert measured.file_nbytes <= named.file_nbytes
    # 0.4 of it where it was written, on this text and on four times as much.
    assert divergence(tmp_path / "measured.gguf") < 0.8 * divergence(tmp_path / "named.gguf")


def test_llama_cpp_runs_it(tmp_path):
    target = tmp_path / "measured.gguf"
    report = qformats.export("demo", target, format="gguf:q3_k_m", mix="measured", quantizer_options=FEW)
    assert len(report.types) > 3
    ids = [1, 5, 9, 33, 7, 2, 60, 12]
    with LlamaCpp(target) as model:
        theirs = torch.from_numpy(np.asarray(model.logits(ids))).log_softmax(-1)
    with torch.inference_mode():
        ours = qformats.load_model(target, device="cpu")(torch.tensor([ids])).logits[0].log_softmax(-1)
    # llama.cpp rounds activations to 8 bits where it multiplies.
    assert float((ours.exp() * (ours - theirs)).sum(-1).mean()) < 5e-3


def test_the_named_mix_stays_as_it_is_and_the_measured_one_is_the_same_twice(tmp_path):
    for name, mix in (("a", None), ("b", "named"), ("c", "measured"), ("d", "measured")):
        more = {} if mix is None else {"mix": mix}
        if mix == "measured":
            more["quantizer_options"] = FEW
        qformats.export("demo", tmp_path / name, format="gguf:q4_k_m", container="gguf", **more)
    content = {name: (tmp_path / name).read_bytes() for name in "abcd"}
    assert content["a"] == content["b"] != content["c"] == content["d"]


def test_rules_come_first(demo):
    rules = (("ffn_down", "q8_0"),)
    named, measured = _plan(demo, "gguf:q4_k_m", tensor_types=rules, token_embedding_type="q6_k")
    formats = {t.name: t.packer.name for t in measured.tensors}
    assert {f for name, f in formats.items() if "ffn_down" in name} == {"gguf:q8_0"}
    assert formats["token_embd.weight"] == "gguf:q6_k"
    assert measured.layout.nbytes <= named.layout.nbytes


@pytest.mark.parametrize("name", ["llama-tied", "llama", "qwen2"])
def test_rows_that_are_no_multiple_of_256_and_tied_heads(name, tmp_path):
    source = qformats.open(tiny.build(name, tmp_path / name))
    named, measured = _plan(source, "gguf:q4_k_m")
    assert measured.layout.nbytes <= named.layout.nbytes
    small = {"iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"}
    for before, after in zip(named.tensors, measured.tensors, strict=True):
        assert after.packer.veto(after.source.shape) is None
        if before.packer.quantizes:
            assert after.packer.spec.variant in small | {before.packer.spec.variant}


def test_a_gguf_file_has_names_of_its_own(tmp_path):
    qformats.export("demo", tmp_path / "q8_0.gguf", format="gguf:q8_0")
    named, measured = _plan(qformats.open(tmp_path / "q8_0.gguf"), "gguf:q4_0")
    assert measured.layout.nbytes <= named.layout.nbytes
    chosen = [t for t in measured.tensors if t.assignment.note.startswith("measured: instead")]
    assert len(chosen) > 5


def test_with_an_importance_matrix_and_with_calibration(demo, tmp_path):
    qformats.imatrix("demo", tmp_path / "imatrix.gguf", chunks=2, chunk_size=64, device="cpu")
    imatrix = (str(tmp_path / "imatrix.gguf"),)
    named, measured = _plan(demo, "gguf:q3_k_m", imatrix=imatrix)
    assert measured.layout.nbytes <= named.layout.nbytes
    calibrated = qformats.export(
        "demo",
        tmp_path / "out.gguf",
        format="gguf:q4_0",
        quantizer="gptq",
        mix="measured",
        quantizer_options=FEW | {"rounds": "0", "search": "no"},
    )
    assert calibrated.calibration.startswith("2 x 48 tokens")
    assert {t.note for t in calibrated.tensors if t.format == "gguf:q3_k"} <= {"measured: instead of q4_0"}
    assert (
        calibrated.file_nbytes <= make_plan(demo, tmp_path / "x.gguf", Recipe("gguf:q4_0"), {}).layout.nbytes
    )
    # What calibration halves is worth fewer bytes than what it leaves alone.
    _, rounded = _plan(demo, "gguf:q4_0")
    outside = ("token_embd.weight", "output.weight")
    before = sum(t.nbytes for t in rounded.tensors if t.name in outside)
    assert sum(t.nbytes for t in calibrated.tensors if t.name in outside) >= before


def test_on_the_command_line(capsys, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(
        "It is a truth universally acknowledged, that a model in want of bits must be measured. " * 40
    )
    arguments = ["export", "demo", "-f", "gguf:q4_0", "--mix", "measured", "--dry-run", "--json"]
    arguments += ["--calibration", text, "--samples", "2", "--sequence-length", "32"]
    result = call(capsys, *arguments, "-o", tmp_path / "out.gguf")
    assert result.code == 0, result.err
    assert f"on {text}" in result.err
    plan = json.loads(result.out)
    notes = {t["name"]: t["note"] for t in plan["tensors"]}
    assert notes["token_embd.weight"].startswith("measured: instead of q4_0")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-f", "gguf:q4_0", "--mix", "best"], "mix: found 'best'; expected named or measured"),
        (["-f", "gguf:q4_0", "--mix", "measured", "--pure"], "a pure file has no mix"),
        (["-f", "gguf:q4_0", "-f", "gguf:q2_k", "--mix", "measured"], "export a measured one by itself"),
        (["-f", "glm:int4", "--mix", "measured"], "there is nothing to choose"),
        (["-f", "dense:f16", "--mix", "measured"], "there is nothing to choose"),
        (["-f", "gguf:q4_0", "--calibration", "no.txt", "--mix", "measured"], "no.txt"),
        (["-f", "gguf:q4_0", "--calibration", "no.txt"], "option of the quantizer rtn"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys, tmp_path, arguments, message):
    result = call(capsys, "export", "demo", *arguments, "-o", tmp_path / "out")
    assert result.code == 2, result.out
    assert message in result.err
    assert not list(tmp_path.iterdir())


def test_python_refuses_an_unknown_mix(tmp_path):
    with pytest.raises(ConfigError, match="named or measured"):
        qformats.export("demo", tmp_path / "out.gguf", format="gguf:q4_0", mix="best")
