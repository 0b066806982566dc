"""A model in a format is quantized by the method that the format is named after, unless another one is requested."""

import json

import pytest
import torch
from cli.command import call
from models import tiny

import qformats
from qformats.registry import registry

SOME = {"samples": "2", "sequence-length": "64", "rounds": "0"}
UP = "model.layers.1.mlp.up_proj.weight"
FORMAT = "gptq:4bit-128g"


def test_gptq_folders_are_calibrated_by_default(tmp_path):
    """The same bytes as with the quantizer named, others than plain rounding's; the record tells which text it saw."""
    report = qformats.export("demo", tmp_path / "usual", format=FORMAT, quantizer_options=SOME)
    named = qformats.export(
        "demo", tmp_path / "named", format=FORMAT, quantizer="gptq", quantizer_options=SOME
    )
    plain = qformats.export("demo", tmp_path / "plain", format=FORMAT, quantizer="rtn")
    assert (report.quantizer, named.quantizer, plain.quantizer) == ("gptq", "gptq", "rtn")
    assert report.calibration == named.calibration == "2 x 64 tokens of the text that comes with qformats"
    assert plain.calibration == ""
    usual, asked, rounded = (
        (tmp_path / folder / "model.safetensors").read_bytes() for folder in ("usual", "named", "plain")
    )
    assert usual == asked != rounded
    record = json.loads((tmp_path / "usual" / "qformats.json").read_bytes())
    assert (record["quantizer"], record["calibration"]) == ("gptq", report.calibration)


def test_the_summary_says_which_method_ran_on_how_much_text(capsys, tmp_path):
    options = [part for name, value in SOME.items() for part in ("-Q", f"{name}={value}")]
    text = tmp_path / "my words.txt"
    text.write_text((qformats.open("demo").path / "heldout.txt").read_text()[:20_000])
    done = call(
        capsys, "export", "demo", "--format", FORMAT, "--calibration", text, *options, "-o", tmp_path / "out"
    )
    assert done.code == 0, done.err
    assert f"quantizer gptq, calibrated on 2 x 64 tokens of {text}" in " ".join(done.out.split())
    # Without a terminal there is no bar, and it takes long.
    told, *_ = done.err.splitlines()
    assert told == (
        f"qformats: calibrating 28 weights on {text}, which runs the model; --quantizer rtn rounds without it"
    )
    done = call(capsys, "export", "demo", "--format", FORMAT, "--quantizer", "rtn", "-o", tmp_path / "plain")
    assert (done.code, done.err) == (0, "")
    assert "quantizer rtn\n" in done.out


def test_what_transcodes_exactly_is_not_calibrated(monkeypatch, tmp_path):
    """From one layout of the same numbers to another there is nothing to choose: no model is built and run."""
    qformats.export("demo", tmp_path / "one", format=FORMAT, quantizer="rtn")

    def never(self, *arguments):
        raise AssertionError("calibrated")

    monkeypatch.setattr(type(registry().quantizer("gptq")), "prepare", never)
    report = qformats.export(tmp_path / "one", tmp_path / "other", format="gptq:4bit-128g-asym")
    assert {t.action for t in report.tensors} == {"transcoded", "copied"}
    assert report.calibration == ""
    before, after = (qformats.open(tmp_path / name).read(UP) for name in ("one", "other"))
    assert torch.equal(before, after)


def test_a_model_without_a_tokenizer_is_told_about_plain_rounding(tmp_path):
    source = tiny.build("llama", tmp_path / "llama")
    for file in source.glob("*token*"):
        file.unlink()
    with pytest.raises(qformats.QFormatsError, match=r"no tokenizer.*calibration: quantizer='rtn'\."):
        qformats.export(source, tmp_path / "out", format="gptq:4bit-32g")
    assert not (tmp_path / "out").exists()
    qformats.export(source, tmp_path / "out", format="gptq:4bit-32g", quantizer="rtn")


def test_loading_calibrates_too(tmp_path):
    """What runs is what an export would hold."""
    loaded = qformats.load_model("demo", format=FORMAT, quantizer_options=SOME, device="cpu")
    qformats.export("demo", tmp_path / "out", format=FORMAT, quantizer_options=SOME)
    expected = qformats.open(tmp_path / "out").read(UP)
    assert torch.equal(loaded.get_submodule(UP.removesuffix(".weight")).dequantize().cpu(), expected)
