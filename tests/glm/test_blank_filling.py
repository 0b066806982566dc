"""ChatGLM-6B and GLM-130B compute what upstream's code computes, from ids alone."""

from __future__ import annotations

import json

import pytest
import torch
from models.glm_goldens import FILES, IDS_130B, golden
from safetensors.torch import load_file

from qformats.errors import ConfigError
from qformats_glm.models.configuration import ChatGLM6BConfig, GLM130BConfig
from qformats_glm.models.modeling import ChatGLM6BForCausalLM, GLM130BForCausalLM
from qformats_glm.models.places import positions, visible

CLOSE = 1e-4
"""Largest difference of logits whose mean size is 1.3 and 4; the closest mistake (tanh for erf) makes 0.0017."""
NEVER = 767
"""An id that nothing predicts: generation goes on to the length that is asked for."""


def _filled(model, weights):
    values = {name: value.float() for name, value in load_file(weights).items()}
    lacking, unknown = model.load_state_dict(values, strict=False)
    assert (unknown, set(lacking)) == ([], set() if "lm_head.weight" in values else {"lm_head.weight"})
    return model.eval()


def small(**changes):
    config = json.loads((FILES / "chatglm-6b" / "config.json").read_text())
    model = ChatGLM6BForCausalLM(ChatGLM6BConfig.from_dict(config | changes))
    return _filled(model, FILES / "chatglm-6b" / "model.safetensors")


def large(**changes):
    config = json.loads((FILES / "glm-130b" / "config.json").read_text())
    model = GLM130BForCausalLM(GLM130BConfig.from_dict(config | IDS_130B | changes))
    return _filled(model, FILES / "glm-130b" / "model.safetensors")


@pytest.fixture(scope="module")
def chatglm():
    return small()


@pytest.fixture(scope="module")
def glm130b():
    return large()


MODELS = {"chatglm-6b": small, "glm-130b": large}
WHOLE = [("chatglm-6b", part) for part in ("prefill", "full", "mask")]
WHOLE += [("glm-130b", part) for part in ("gmask.prefill", "gmask.full", "mask.prefill", "mask.full", "lm")]


@torch.no_grad()
@pytest.mark.parametrize(("name", "part"), WHOLE, ids=str)
def test_ids_tell_positions_and_what_is_seen(name, part):
    model, known = MODELS[name](), golden(name)
    ids = known[f"{part}.input_ids"]
    if f"{part}.position_ids" in known:
        assert torch.equal(positions(ids, None, model.config), known[f"{part}.position_ids"])
    blocked = known[f"{part}.attention_mask"].bool()
    assert torch.equal(visible(ids, None, model.config), ~blocked)
    assert (model(ids).logits - known[f"{part}.logits"]).abs().max() < CLOSE
    # The same, said by the caller.
    place = positions(ids, None, model.config)
    told = model(ids, attention_mask=~blocked, position_ids=place, logits_to_keep=2).logits
    assert (told - known[f"{part}.logits"][:, -2:]).abs().max() < CLOSE


def written(model, ids, count=9, **options):
    return model.generate(
        ids,
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=NEVER,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


@pytest.mark.parametrize(
    ("name", "part"), [("chatglm-6b", ""), ("glm-130b", "gmask."), ("glm-130b", "mask.")], ids=str
)
@pytest.mark.parametrize("cached", [True, False])
def test_generate_writes_what_upstream_writes(name, part, cached):
    model, known = MODELS[name](), golden(name)
    found = written(model, known[f"{part}prefill.input_ids"], use_cache=cached)
    assert torch.equal(found.sequences[:, -9:-1], known[f"{part}greedy.tokens"])
    assert (torch.stack(found.logits[1:], 1) - known[f"{part}greedy.step_logits"]).abs().max() < CLOSE


def test_generate_stops_at_the_end_of_an_answer(glm130b):
    known = golden("glm-130b")
    ends = int(known["gmask.greedy.tokens"][0, 2])
    ids = known["gmask.prefill.input_ids"]
    found = glm130b.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=[705, ends])
    assert found[0, ids.shape[1] :].tolist() == known["gmask.greedy.tokens"][0, :3].tolist()


@torch.no_grad()
def test_cache_holds_upstreams_keys_and_values(chatglm, glm130b):
    known = golden("chatglm-6b")
    cache = chatglm(known["prefill.input_ids"], use_cache=True).past_key_values
    for number, layer in enumerate(cache.layers):
        for kind, values in (("key", layer.keys), ("value", layer.values)):
            expected = known[f"prefill.cache.{number}.{kind}"]
            assert (values.permute(2, 0, 1, 3) - expected).abs().max() < CLOSE
    known = golden("glm-130b")
    cache = glm130b(known["gmask.prefill.input_ids"], use_cache=True).past_key_values
    for number, layer in enumerate(cache.layers):
        both = torch.cat([part.transpose(1, 2).flatten(2) for part in (layer.keys, layer.values)], -1)
        assert (both - known["gmask.prefill.mem_kv"][number]).abs().max() < CLOSE


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "part"), [("chatglm-6b", ""), ("glm-130b", "gmask."), ("glm-130b", "mask.")], ids=str
)
def test_a_cache_knows_where_an_answer_goes_on(name, part):
    """Token by token, and several at once, without positions."""
    model, known = MODELS[name](), golden(name)
    prompt, tokens = known[f"{part}prefill.input_ids"], known[f"{part}greedy.tokens"]
    expected = known[f"{part}greedy.step_logits"]
    for steps in (tokens.split(1, 1), tokens.split(3, 1)):
        cache, found = model(prompt, use_cache=True).past_key_values, []
        for step in steps:
            given = model(step, past_key_values=cache, use_cache=True)
            found.append(given.logits)
        assert (torch.cat(found, 1) - expected).abs().max() < CLOSE


@torch.no_grad()
def test_left_padding(chatglm):
    known = golden("chatglm-6b")
    ids = known["batch.input_ids"]
    keep = (ids != chatglm.config.pad_token_id).long()
    assert not keep.all()
    assert torch.equal(positions(ids, keep, chatglm.config), known["batch.position_ids"])
    assert torch.equal(visible(ids, keep, chatglm.config), ~known["batch.attention_mask"].bool())
    # Padding too: it sees nothing, so that it averages over all.
    assert (chatglm(ids, attention_mask=keep).logits - known["batch.logits"]).abs().max() < CLOSE


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_padded_batch_writes_what_each_text_does(name, cached):
    model = MODELS[name]()
    config, pad = model.config, model.config.pad_token_id
    short = [31, 32, config.mask_token_id, 34, config.bos_token_id]
    long = [41, 42, 43, 44, 45, 46, config.gmask_token_id, config.bos_token_id]
    batch = torch.tensor([[pad] * 3 + short, long])
    keep = torch.tensor([[0] * 3 + [1] * 5, [1] * 8])
    found = written(model, batch, attention_mask=keep, use_cache=cached)
    for row, text in enumerate((short, long)):
        alone = written(model, torch.tensor([text]))
        assert found.sequences[row, 8:].tolist() == alone.sequences[0, len(text) :].tolist()
        assert (torch.stack(found.logits)[:, row] - torch.stack(alone.logits)[:, 0]).abs().max() < CLOSE


@torch.no_grad()
def test_padding_on_the_right_changes_nothing(chatglm):
    ids = golden("chatglm-6b")["prefill.input_ids"]
    keep = torch.tensor([[1] * ids.shape[1] + [0] * 4])
    padded = torch.cat([ids, torch.full((1, 4), 3)], 1)
    found = chatglm(padded, attention_mask=keep).logits[:, : ids.shape[1]]
    assert (found - chatglm(ids).logits).abs().max() < 1e-5


def test_beams_reorder_the_cache(chatglm):
    ids = golden("chatglm-6b")["prefill.input_ids"]
    options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "eos_token_id": NEVER}
    cached, anew = (chatglm.generate(ids, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, anew)


def test_the_first_release_places_tokens_otherwise():
    model = small(first_release=True)
    prompt = golden("chatglm-6b")["prefill.input_ids"]
    known = golden("chatglm-6b/golden_first_release.safetensors")
    assert torch.equal(positions(prompt, None, model.config), known["prefill.position_ids"])
    with torch.no_grad():
        assert (model(prompt).logits - known["prefill.logits"]).abs().max() < CLOSE
    found = written(model, prompt, count=2)
    assert found.sequences[0, -2] == known["step.token"]
    assert (found.logits[1] - known["step.logits"][:, 0]).abs().max() < CLOSE


@pytest.mark.parametrize(
    ("vocabulary", "first", "ids"),
    [
        (150528, True, [150000, 150001, 150004, 150005, 20003]),
        (130528, False, [130000, 130001, 130004, 130005, 3]),
    ],
)
def test_the_vocabulary_tells_the_release(vocabulary, first, ids):
    config = ChatGLM6BConfig(vocab_size=vocabulary)
    assert config.first_release is first
    names = ("mask_token_id", "gmask_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    assert [getattr(config, name) for name in names] == ids


@torch.no_grad()
def test_frequencies_are_rounded_as_the_configuration_says():
    known = golden("chatglm-6b")
    exact = small(inv_freq_dtype="float32")(known["prefill.input_ids"]).logits[:, -2:]
    assert (exact - known["variant.inv_freq_fp32.logits"]).abs().max() < CLOSE
    assert (exact - known["prefill.logits"][:, -2:]).abs().max() > 3 * CLOSE
    known = golden("glm-130b")
    rounded = large(inv_freq_dtype="float16")(known["gmask.full.input_ids"]).logits[:, -2:]
    assert (rounded - known["variant.inv_freq_fp16.logits"]).abs().max() < CLOSE


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "part", "off"), [("chatglm-6b", "prefill", 0.02), ("glm-130b", "gmask.full", 0.05)]
)
def test_half_precision_is_as_close_as_upstreams(name, part, off):
    known = golden(name)
    half = MODELS[name]().half()(known[f"{part}.input_ids"]).logits.float()
    own = (half[:, -2:] - known[f"{part}.logits"][:, -2:]).abs().max()
    theirs = (known["variant.fp16_cpu.logits"] - known[f"{part}.logits"][:, -2:]).abs().max()
    # Upstream also rounds angles to half precision there.
    assert own < max(off, 2 * theirs)


@torch.no_grad()
def test_scores_that_float16_cannot_hold():
    """Products of queries and keys are beyond 65504 in the last of three layers, a third of them is not."""
    model, ids = small().half(), golden("chatglm-6b")["prefill.input_ids"]
    attention = model.transformer.layers[2].attention
    attention.query_key_value.weight.view(4, 3, 16, 64)[:, :2].mul_(100)
    assert bool(model(ids, use_cache=False).logits.isfinite().all())
    attention.layer_idx = 0
    assert not bool(model(ids, use_cache=False).logits.isfinite().all())


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        ([31, 32, 701], "without <sop>"),
        ([31, 32, 704], "without a mask token"),
        ([31, 704, 701], "without a mask token"),
    ],
)
def test_a_text_without_a_blank_is_refused(glm130b, ids, told):
    for run in (glm130b, lambda x: glm130b.generate(x, max_new_tokens=1)):
        with pytest.raises(ConfigError, match=told):
            run(torch.tensor([ids]))


def test_what_would_be_computed_wrongly_is_refused(chatglm):
    ids = golden("chatglm-6b")["prefill.input_ids"]
    cache = chatglm(ids, use_cache=True).past_key_values
    cache.crop(-16)
    with pytest.raises(ConfigError, match="position_ids"):
        chatglm(ids[:, -1:], past_key_values=cache)
    with pytest.raises(ConfigError, match="attention_mask"):
        chatglm(ids, attention_mask=torch.zeros(1, 1, 24, 24))
    with pytest.raises(ConfigError, match="position_ids of generate"):
        chatglm.generate(ids, position_ids=torch.zeros(1, 2, 24, dtype=torch.int64), max_new_tokens=1)
    with pytest.raises(ConfigError, match="DynamicCache"):
        chatglm.generate(ids, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ConfigError, match="without <sop>"):
        chatglm.generate(ids, prefill_chunk_size=8, max_new_tokens=2)
    place, seen = positions(ids, None, chatglm.config), visible(ids, None, chatglm.config)
    part = {"position_ids": place[..., :8], "attention_mask": seen[..., :8, :8]}
    begun = chatglm(ids[:, :8], use_cache=True, **part).past_key_values
    with pytest.raises(ConfigError, match="a part of the text before <sop>"):
        chatglm.generate(ids, past_key_values=begun, max_new_tokens=2)
    with pytest.raises(ConfigError, match="P-tuning"):
        ChatGLM6BConfig(pre_seq_len=128)


@torch.no_grad()
def test_a_share_of_the_heads_and_of_the_inner_features_runs(glm130b):
    """What a rank of tensor parallelism computes: shares add up."""
    layer = glm130b.transformer.layers[1]
    states = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(3))
    from qformats_glm.models.layers import rotation

    turn = rotation(torch.arange(5)[None], 16, glm130b.config, torch.float32)
    whole = layer.attention(states, None, turn, None), layer.mlp(states)
    sums = [layer.attention.dense.bias.clone(), layer.mlp.dense_4h_to_h.bias.clone()]
    for rank in range(2):
        part = large().transformer.layers[1]
        fused, dense = part.attention.query_key_value, part.attention.dense
        fused.weight.data, fused.bias.data = (each.chunk(2)[rank] for each in (fused.weight, fused.bias))
        dense.weight.data, dense.bias.data = dense.weight.chunk(2, 1)[rank], torch.zeros(64)
        up, down = part.mlp.dense_h_to_4h, part.mlp.dense_4h_to_h
        for value in (up.weight, up.bias):
            quarters = value.chunk(4)
            value.data = torch.cat([quarters[rank], quarters[2 + rank]])
        down.weight.data, down.bias.data = down.weight.chunk(2, 1)[rank], torch.zeros(64)
        sums[0] = sums[0] + part.attention(states, None, turn, None)
        sums[1] = sums[1] + part.mlp(states)
    for added, expected in zip(sums, whole, strict=True):
        assert (added - expected).abs().max() < 1e-5
