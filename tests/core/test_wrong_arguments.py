"""Arguments of another kind than they should be: the message names the argument, and says what was given."""

import numpy as np
import pytest
import torch

import qformats
from qformats.errors import ConfigError, UnknownFormatError
from qformats.registry import Registry

WEIGHT = torch.linspace(-1, 1, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (
            WEIGHT.to("meta"),
            "weight: found a tensor on the meta device, which has a shape and no values; expected",
        ),
        (
            WEIGHT.to_sparse(),
            "weight: found a tensor of the layout sparse_coo; expected a dense one. tensor.to_dense",
        ),
        (
            WEIGHT.int(),
            "weight: found a tensor of torch.int32; expected a floating-point torch tensor: float32",
        ),
        (WEIGHT > 0, "weight: found a tensor of torch.bool; expected a floating-point"),
        (WEIGHT + 1j, "weight: found a tensor of torch.complex64; expected a floating-point"),
        (WEIGHT.to(torch.float8_e4m3fn), "weight: found a tensor of torch.float8_e4m3fn; expected"),
        (
            WEIGHT.numpy(),
            "weight: found numpy.ndarray; expected a floating-point torch tensor. torch.as_tensor",
        ),
        ([[1.0] * 32], "weight: found list; expected a floating-point torch tensor. torch.as_tensor"),
        (None, "weight: found None; expected a floating-point torch tensor."),
        ("demo", "weight: found 'demo'; expected a floating-point torch tensor."),
    ],
)
@pytest.mark.parametrize("format", ["gguf:q4_0", "bitsandbytes:nf4", "gptq:4bit-128g"])
def test_what_is_no_weight(weight, message, format):
    with pytest.raises(ConfigError) as refused:
        qformats.quantize(weight, format)
    assert str(refused.value).startswith(message)
    assert "Report" not in str(refused.value)


@pytest.mark.parametrize("given", [None, 3, b"demo", [1], {}, WEIGHT])
def test_what_is_no_model(given):
    for call in (
        qformats.open,
        qformats.load_model,
        qformats.load_tokenizer,
        lambda model: qformats.export(model, "unwritten", format="gguf:q4_0"),
        lambda model: qformats.compare(model, "demo"),
        lambda model: qformats.compare("demo", model),
    ):
        with pytest.raises(ConfigError, match=r"^model: found .{1,20}; expected a path, a hub id"):
            call(given)


def test_a_model_is_opened_once():
    with pytest.raises(ConfigError, match="model: found one that is open already"):
        qformats.open(qformats.open("demo"))


@pytest.mark.parametrize("given", [None, 3, b"out", WEIGHT])
def test_what_is_no_target(given, tmp_path):
    for call in (
        lambda: qformats.export("demo", given, format="gguf:q4_0"),
        lambda: qformats.export(tmp_path / "not there either", given, format="gguf:q4_0"),
        lambda: qformats.compare("demo", "demo", text="demo", logits=3),
        lambda: qformats.compare("demo", "demo", text=3 if given is None else given),
    ):
        with pytest.raises(ConfigError, match=r"^(target|logits|text): found .{1,20}; expected a path"):
            call()


@pytest.mark.parametrize("given", [None, 3, ["gguf:q4_0"]])
def test_what_is_no_name(given, tmp_path):
    packed = qformats.quantize(WEIGHT, "gguf:q4_0")
    for call in (
        lambda: qformats.packer(given),
        lambda: qformats.quantize(WEIGHT, given),
        lambda: qformats.pack(packed, given),
        lambda: qformats.export("demo", tmp_path / "out", format=given),
        lambda: qformats.quantize(WEIGHT, "gguf:q4_0", quantizer=given),
    ):
        with pytest.raises(ConfigError, match=r"^(format|quantizer): found .{1,20}; expected the name of a"):
            call()
    assert not [*tmp_path.iterdir()]


def test_other_arguments(tmp_path):
    packed = qformats.pack(qformats.quantize(WEIGHT, "gguf:q4_0"), "gguf:q4_0")
    with pytest.raises(ConfigError, match=r"out: found numpy.ndarray; expected a torch tensor"):
        qformats.dequantize(packed, out=np.zeros((64, 64), np.float32))
    with pytest.raises(ConfigError, match="workers: found 'all'; expected 1 or more"):
        qformats.export("demo", tmp_path / "out.gguf", format="gguf:q4_0", workers="all")
    with pytest.raises(ConfigError, match=r"model: found torch.Tensor; expected a Transformers model"):
        qformats.prepare_for_training(WEIGHT)
    with pytest.raises(ConfigError, match=r"try_: found 3; expected a name, or several"):
        qformats.compare("demo", try_=3)


@pytest.mark.parametrize(
    ("of", "into"),
    [
        ("gguf:q4_0", "gguf:q8_0"),
        ("gguf:q8_0", "gguf:q4_0"),
        ("gguf:q4_0", "gptq:4bit-128g"),
        ("gguf:q8_0", "bitsandbytes:nf4"),
        ("bitsandbytes:nf4", "glm:int8"),
    ],
)
def test_a_tensor_of_another_format_is_not_packed(of, into):
    with pytest.raises(ConfigError) as refused:
        qformats.pack(qformats.quantize(WEIGHT, of), into)
    told = str(refused.value)
    assert (
        f"This is not a tensor of {into}: quantize the weight for it, with qformats.quantize(weight, '{into}')"
        in told
    )


def test_a_registry_says_so_too():
    with pytest.raises(ConfigError, match="format: found None"):
        Registry().meant(None)
    with pytest.raises(UnknownFormatError, match="no format ''"):
        Registry().meant("")
