"""Steps of one token give the text of Transformers' own loop; Triton's interpreter runs the kernels here."""

import functools
import threading

import pytest
import torch
from models import architectures

import qformats

loop = pytest.importorskip("qformats.runtime.decoding.loop", reason="needs Triton")
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="the interpreter runs where there is no CUDA device"
)

# Windows and caps; sinks and experts; latent attention; a part of each head rotated.
CAPTURED = ["gemma2", "gpt_oss", "deepseek_v3", "glm4_moe"]
REFUSED = {
    "llama4": "a layer is of the kind chunked_attention",
    "falcon": "unsupported operand",
    "ph3-partial": "a way of its own to prepare each token",
    "qwen3_next": "not all of its layers are attention",
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    @functools.cache
    def build(name):
        return qformats.load_model(architectures.build(name, tmp_path_factory.mktemp(name)), device="cpu")

    return build


def written(model, ids, **settings):
    """By steps, and by Transformers' own loop."""
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    settings.setdefault("attention_mask", torch.ones_like(ids))
    texts = []
    for given in ({"custom_generate": functools.partial(loop._steps, heard=settings.get("streamer"))}, {}):
        torch.manual_seed(0)
        texts.append(type(model).generate(model, ids, **settings, **given))
    return texts


def random_ids(rows, count):
    return torch.randint(5, 90, (rows, count), generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings("error:tokens are computed")
@pytest.mark.parametrize("name", CAPTURED)
def test_the_same_text(name, model_of):
    # Longer than the windows, of which the second prompt has a part that is not seen.
    ids = random_ids(2, 21)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    steps, own = written(model_of(name), ids, attention_mask=mask)
    assert torch.equal(steps, own)
    assert loop._sessions[model_of(name)].graph is not None
    # A shorter prompt takes the same session.
    session = loop._sessions[model_of(name)]
    steps, own = written(model_of(name), ids[:, :7])
    assert torch.equal(steps, own)
    assert loop._sessions[model_of(name)] is session


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_said_and_computed(name, model_of):
    with pytest.warns(UserWarning, match=f"one operation at a time, because .*{REFUSED[name]}"):
        steps, own = written(model_of(name), random_ids(1, 9))
    assert torch.equal(steps, own)
    assert loop._unfit[model_of(name)]


def test_sampling_and_processors(model_of):
    steps, own = written(
        model_of("gemma2"), random_ids(2, 9), do_sample=True, top_k=20, repetition_penalty=1.3
    )
    assert torch.equal(steps, own)


def test_only_positions_that_are_counted_are_continued():
    place = torch.arange(5)[None]
    padded = torch.tensor([[0, 0, 1, 1, 1]])
    assert loop._in_order(None, None)
    assert loop._in_order(place, None)
    assert loop._in_order(torch.tensor([[0, 0, 0, 1, 2]]), padded)
    assert not loop._in_order(place, padded)
    assert not loop._in_order(3 * place, None)
    assert not loop._in_order(place.expand(3, 1, 5), None)


def test_rows_that_end_are_filled(model_of):
    ids = random_ids(2, 9)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    whole = model_of("gemma2").generate(ids, max_new_tokens=3, eos_token_id=None, **settings)
    end = int(whole[0, 11])
    steps, own = written(model_of("gemma2"), ids, max_new_tokens=8, eos_token_id=end, pad_token_id=3)
    assert torch.equal(steps, own)


def test_a_streamer_hears_every_token(model_of):
    class Heard:
        def __init__(self):
            self.ids, self.ended = [], 0

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ended += 1

    heard = Heard()
    ids = random_ids(1, 9)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    steps = functools.partial(loop._steps, heard=heard)
    model = model_of("gemma2")
    text = type(model).generate(
        model, ids, attention_mask=torch.ones_like(ids), streamer=heard, custom_generate=steps, **settings
    )
    assert heard.ids == text[0].tolist()
    assert heard.ended == 1


def test_a_step_with_other_numbers_is_refused(model_of, monkeypatch):
    from qformats.kernels import step

    own = step.attention
    monkeypatch.setattr(step, "attention", lambda *args, **more: own(*args, **more) * 1.5)
    loop._sessions.pop(model_of("starcoder2"), None)
    with pytest.warns(UserWarning, match="because captured, its logits are"):
        steps, plain = written(model_of("starcoder2"), random_ids(1, 9))
    assert torch.equal(steps, plain)
    loop._unfit.pop(model_of("starcoder2"))


def test_the_models_code_is_its_own_again(model_of):
    model = model_of("gemma2")
    written(model, random_ids(1, 9))
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert {
        module.config._attn_implementation for module in model.modules() if hasattr(module, "config")
    } == {model.config._attn_implementation}
    assert model.config._attn_implementation != "qformats_step"


def test_turns_wait_for_a_change():
    from qformats.runtime.decoding.turns import Turns

    turns, order = Turns(), []

    def run():
        with turns.together():
            order.append("run")

    with turns.alone() as alone:
        assert alone
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(0.05)
        with turns.alone() as second:
            assert not second
        order.append("changed")
    thread.join()
    assert order == ["changed", "run"]
