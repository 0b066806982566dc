"""Steps of one token of a GLM, whose tokens have positions of their own; Triton's interpreter runs the kernels here."""

import functools

import pytest
import torch
from models.glm_goldens import chatglm_6b, glm_130b, golden

import qformats
from qformats.errors import ConfigError

loop = pytest.importorskip("qformats.runtime.decoding.loop", reason="needs Triton")
pytestmark = [
    pytest.mark.skipif(
        torch.cuda.is_available(), reason="the interpreter runs where there is no CUDA device"
    ),
    pytest.mark.filterwarnings("error:tokens are computed"),
]

MODELS = {"glm-130b": glm_130b, "chatglm-6b": chatglm_6b}
PARTS = [("glm-130b", part) for part in ("gmask.prefill", "gmask.full", "mask.prefill", "lm")]
PARTS += [("chatglm-6b", part) for part in ("prefill", "full", "mask", "batch")]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    @functools.cache
    def load(name):
        return qformats.load_model(MODELS[name](tmp_path_factory.mktemp(name) / "in"), device="cpu")

    return load


def written(model, ids, **settings):
    """By steps, and by Transformers' own loop."""
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **settings}
    settings.setdefault("attention_mask", torch.ones_like(ids))
    steps = {"custom_generate": functools.partial(loop._steps, heard=None)}
    return [type(model).generate(model, ids, **settings, **given) for given in (steps, {})]


@pytest.mark.parametrize(("name", "part"), PARTS, ids=str)
def test_the_same_text(name, part, model_of):
    steps, own = written(model_of(name), golden(name)[f"{part}.input_ids"])
    assert torch.equal(steps, own)
    # One session serves blanks of all kinds, whose tokens count on or stay.
    assert loop._sessions[model_of(name)].graph is not None


@pytest.mark.parametrize("name", MODELS)
def test_padding_is_not_counted(name, model_of):
    model = model_of(name)
    ids = golden(name)["prefill.input_ids" if name == "chatglm-6b" else "gmask.prefill.input_ids"][:1]
    short = torch.cat([torch.zeros_like(ids[:, :3]), ids[:, 3:]], 1)
    mask = torch.ones_like(ids).repeat(2, 1)
    mask[1, :3] = 0
    steps, own = written(model, torch.cat([ids, short]), attention_mask=mask)
    assert torch.equal(steps, own)
    assert loop._sessions[model].batch == 2


def test_a_text_that_cannot_be_read_leaves_the_steps(model_of):
    model = model_of("glm-130b")
    with pytest.raises(ConfigError, match="a text without <sop>"):
        written(model, torch.tensor([[5, 6, 7]]))
    assert model not in loop._unfit
    steps, own = written(model, golden("glm-130b")["gmask.prefill.input_ids"])
    assert torch.equal(steps, own)
