"""Steps of a few tokens on a CPU run on one of torch's threads; everything else on all of them."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from transformers import StoppingCriteria

import qformats
from qformats.runtime import steps
from qformats.work.pool import torch_threads


@pytest.fixture(scope="module")
def model():
    return qformats.load_model("demo", format="gguf:q4_0", device="cpu")


@pytest.fixture
def seen(model):
    """Torch's threads, and those for products, in each pass."""
    found = []
    handle = model.model.norm.register_forward_hook(
        lambda *_: found.append((torch.get_num_threads(), steps.threads()))
    )
    yield found
    handle.remove()


def run(model, tokens, **more):
    with torch.inference_mode():
        return model(input_ids=torch.arange(tokens)[None], **more)


def test_few_tokens_and_many(model, seen):
    with torch_threads(2):
        cache = run(model, 9, use_cache=True).past_key_values
        run(model, 1, past_key_values=cache)
        run(model, 8)
        assert torch.get_num_threads() == 2
    assert seen == [(2, 2), (1, 2), (1, 2)]


def test_attention_to_a_long_past_has_all_threads(model, seen, monkeypatch):
    with torch_threads(2):
        cache = run(model, 40, use_cache=True).past_key_values
        # Keys and values of 40 positions, float32.
        config = model.config
        monkeypatch.setattr(steps, "_ATTENDED", 40 * 8 * config.num_key_value_heads * config.head_dim - 1)
        run(model, 1, past_key_values=cache)
        monkeypatch.setattr(steps, "_ATTENDED", 41 * 8 * config.num_key_value_heads * config.head_dim)
        run(model, 1, past_key_values=cache)
    assert seen == [(2, 2), (2, 2), (1, 2)]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failures_cost_no_threads(model, error):
    def fails(*_):
        raise error

    with torch_threads(2):
        handle = model.model.norm.register_forward_hook(fails)
        with pytest.raises(error):
            run(model, 1)
        handle.remove()
        # Hooks do not follow on an interruption: the next pass makes up for it.
        run(model, 1)
        assert (torch.get_num_threads(), steps.threads()) == (2, 2)


def test_generation(model, seen):
    """The prompt is read on all threads, steps and what is done with their logits on one; the tokens are the same."""
    ids = torch.arange(9)[None]
    between = []

    class Told(StoppingCriteria):
        def __call__(self, *_, **__):
            between.append(torch.get_num_threads())
            return torch.zeros(1, dtype=torch.bool)

    found = []
    for count in (1, 2):
        with torch_threads(count):
            found.append(model.generate(ids, max_new_tokens=4, do_sample=False, stopping_criteria=[Told()]))
            assert torch.get_num_threads() == count
    assert torch.equal(*found)
    assert seen[-4:] == [(2, 2), (1, 2), (1, 2), (1, 2)]
    assert between[-3:] == [1, 1, 1]


def test_a_failure_in_generation_costs_no_threads(model):
    def fails(*_, **__):
        raise KeyboardInterrupt

    with torch_threads(2):
        with pytest.raises(KeyboardInterrupt):
            model.generate(torch.arange(3)[None], max_new_tokens=4, stopping_criteria=[fails])
        assert (torch.get_num_threads(), steps.threads()) == (2, 2)


def test_a_copy_generates_by_itself(model):
    other = copy.deepcopy(model)
    ids = torch.arange(5)[None]
    before = model.generate(ids, max_new_tokens=4, do_sample=False)
    for parameter in other.parameters():
        parameter.data.zero_()
    for name, buffer in other.named_buffers():
        if "inv_freq" not in name:
            buffer.zero_()
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), before)
    assert not torch.equal(other.generate(ids, max_new_tokens=4, do_sample=False), before)


def test_a_model_is_gone_when_nothing_refers_to_it():
    """At once, not when garbage is collected: it may be gigabytes."""
    model = qformats.load_model("demo", format="gguf:q4_0", device="cpu")
    model.generate(torch.arange(5)[None], max_new_tokens=2, do_sample=False)
    kept = weakref.ref(model.model.layers[0].mlp.up_proj)
    gc.disable()
    try:
        del model
        assert kept() is None
    finally:
        gc.enable()


def test_pickles_generate_by_themselves(model):
    ids = torch.arange(5)[None]
    other = pickle.loads(pickle.dumps(model))
    assert other.generate._model() is other
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(other.generate(ids, max_new_tokens=4, do_sample=False), expected)
