"""Models over several devices: where blocks go, and what is refused."""

import pytest
import torch

import qformats
from qformats.errors import ConfigError
from qformats.runtime.placement import plan_devices, spread

IDS = torch.tensor([[5, 17, 90, 3, 3, 44, 61]])
FIRST, SECOND, CPU = torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")


@pytest.fixture
def sizes(exported):
    model = qformats.load_model(exported.model("llama"), device="cpu")
    return model, {name: value.nbytes for name, value in model.named_parameters()}


def blocks(found):
    return [device for name, device in found.items() if ".layers." in name]


def test_gpus_get_equal_shares(sizes):
    model, nbytes = sizes
    found = plan_devices(model, nbytes, "auto", {FIRST: 1 << 40, SECOND: 1 << 40})
    assert found["model.embed_tokens"] == FIRST
    assert found["lm_head"] == found["model.norm"] == SECOND
    assert blocks(found) == sorted(blocks(found), key=str)


def test_what_does_not_fit_is_left_to_the_cpu(sizes):
    model, nbytes = sizes
    embedding = nbytes["model.embed_tokens.weight"]
    found = plan_devices(model, nbytes, "auto", {FIRST: embedding + 1000})
    assert found["model.embed_tokens"] == FIRST
    assert set(blocks(found)) == {CPU}
    assert found["lm_head"] == CPU


def test_sequential_fills_the_first(sizes):
    model, nbytes = sizes
    found = plan_devices(model, nbytes, "sequential", {FIRST: 1 << 40, SECOND: 1 << 40})
    assert set(found.values()) == {FIRST}


def test_tied_weights_stay_together(exported):
    model = qformats.load_model(exported.model("llama-tied"), device="cpu")
    nbytes = {name: value.nbytes for name, value in model.named_parameters()}
    found = plan_devices(model, nbytes, "auto", {FIRST: 1 << 40, SECOND: 1 << 40})
    assert found["lm_head"] == found["model.embed_tokens"]


def test_a_map_within_a_map_reaches_every_module_that_computes(sizes):
    model, _ = sizes
    count = model.config.num_hidden_layers
    found = spread(model, {"": FIRST, "model.layers.1": SECOND})
    expected = {f"model.layers.{number}": SECOND if number == 1 else FIRST for number in range(count)}
    others = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    assert found == expected | dict.fromkeys(others, FIRST)
    assert spread(model, {"": CPU}) == {"": CPU}


def test_a_map_of_the_users(exported):
    path = exported("llama", "gguf:q8_0")
    model = qformats.load_model(path, device_map={"": "cpu"})
    expected = qformats.load_model(path, device="cpu")
    assert model.hf_device_map == {"": "cpu"}
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, expected(IDS).logits)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("balanced_low_0", "device_map: found .balanced_low_0"),
        ({"model.blocks": "cpu"}, "found .model.blocks"),
        ({"model.layers": "cpu"}, "found no device for model.embed_tokens.weight"),
        ({"": "tpu"}, "device: found .tpu"),
    ],
)
def test_refuses_other_maps(wanted, told, exported):
    with pytest.raises(ConfigError, match=told):
        qformats.load_model(exported("llama", "gguf:q8_0"), device_map=wanted)


def test_refuses_a_map_and_a_device(exported):
    with pytest.raises(ConfigError, match="one of the two"):
        qformats.load_model(exported("llama", "gguf:q8_0"), device="cpu", device_map="auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_blocks_compute_where_they_lie(name, exported):
    path = exported(name, "gguf:q8_0")
    # The first block tells Transformers where a model is.
    devices = [*(f"cuda:{number}" for number in range(torch.cuda.device_count())), "cpu"]
    whole = qformats.load_model(path, device="cuda:0", dtype="f32")
    layers = whole.config.num_hidden_layers
    wanted = {"": "cuda:0"} | {f"model.layers.{n}": devices[n % len(devices)] for n in range(layers)}
    model = qformats.load_model(path, device_map=wanted, dtype="f32")
    assert {str(value.device) for value in model.parameters()} == {"cuda:0", *devices[:layers]}
    ids = IDS.to("cuda:0")
    with torch.no_grad():
        found, expected = model(ids).logits, whole(ids).logits
    assert found.device == expected.device
    assert (found - expected).norm() < 2e-3 * expected.norm()
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **settings), whole.generate(ids, **settings))
