"""Whole models: what is quantized, in which order, what is resumed, and what is refused."""

import json
import math
from pathlib import Path

import pytest
import torch
from models import tiny
from oracles import hf
from safetensors.torch import load_file

import qformats
from qformats.calibration import Settings, calibrate
from qformats.calibration.skeleton import Skeleton
from qformats.calibration.stream import Stream, observe
from qformats.errors import CheckpointError, ConfigError, NonFiniteError, WeightsError
from qformats.registry import registry
from qformats.work.progress import Silent
from qformats_gptq.quantizer import GPTQ

LINEAR = ("proj", "c_attn", "c_fc", "c_proj")
TEXT = (
    "It was the best of times, it was the worst of times; 1234567890 things were said, and more were not. "
    * 60
)


class Heard(Silent):
    """Remembers what the user is told."""

    def __init__(self):
        self.notices, self.tasks = [], []

    def start(self, task, total):
        self.tasks.append(task)

    def notice(self, text):
        self.notices.append(text)


class KilledError(BaseException):
    """Stands for the end of the process."""


class Killed(Heard):
    """Ends the run when the second block is at its third group of layers."""

    def start(self, task, total):
        super().start(task, total)
        if task.startswith("block 2") and len([t for t in self.tasks if t.startswith("block 2")]) == 3:
            raise KilledError


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny.build("llama", tmp_path_factory.mktemp("llama") / "model")


def _linears(source):
    return [n for n, t in source.tensors.items() if len(t.shape) == 2 and any(word in n for word in LINEAR)]


def _prepare(source, work, text, format="gguf:q4_0", progress=None, names=None, **options):
    options = {"calibration": str(text), "samples": "12", "sequence-length": "32"} | {
        key.replace("_", "-"): str(value) for key, value in options.items()
    }
    formats = dict.fromkeys(_linears(source) if names is None else names, qformats.packer(format))
    return registry().quantizer("gptq", options).prepare(source, formats, work, progress or Silent())


def _bytes(checkpoint):
    found = {}
    for name, tensor in checkpoint.tensors.items():
        for field, value in tensor.read().fields.items():
            found[name, field] = value.contiguous().view(-1).view(torch.uint8).clone()
    return found


def _same(a, b):
    a, b = _bytes(a), _bytes(b)
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


@pytest.mark.parametrize("name", ["llama", "llama-tied", "llama-bias", "mistral", "qwen2", "qwen3", "gpt2"])
def test_architectures(name, tmp_path, text):
    """Every linear layer of every block is quantized, the rest is left; a GPT-2 has its matrices transposed."""
    source = qformats.open(tiny.build(name, tmp_path / "model"))
    heard = Heard()
    found = _prepare(source, tmp_path / "work", text, "gguf:q8_0", heard)
    linears = set(_linears(source))
    assert linears
    for key, tensor in found.tensors.items():
        assert (tensor.format == "gguf:q8_0") == (key in linears), key
        assert tensor.shape == source.tensors[key].shape
        assert tensor.stored_format == source.tensors[key].stored_format
        relative = (found.read(key) - source.read(key)).norm() / source.read(key).norm()
        assert float(relative) < 0.1, key
    groups = [
        task.partition(": ")[2].partition(" (")[0] for task in heard.tasks if task.startswith("block 1 ")
    ]
    if name == "gpt2":
        assert groups == ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
    else:
        assert [len(group.split(", ")) for group in groups] == [3, 1, 2, 1]
    assert (found.files, found.fingerprint) == (source.files, source.fingerprint)
    assert (found.config, found.architecture) == (source.config, source.architecture)
    assert not list((tmp_path / "work").rglob("batch-*"))


def test_statistics_are_those_of_the_model(llama, text, tmp_path):
    """What layers are quantized by is what Transformers' own forward pass brings to them."""
    source = qformats.open(llama)
    seen = {}

    def round_layers(layers, moments, tell):
        from qformats.calibration import Rounded

        for layer in layers:
            seen[layer.name] = (moments.second.cpu(), moments.tokens, layer.weight.cpu())
            quantized = layer.packer.grid.quantize(layer.weight)
            yield Rounded(quantized, 0.0, 1.0, 0.0)

    settings = Settings(calibration=str(text), samples=4, sequence_length=32)
    formats = dict.fromkeys(_linears(source), qformats.packer("gguf:q8_0"))
    done = calibrate(
        source, formats, tmp_path, settings, round_layers, identity={}, drift=False, progress=Silent()
    )
    from qformats.calibration.text import sample_tokens

    tokens = sample_tokens(source, settings, Silent())
    model = hf.load(llama)
    # Layers in the order in which they were quantized: each sees the ones before it quantized.
    for name in seen:
        module = model.get_submodule(name.removesuffix(".weight"))
        inputs = []
        hook = module.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        with torch.inference_mode():
            model(tokens)
        hook.remove()
        x = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        second, count, weight = seen[name]
        assert count == len(x) == 128
        torch.testing.assert_close(second.double(), x.T @ x / len(x), rtol=1e-3, atol=1e-4)
        assert torch.equal(weight, source.read(name))
        last = list(seen).index(name)
        following = list(seen)[last + 1] if last + 1 < len(seen) else None
        if following is None or not torch.equal(seen[following][0], second):
            # The whole group at once.
            for other, (matrix, _, _) in seen.items():
                if torch.equal(matrix, second):
                    model.get_submodule(other.removesuffix(".weight")).weight.data = done.read(other)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(llama, text, tmp_path):
    source = qformats.open(llama)
    whole = _prepare(source, tmp_path / "a", text)
    with pytest.raises(KilledError):
        _prepare(source, tmp_path / "b", text, progress=Killed())
    first = (tmp_path / "b/blocks/block-00000.safetensors").stat().st_mtime_ns
    heard = Heard()
    again = _prepare(source, tmp_path / "b", text, progress=heard)
    assert any("1 blocks are finished" in notice for notice in heard.notices)
    assert not any(task.startswith("block 1 ") for task in heard.tasks)
    assert (tmp_path / "b/blocks/block-00000.safetensors").stat().st_mtime_ns == first
    assert _same(whole, again)
    heard = Heard()
    assert _same(whole, _prepare(source, tmp_path / "b", text, progress=heard))
    assert not any(task.startswith("block ") for task in heard.tasks)


@pytest.mark.parametrize("change", [{"seed": 1}, {"damping": 0.02}, {"format": "gguf:q5_0"}])
def test_another_calibration_begins_anew(change, llama, text, tmp_path):
    source = qformats.open(llama)
    with pytest.raises(KilledError):
        _prepare(source, tmp_path / "a", text, progress=Killed())
    heard = Heard()
    mixed = _prepare(source, tmp_path / "a", text, progress=heard, **change)
    assert any(task.startswith("block 1 ") for task in heard.tasks)
    assert _same(mixed, _prepare(source, tmp_path / "b", text, **change))


def test_a_damaged_block_is_named(llama, text, tmp_path):
    source = qformats.open(llama)
    _prepare(source, tmp_path, text)
    file = tmp_path / "blocks/block-00001.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"block-00001.safetensors.*is damaged"):
        _prepare(source, tmp_path, text)


@pytest.mark.parametrize("memory", ["0B", "20KB", "60KB"])
def test_spilled_states_change_nothing(memory, llama, text, tmp_path):
    source = qformats.open(llama)
    # Several batches: more tokens than run at a time.
    more = {"samples": 160, "sequence_length": 32}
    kept = _prepare(source, tmp_path / "a", text, **more)
    assert _same(kept, _prepare(source, tmp_path / "b", text, activation_memory=memory, **more))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_weights_are_read_in_slices(name, tmp_path, monkeypatch):
    """Each as it is, in any dtype; those of a GPT-2 are stored the other way round."""
    source = qformats.open(tiny.build(name, tmp_path / "model"))
    skeleton = Skeleton(source, torch.float32, torch.device("cpu"))
    monkeypatch.setattr("qformats.calibration.skeleton._SLICE", 1000)
    for tensor in source.tensors:
        assert torch.equal(skeleton.read(tensor), source.read(tensor))
        assert torch.equal(skeleton.read(tensor, torch.bfloat16), source.read(tensor).bfloat16())


def test_a_part_that_is_left_out_is_the_same_part(llama):
    """Running only the last layer of a child, from its known input, gives what the whole child gives."""
    source = qformats.open(llama)
    skeleton = Skeleton(source, torch.float32, torch.device("cpu"))
    from qformats.calibration.activations import Activations, Memory

    memory = Memory(1 << 30)
    with torch.inference_mode(), skeleton.loading_on_use():
        tokens = torch.arange(64).view(2, 32)
        ((hidden, arguments),) = skeleton.batches(tokens, 2)
        states = Activations(Path("unused"), memory)
        states.put(0, hidden)
        skeleton.load_block(0)
        block = skeleton.blocks[0]
        course = observe(block, skeleton.linears(0), hidden, arguments[0])
        assert course.ends == {"self_attn.o_proj": ("self_attn", 2), "mlp.down_proj": ("mlp", 0)}
        stream = Stream(block, states, [arguments[0]], memory, torch.device("cpu"))
        stream.follow(course)
        expected = stream.run(0)
        for local in ("self_attn.o_proj", "mlp.down_proj"):
            stream.inputs([local], 0)
            calls = []
            hook = block.self_attn.q_proj.register_forward_hook(lambda *_, calls=calls: calls.append(1))
            assert torch.equal(stream.run(0), expected)
            hook.remove()
            assert calls == []
        stream.clear()
        assert torch.equal(stream.run(0), expected)


def test_correction_brings_the_model_closer(tmp_path):
    """On the demo model: rounding, then calibration without and with the errors of earlier layers made up for."""
    source = qformats.open("demo")
    model = hf.load(source.path)
    held_out = (source.path / "heldout.txt").read_text()
    ids = torch.tensor(hf.tokenizer_json(source.path).encode(held_out[:20000]).ids[:2048]).view(4, 512)
    names = _linears(source)

    def divergence(weights):
        with torch.inference_mode():
            before = torch.log_softmax(model(ids).logits, -1)
            kept = {name: model.get_parameter(name).data for name in names}
            for name in names:
                model.get_parameter(name).data = weights(name)
            after = torch.log_softmax(model(ids).logits, -1)
            for name in names:
                model.get_parameter(name).data = kept[name]
        return float((before.exp() * (before - after)).sum(-1).mean())

    found = [divergence(lambda name: qformats.quantize(source.read(name), "gguf:q4_0").dequantize())]
    for correct in ("no", "yes"):
        packer = qformats.packer("gguf:q4_0")
        options = {"samples": "16", "correct": correct}
        done = (
            registry()
            .quantizer("gptq", options)
            .prepare(source, dict.fromkeys(names, packer), tmp_path / correct, Silent())
        )
        found.append(divergence(done.read))
    assert found[1] < 0.85 * found[0]
    assert found[2] < 0.75 * found[0]
    assert found[2] < found[1]


def test_the_log_has_a_line_a_layer(llama, text, tmp_path):
    source = qformats.open(llama)
    log = tmp_path / "log.jsonl"
    _prepare(source, tmp_path / "work", text, log=log)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["layer"] for line in lines} == set(_linears(source))
    for line in lines:
        assert line["tokens"] == 12 * 32
        assert line["damping"] == 0.01
        assert 0 < line["relative_error"] < 0.5
        assert line["loss"] > 0


def test_progress_names_block_layers_and_error(llama, text, tmp_path):
    heard = Heard()
    _prepare(qformats.open(llama), tmp_path, text, progress=heard)
    blocks = [task for task in heard.tasks if task.startswith("block ")]
    assert blocks[0].startswith("block 1 of 2: self_attn.q_proj, self_attn.k_proj, self_attn.v_proj")
    assert "(error " in heard.tasks[-1]


def test_few_tokens_are_said_aloud(llama, text, tmp_path):
    source = qformats.open(llama)
    heard = Heard()
    _prepare(source, tmp_path, text, progress=heard, samples=1, sequence_length=4)
    assert any("few samples: 4 tokens" in notice for notice in heard.notices)


def test_formats_may_differ_and_tensors_be_left_out(llama, text, tmp_path):
    source = qformats.open(llama)
    formats = {
        "model.layers.0.self_attn.q_proj.weight": qformats.packer("gguf:q5_1"),
        "model.layers.1.mlp.down_proj.weight": qformats.packer("glm:int4"),
    }
    options = {"calibration": str(text), "samples": "4", "sequence-length": "32"}
    found = registry().quantizer("gptq", options).prepare(source, formats, tmp_path, Silent())
    packed = {n: t.format for n, t in found.tensors.items() if not t.format.startswith("dense")}
    assert packed == {name: packer.name for name, packer in formats.items()}


def test_weights_and_activations_that_are_not_finite_are_named(llama, text, tmp_path):
    from safetensors.torch import save_file

    for value, error, message in (
        (math.nan, WeightsError, r"model.layers.1.mlp.up_proj.weight.*holds NaN or infinity"),
        (
            3e38,
            NonFiniteError,
            r"the inputs of model.layers.1.mlp.down_proj.weight are not finite in torch.float32",
        ),
    ):
        folder = tmp_path / str(value)
        folder.mkdir()
        for file in llama.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = value
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        broken, names = qformats.open(folder), ["model.layers.1.mlp.down_proj.weight"]
        with pytest.raises(error, match=message):
            _prepare(broken, tmp_path / f"{value}w", text, names=names)


def test_a_missing_tensor_and_an_unknown_device_are_named(llama, text, tmp_path):
    from safetensors.torch import save_file

    source = qformats.open(llama)
    with pytest.raises(ConfigError, match=r"device: found 'cuda:99'|device: found 'nonsense'"):
        _prepare(source, tmp_path / "w", text, device="nonsense")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.input_layernorm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks model.layers.1.input_layernorm.weight"):
        _prepare(qformats.open(folder), tmp_path / "w", text)


def test_options_of_the_quantizer_are_checked(llama, text, tmp_path):
    for name, value in (("damping", "0"), ("damping", "x"), ("rounds", "-1"), ("act-order", "maybe")):
        with pytest.raises(ConfigError, match=name):
            _prepare(qformats.open(llama), tmp_path, text, **{name: value})
    assert {option.name for option in GPTQ.options} >= {"calibration", "samples", "damping", "log"}


def test_without_calibration_weights_are_rounded_by_the_format_s_rule():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    packer = qformats.packer("gguf:q4_0")
    found = GPTQ().quantize(weight, packer)
    assert torch.equal(found.codes, packer.grid.quantize(weight).codes)
    with pytest.raises(ConfigError, match="a quantized format"):
        GPTQ().quantize(weight, qformats.packer("dense:f16"))


@pytest.mark.parametrize("format", ["gguf:q4_0", "gptq:4bit-32g", "glm:int4", "bitsandbytes:nf4"])
def test_exports_hold_the_codes_that_calibration_chose(format, llama, text, tmp_path):
    """From the command's own function to the file and back: rows of a GGUF are in another order, values are not."""
    source = qformats.open(llama)
    options = {"calibration": str(text), "samples": "8", "sequence-length": "32"}
    report = qformats.export(
        source, tmp_path / "out", format=format, quantizer="gptq", quantizer_options=options, pure=True
    )
    assert report.quantizer == "gptq"
    written = qformats.open(report.target)
    names = [name for name, tensor in written.tensors.items() if tensor.format == format]
    assert set(names) >= set(_linears(source))
    formats = {name: qformats.packer(format) for name in names}
    expected = registry().quantizer("gptq", options).prepare(source, formats, tmp_path / "work", Silent())
    for name in formats:
        assert written.tensors[name].format == format
        assert torch.equal(written.read(name), expected.read(name)), name


def test_a_weight_is_read_anew_after_it_is_quantized(tmp_path):
    """Whoever looks at it again, or works on it in place, meets what the model has."""
    from qformats.calibration import Rounded, Settings, calibrate
    from qformats.work.progress import Silent

    model, seen = qformats.open("demo"), []

    def plainly(layers, moments, tell):
        for layer in layers:
            weight = layer.weight
            yield Rounded(layer.packer.grid.quantize(weight), 0.0, 1.0, 0.0)
            weight.zero_()
            seen.append(layer.name)
            assert layer.weight.equal(model.read(layer.name).float())

    names = [f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up")]
    formats = dict.fromkeys(names, qformats.packer("gguf:q4_0"))
    settings = Settings(samples=2, sequence_length=16, device="cpu", compute_dtype="bf16")
    calibrate(model, formats, tmp_path, settings, plainly, identity={}, drift=False, progress=Silent())
    assert seen[0] == names[0]
