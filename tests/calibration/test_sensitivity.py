"""What rounding one tensor costs, estimated from gradients: against autograd through the whole model, and measured."""

import pytest
import torch
from models import tiny

import qformats
from qformats.calibration import Settings, measure_sensitivity
from qformats.calibration.text import sample_tokens
from qformats.errors import ConfigError, NonFiniteError
from qformats.registry import registry
from qformats.work.progress import Silent

FORMATS = ("gguf:q4_0", "gguf:q8_0")


def _matrices(source):
    return [name for name, t in source.tensors.items() if len(t.shape) == 2 and "norm" not in name]


def _measured(source, names, settings, formats=FORMATS, quantizer="rtn"):
    candidates = {name: [qformats.packer(format) for format in formats] for name in names}
    return measure_sensitivity(source, candidates, registry().quantizer(quantizer), settings, Silent())


def _by_autograd(folder, source, settings, format):
    """The same sum, through the whole model at once, with the labels that were sampled."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    tokens = sample_tokens(source, settings, Silent())
    generator = torch.Generator().manual_seed(settings.seed)
    parameters = {name: p for name, p in model.named_parameters() if name in source.tensors and p.ndim == 2}
    total = dict.fromkeys(parameters, 0.0)
    for piece in tokens.split(1):
        scores = model(piece, use_cache=False).logits[0].log_softmax(-1)
        labels = torch.multinomial(scores.detach().exp(), 1, generator=generator)
        found = torch.autograd.grad(scores.gather(1, labels).sum(), list(parameters.values()))
        for name, gradient in zip(parameters, found, strict=True):
            total[name] += gradient.square()
    losses = {}
    for name, squares in total.items():
        weight = source.read(name)
        if type(model.get_submodule(name.removesuffix(".weight"))).__name__ == "Conv1D":
            squares = squares.t()
        error = qformats.quantize(weight, format).dequantize() - weight
        losses[name] = float((squares * error.square()).sum() / (2 * tokens.numel()))
    return losses


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_equals_gradients_through_the_whole_model(name, tmp_path):
    folder = tiny.build(name, tmp_path / name)
    source = qformats.open(folder)
    settings = Settings(samples=3, sequence_length=24, device="cpu", activation_memory=20_000)
    names = [each for each in _matrices(source) if source.tensors[each].shape[1] % 32 == 0]
    found = _measured(source, names, settings)
    assert found.keys() == {*names}
    expected = _by_autograd(folder, source, settings, "gguf:q4_0")
    tied = "lm_head.weight" not in source.tensors
    for each in names:
        if tied and each in ("model.embed_tokens.weight", "transformer.wte.weight"):
            # One gradient there, and here one of the embedding and one of the head, whose squares are added.
            assert 0.5 < found[each]["gguf:q4_0"] / expected[each] < 2
            continue
        assert found[each]["gguf:q4_0"] == pytest.approx(expected[each], rel=1e-3), each
        assert 0 < found[each]["gguf:q8_0"] < 0.02 * found[each]["gguf:q4_0"]


def test_estimates_what_rounding_one_tensor_costs():
    """On held-out text, which the estimate has not seen."""
    from importlib.resources import files

    source = qformats.open("demo")
    names = ["model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "lm_head.weight"]
    settings = Settings(samples=16, sequence_length=128, device="cpu")
    found = _measured(source, names, settings, ("gguf:q4_0", "gguf:q2_k"))
    text = files("qformats").joinpath("demo", "heldout.txt").read_text(encoding="utf-8")
    ids = qformats.load_tokenizer("demo")(text[:12_000], verbose=False)["input_ids"][: 4 * 512]
    tokens = torch.tensor(ids).view(4, 512)
    model = qformats.load_model("demo", device="cpu", dtype="f32")
    with torch.inference_mode():
        before = model(tokens, use_cache=False).logits.log_softmax(-1)
        for name in names:
            parameter = model.get_parameter(name)
            weight = parameter.clone()
            for format, estimate in found[name].items():
                parameter.copy_(qformats.quantize(weight, format).dequantize())
                after = model(tokens, use_cache=False).logits.log_softmax(-1)
                divergence = float((before.exp() * (before - after)).sum(-1).mean())
                # Within 0.8 to 1.15 where it was written.
                assert 0.65 < estimate / divergence < 1.5, (name, format, estimate, divergence)
            parameter.copy_(weight)


def test_what_is_copied_costs_nothing(tmp_path):
    qformats.export("demo", tmp_path / "q4_0.gguf", format="gguf:q4_0")
    source = qformats.open(tmp_path / "q4_0.gguf")
    name = "model.layers.0.mlp.up_proj.weight"
    found = _measured(source, [name], Settings(samples=1, sequence_length=16, device="cpu"))[name]
    assert found["gguf:q4_0"] == 0


def test_nothing_is_left_on_disk_or_running(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    source = qformats.open("demo")
    settings = Settings(samples=2, sequence_length=32, device="cpu", activation_memory=0)
    _measured(source, ["lm_head.weight"], settings)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="sequence-length"):
        _measured(source, ["lm_head.weight"], Settings(sequence_length=100_000, device="cpu"))


def test_gradients_that_are_not_finite_are_an_error(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny.build("llama", tmp_path / "llama")
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"] *= 1e38
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = Settings(samples=1, sequence_length=16, device="cpu")
    with pytest.raises(NonFiniteError, match="predictions are not finite"):
        _measured(qformats.open(folder), ["lm_head.weight"], settings)
