"""What is outside the blocks: the embedding comes first, the head last, each by what it is used for."""

import json

import pytest
import torch
from models import tiny
from oracles import hf

import qformats
from qformats.calibration import Rounded, Settings, calibrate, outside
from qformats.calibration.text import sample_tokens
from qformats.registry import registry
from qformats.work.progress import Silent

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXT = "It was the best of times, it was the worst of times; 1234567890 things were said, and more were not. "


class Heard(Silent):
    """Remembers what the user is told, and ends the run at a task."""

    def __init__(self, until=None):
        self.notices, self.tasks, self.until = [], [], until

    def start(self, task, total):
        self.tasks.append(task)
        if self.until and task.startswith(self.until):
            raise KeyboardInterrupt

    def notice(self, text):
        self.notices.append(text)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT * 60)
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("llama") / "model")


def _prepare(source, work, text, progress=None, format="gguf:q4_0", **options):
    names = [name for name, tensor in source.tensors.items() if len(tensor.shape) == 2]
    given = {"calibration": str(text), "samples": "12", "sequence-length": "32", **options}
    formats = dict.fromkeys(names, qformats.packer(format))
    return registry().quantizer("gptq", given).prepare(source, formats, work, progress or Silent())


def _bytes(checkpoint):
    return {
        (name, field): value.contiguous().view(-1).view(torch.uint8).clone()
        for name, tensor in checkpoint.tensors.items()
        for field, value in tensor.read().fields.items()
    }


def _same(a, b):
    a, b = _bytes(a), _bytes(b)
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


def test_the_head_sees_what_the_quantized_model_gives_it(llama, text, tmp_path):
    """Its moments, and how far they drifted, are those of Transformers' own runs of both models."""
    source, seen = qformats.open(llama), {}

    def plainly(layers, moments, tell):
        for layer in layers:
            drift = None if moments.drift is None else moments.drift.clone()
            seen[layer.name] = moments.second.clone(), drift, moments.tokens, layer.weight
            yield Rounded(layer.packer.grid.quantize(layer.weight), 0.0, 1.0, 0.0)

    names = [name for name, tensor in source.tensors.items() if len(tensor.shape) == 2]
    settings = Settings(calibration=str(text), samples=4, sequence_length=32, device="cpu")
    formats = dict.fromkeys(names, qformats.packer("gguf:q4_0"))
    done = calibrate(source, formats, tmp_path, settings, plainly, identity={}, drift=True, progress=Silent())
    assert (next(iter(seen)), list(seen)[-1]) == (EMBEDDING, HEAD)
    second, drift, tokens, weight = seen[EMBEDDING]
    assert torch.equal(second, torch.eye(len(second)))
    assert (drift, tokens) == (None, 0)
    assert torch.equal(weight, source.read(EMBEDDING))
    ids, model, inputs = sample_tokens(source, settings, Silent()), hf.load(llama), []
    model.lm_head.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(0, 1).double()))
    with torch.inference_mode():
        model(ids)
        for name in names:
            model.get_parameter(name).data = done.read(name)
        model(ids)
    y, x = inputs
    second, drift, tokens, weight = seen[HEAD]
    assert tokens == len(x) == 128
    torch.testing.assert_close(second.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(drift.double(), (y - x).T @ x / len(x), rtol=1e-3, atol=1e-4)
    assert torch.equal(weight, source.read(HEAD))
    assert {done.tensors[name].format for name in names} == {"gguf:q4_0"}


def test_blocks_make_up_for_the_errors_of_the_embedding(llama, text, tmp_path):
    """The first layer's inputs are those of the quantized embedding."""
    source = qformats.open(llama)
    firsts = []
    for names in (
        [EMBEDDING, "model.layers.0.self_attn.q_proj.weight"],
        ["model.layers.0.self_attn.q_proj.weight"],
    ):

        def plainly(layers, moments, tell):
            for layer in layers:
                if moments.tokens:
                    firsts.append(moments.drift.norm() / moments.second.norm())
                yield Rounded(layer.packer.grid.quantize(layer.weight), 0.0, 1.0, 0.0)

        settings = Settings(calibration=str(text), samples=4, sequence_length=32, device="cpu")
        formats = dict.fromkeys(names, qformats.packer("gguf:q4_0"))
        work = tmp_path / str(len(names))
        calibrate(source, formats, work, settings, plainly, identity={}, drift=True, progress=Silent())
    assert firsts[0] > 1e-4
    assert firsts[1] == 0


def test_the_log_and_the_notices_tell_of_the_head(llama, text, tmp_path):
    heard, log = Heard(), tmp_path / "log.jsonl"
    _prepare(qformats.open(llama), tmp_path / "work", text, heard, log=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["layer"] for line in lines][-1] == HEAD
    assert 0 < lines[-1]["relative_error"] < 0.5
    assert not any("without calibration" in notice for notice in heard.notices[1:])


def test_a_run_that_ends_before_the_head_goes_on_there(llama, text, tmp_path):
    source = qformats.open(llama)
    whole = _prepare(source, tmp_path / "a", text)
    for until in ("running the calibration text up to the head", HEAD):
        with pytest.raises(KeyboardInterrupt):
            _prepare(source, tmp_path / "b", text, Heard(until))
    heard = Heard()
    assert _same(whole, _prepare(source, tmp_path / "b", text, heard))
    assert not any(task.startswith(("block ", EMBEDDING)) for task in heard.tasks)
    assert HEAD in heard.tasks
    heard = Heard()
    assert _same(whole, _prepare(source, tmp_path / "b", text, heard))
    assert HEAD not in heard.tasks


def test_a_large_head_is_quantized_in_pieces(llama, text, tmp_path, monkeypatch):
    source = qformats.open(llama)
    whole = _prepare(source, tmp_path / "a", text)
    shape = source.tensors[HEAD].shape
    monkeypatch.setattr(outside, "_WEIGHTS", shape[1] * (shape[0] // 3))
    log = tmp_path / "log.jsonl"
    apart = _prepare(source, tmp_path / "b", text, log=str(log))
    assert sum(json.loads(line)["layer"] == HEAD for line in log.read_text().splitlines()) == 1
    for name in (EMBEDDING, HEAD):
        ours, theirs = apart.read(name), whole.read(name)
        # Products of fewer rows are summed in another order: a code here and there.
        assert float((ours == theirs).float().mean()) > 0.99


def test_a_tied_embedding_is_rounded_once(text, tmp_path):
    """It is the head as well: there is one matrix, which counts as an embedding."""
    source = qformats.open(tiny.build("llama-tied", tmp_path / "model"))
    heard = Heard()
    found = _prepare(source, tmp_path / "work", text, heard)
    assert found.tensors[EMBEDDING].format == "gguf:q4_0"
    assert HEAD not in heard.tasks
    weight = source.read(EMBEDDING)
    ours = (found.read(EMBEDDING) - weight).square().mean()
    assert ours < (qformats.packer("gguf:q4_0").grid.quantize(weight).dequantize() - weight).square().mean()


def test_what_is_neither_is_named(text, tmp_path):
    source = qformats.open(tiny.build("gpt2", tmp_path / "model"))
    heard = Heard()
    found = _prepare(source, tmp_path / "work", text, heard, format="gguf:q8_0")
    left = [name for name in source.tensors if "wpe" in name]
    assert left
    assert not found.tensors[left[0]].format.startswith("gguf")
    assert any(left[0] in notice and "without calibration" in notice for notice in heard.notices)
