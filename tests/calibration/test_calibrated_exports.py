"""Whole exports with calibration: from quantized models, gone on with after a kill, and run by llama.cpp."""

import numpy as np
import pytest
import torch
from models import tiny
from oracles import hf

import qformats
from qformats.exporting import Recipe, make_plan
from qformats.exporting.run import execute
from qformats.registry import registry
from qformats.work.progress import Silent

# llama.cpp rounds activations to 8 bits wherever weights are quantized.
KL_EIGHT_BIT_ACTIVATIONS = 5e-3
OPTIONS = {"samples": "16", "sequence-length": "192", "rounds": "1"}


class KilledError(BaseException):
    """Stands for the end of the process."""


class Heard(Silent):
    """Remembers what the user is told; ends the run at a task of this name."""

    def __init__(self, last="nothing"):
        self.notices, self.last = [], last

    def start(self, task, total):
        if task.startswith(self.last):
            raise KilledError

    def notice(self, text):
        self.notices.append(text)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The demo model in q4_1, with the feed-forward networks' downward matrices in q4_0."""
    file = tmp_path_factory.mktemp("quantized") / "demo.gguf"
    qformats.export("demo", file, format="gguf:q4_1", tensor_types={"ffn_down": "q4_0"})
    return file


def _kl(log_p, log_q):
    return float((np.exp(log_p.astype(np.float64)) * (log_p - log_q)).sum(-1).mean())


def _held_out():
    demo = qformats.open("demo").path
    return hf.tokenizer_json(demo).encode((demo / "heldout.txt").read_text()[:9000]).ids[:1024]


def _log_probs(source, folder, ids):
    qformats.export(source, folder, format="dense:f32")
    model = hf.load(folder)
    return np.concatenate([hf.log_probs(model, ids[start : start + 512]) for start in (0, 512)])


def test_quantized_weights_are_calibrated_where_they_are_rounded_once_more(quantized, tmp_path):
    """What fits stays what it is; the rest is better than rounded."""
    out, plain = tmp_path / "out", tmp_path / "plain"
    report = qformats.export(
        quantized, out, format="gptq:4bit-32g", quantizer="gptq", quantizer_options=OPTIONS
    )
    source, written = qformats.open(quantized), qformats.open(out)
    told = {t.source_name: t for t in report.tensors if t.format == "gptq:4bit-32g"}
    down = {name for name in told if "down_proj" in name}
    assert len(told) == 28
    assert len(down) == 4
    for name, tensor in told.items():
        if name in down:
            assert (tensor.action, tensor.exact) == ("transcoded", "yes")
            assert torch.equal(written.read(name) + 0.0, source.read(name) + 0.0)
        else:
            assert (tensor.action, tensor.exact, tensor.exact_share) == ("requantized", "no", 0)
            before, change = source.read(name).double(), (written.read(name) - source.read(name)).double()
            assert tensor.relative_error == pytest.approx(float(change.norm() / before.norm()), rel=1e-6)
            assert tensor.max_error == float(change.abs().max())
            assert tensor.source_format == "gguf:q4_1"
            assert "minimum" in tensor.reason
    qformats.export(quantized, plain, format="gptq:4bit-32g", quantizer="rtn")
    ids = _held_out()
    before = _log_probs(quantized, tmp_path / "before", ids)
    calibrated, rounded = (_kl(before, _log_probs(p, tmp_path / f"{p.name}-f32", ids)) for p in (out, plain))
    assert calibrated < 0.9 * rounded


@pytest.mark.parametrize(
    ("before", "after", "calibrated"),
    [
        # Never fits: q4_1 has minima.
        ("gguf:q4_1", "gptq:4bit-32g", True),
        # Zero points are anywhere: most rows have levels that q8_0 lacks.
        ("gptq:8bit-32g-asym", "gguf:q8_0", True),
        # Scales must be rounded, which is better than any other choice of codes.
        ("gptq:4bit-32g-f32", "gguf:q4_0", False),
    ],
)
def test_what_is_calibrated_is_the_decoded_model(before, after, calibrated, tmp_path):
    """Tensors that do not fit, or mostly not, are calibrated as a whole; the others keep their codes."""
    llama, source = tiny.build("llama", tmp_path / "llama"), tmp_path / "source"
    qformats.export(llama, source, format=before, quantizer="rtn")
    options = {"samples": "4", "sequence-length": "32"}
    target = tmp_path / "out"
    report = qformats.export(
        source, target, format=after, quantizer="gptq", quantizer_options=options, pure=True
    )
    moved = [t.source_name for t in report.tensors if t.source_format == before]
    moved = [name for name in moved if "_proj" in name]
    assert len(moved) == 14
    model, written = qformats.open(source), qformats.open(target)
    formats = dict.fromkeys(moved, qformats.packer(after))
    chosen = registry().quantizer("gptq", options).prepare(model, formats, tmp_path / "work", Silent())
    for tensor in report.tensors:
        if tensor.source_name not in moved:
            continue
        assert (tensor.action, bool(tensor.reason)) == ("requantized", True)
        values = written.read(tensor.source_name)
        assert torch.equal(values, chosen.read(tensor.source_name)) is calibrated
        change, old = values - model.read(tensor.source_name), model.read(tensor.source_name)
        assert tensor.relative_error == pytest.approx(float(change.norm() / old.norm()), rel=1e-4)
        if not calibrated:
            assert 0 < tensor.relative_error < 2**-11


def test_a_log_elsewhere_and_other_memory_leave_finished_blocks(tmp_path):
    """A killed export goes on, although it is told to log into another file and to keep fewer activations."""
    llama = tiny.build("llama", tmp_path / "model")
    options = {"samples": "4", "sequence-length": "32"}

    def export(progress, **more):
        recipe = Recipe("gguf:q8_0", "gptq", quantizer_options=tuple((options | more).items()))
        plan = make_plan(qformats.open(llama), tmp_path / "out.gguf", recipe, {})
        return execute(plan, keep_partial=True, progress=progress)

    with pytest.raises(KilledError):
        export(Heard("block 2"), log=str(tmp_path / "a.jsonl"))
    heard = Heard("writing")
    more = {"log": str(tmp_path / "b.jsonl"), "activation-memory": "0B"}
    with pytest.raises(KilledError):
        export(heard, **more)
    assert any("1 blocks are finished" in notice for notice in heard.notices)
    assert len((tmp_path / "b.jsonl").read_text().splitlines()) == 8
    heard = Heard()
    export(heard)
    assert any("2 blocks are finished" in notice for notice in heard.notices)
    # Any other option is another calibration.
    (tmp_path / "out.gguf").unlink()
    with pytest.raises(KilledError):
        export(Heard("block 2"))
    heard = Heard()
    export(heard, damping="0.02")
    assert not any("finished" in notice for notice in heard.notices)


def test_llama_cpp_runs_what_calibration_chose(tmp_path):
    """A q4_0 file with codes chosen by GPTQ: its numbers are ours, and nearer to the model than those of plain q4_0."""
    from oracles.llama_cpp import LlamaCpp

    files = {quantizer: tmp_path / f"{quantizer}.gguf" for quantizer in ("rtn", "gptq")}
    options = {"samples": "16", "sequence-length": "256", "rounds": "1"}
    qformats.export("demo", files["rtn"], format="gguf:q4_0")
    qformats.export("demo", files["gptq"], format="gguf:q4_0", quantizer="gptq", quantizer_options=options)
    ids = _held_out()
    model = _log_probs("demo", tmp_path / "model", ids)
    divergence = {}
    for quantizer, file in files.items():
        with LlamaCpp(file) as gguf:
            found = np.concatenate([gguf.log_probs(ids[:512]), gguf.log_probs(ids[512:])])
        ours = _log_probs(file, tmp_path / quantizer, ids)
        assert _kl(ours, found) < KL_EIGHT_BIT_ACTIVATIONS
        divergence[quantizer] = _kl(model, found)
    assert divergence["gptq"] < 0.85 * divergence["rtn"]
