"""Answers of the engine are those of Transformers' generate, one at a time or many together."""

from __future__ import annotations

import gc
import json
import queue
import shutil
import time
import weakref

import pytest
import torch
from oracles import hf
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
)

import qformats
from qformats.chatting.answer import Request
from qformats.chatting.engine import Busy, Closed, Engine
from qformats.chatting.loaded import ChatModel
from qformats.chatting.sampling import Sampling
from qformats.errors import ConfigError
from qformats.runtime import tokenizer

PROMPTS = (
    "The king",
    "The Constitution of the United States",
    "In the year of our Lord one thousand seven hundred and eighty-seven, the people",
    "Fellow citizens,",
)


@pytest.fixture(scope="module")
def words():
    return tokenizer(qformats.open("demo"))


@pytest.fixture(scope="module")
def reference():
    return hf.load(qformats.open("demo").path)


def together(engine, requests):
    """Texts, ids and last pieces of requests that are made at once, in their order."""
    arriving: queue.SimpleQueue = queue.SimpleQueue()
    answers = [
        engine.submit(request, lambda piece, n=n: arriving.put((n, piece)))
        for n, request in enumerate(requests)
    ]
    texts, lasts = [""] * len(requests), {}
    while len(lasts) < len(requests):
        n, piece = arriving.get(timeout=60)
        texts[n] += piece.text
        if piece.finish:
            assert n not in lasts
            lasts[n] = piece
    return texts, [answer.new for answer in answers], [lasts[n] for n in range(len(requests))]


def test_answers_are_those_of_transformers_one_by_one_and_together(chat_model, words, reference):
    ids = [words(prompt)["input_ids"] for prompt in PROMPTS]
    expected = [hf.greedy(reference, each, 24) for each in ids]
    requests = [Request(tuple(each), most=24 - n) for n, each in enumerate(ids)]
    for n, request in enumerate(requests):
        text = "".join(piece.text for piece in chat_model.engine.stream(request))
        assert words.decode(ids[n] + expected[n][: request.most]) == words.decode(ids[n]) + text
    _, new, lasts = together(chat_model.engine, requests * 3)
    assert new == [expected[n][: request.most] for n, request in enumerate(requests)] * 3
    assert [each.finish for each in lasts] == ["length"] * 12
    assert [each.timings.tokens for each in lasts] == [request.most for request in requests] * 3


def tiny(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


SMALL = {"vocab_size": 2048, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("config", "batches"),
    [
        (LlamaConfig(**SMALL, **HEADS), True),
        # Looks back 8 tokens only; the prompts are longer.
        (MistralConfig(**SMALL, **HEADS, sliding_window=8), True),
        (Gemma3TextConfig(**SMALL, **HEADS, sliding_window=8, sliding_window_pattern=2), True),
        (GPT2Config(vocab_size=2048, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0), True),
        (AutoConfig.for_model("bloom", vocab_size=2048, hidden_size=32, n_layer=2, n_head=2), True),
        (MambaConfig(vocab_size=2048, hidden_size=32, state_size=8, num_hidden_layers=2), False),
    ],
    ids=lambda value: value.model_type if hasattr(value, "model_type") else "",
)
def test_architectures(config, batches, words):
    """Positions by rotation, by table and by distance, sliding windows, and a model that has no keys and values."""
    model = tiny(config)
    ids = [words(prompt)["input_ids"] for prompt in PROMPTS]
    expected = []
    for each in ids:
        prompt = torch.tensor([each])
        more = {"attention_mask": torch.ones_like(prompt), "eos_token_id": None, "pad_token_id": 0}
        out = model.generate(prompt, max_new_tokens=12, do_sample=False, **more)
        expected.append(out[0, len(each) :].tolist())
    with Engine(model, words) as engine:
        assert engine.batches is batches
        _, new, _ = together(engine, [Request(tuple(each), most=12) for each in ids])
        assert new == expected
        # A conversation's next turn begins with what is in the cache already.
        again = Request((*ids[1], *new[1], *ids[0]), most=4)
        (_, (first,), (last,)) = together(engine, [again])
        assert last.timings.cached_tokens == (len(ids[1]) + 11 if batches else 0)
    prompt = torch.tensor([list(again.ids)])
    more = {"attention_mask": torch.ones_like(prompt), "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(prompt, max_new_tokens=4, do_sample=False, **more)
    assert first == out[0, len(again.ids) :].tolist()


@pytest.mark.parametrize("hot", [{}, {"temperature": 1.3, "seed": 4}], ids=["likeliest", "drawn"])
def test_one_alone_by_generate_until_another_comes(words, hot):
    """As on a GPU: nobody's text depends on who else is there, and when they came."""
    model = tiny(LlamaConfig(**SMALL, **HEADS))
    sampling = Sampling(**hot)
    requests = [
        Request(tuple(words(prompt)["input_ids"]), most=count, sampling=sampling)
        for prompt, count in zip(PROMPTS, (120, 30, 20, 10), strict=True)
    ]
    with Engine(model, words) as engine:
        expected = [together(engine, [request])[1][0] for request in requests]
    with Engine(model, words, captured=True) as engine:
        assert together(engine, requests[:1])[1] == expected[:1]
        arrived: queue.SimpleQueue = queue.SimpleQueue()
        first = engine.submit(requests[0], arrived.put)
        assert arrived.get(timeout=60).text
        assert together(engine, requests[1:])[1] == expected[1:]
        while not (piece := arrived.get(timeout=60)).finish:
            assert piece.text
        assert (first.new, piece.finish, piece.timings.tokens) == (expected[0], "length", 120)


def test_a_closed_engine_keeps_no_model(words):
    model = tiny(LlamaConfig(**SMALL, **HEADS))
    alive = weakref.ref(model)
    with Engine(model, words) as engine:
        together(engine, [Request((3, 4), most=2)])
    del model
    gc.collect()
    assert alive() is None
    assert (engine.active, engine.cache_nbytes) == (0, 0)


def test_long_prompts_are_read_in_parts(monkeypatch, words):
    from qformats.chatting import together as module

    monkeypatch.setattr(module, "_PART", 5)
    model = tiny(LlamaConfig(**SMALL, **HEADS))
    ids = [words(prompt * 2)["input_ids"] for prompt in PROMPTS]
    with Engine(model, words) as engine:
        _, new, _ = together(engine, [Request(tuple(each), most=6) for each in ids])
    assert new == [hf.greedy(model, each, 6) for each in ids]


def test_probabilities_are_the_models_own(chat_model, words, reference):
    """Whatever the sampling: of the token that was chosen, and of the likeliest ones."""
    ids = words(PROMPTS[1])["input_ids"]
    request = Request(tuple(ids), most=12, logprobs=3, sampling=Sampling(temperature=1.5, top_k=50, seed=3))
    pieces = list(chat_model.engine.stream(request))
    tokens = [token for piece in pieces for token in piece.tokens]
    new = [token.id for token in tokens]
    assert len(new) == 12
    assert new != hf.greedy(reference, ids, 12)
    with torch.no_grad():
        logits = reference(torch.tensor([ids + new])).logits[0, len(ids) - 1 : -1]
    expected = torch.log_softmax(logits.float(), -1)
    for row, token in zip(expected, tokens, strict=True):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        values, best = row.topk(3)
        assert [each.id for each in token.top] == best.tolist()
        assert [each.logprob for each in token.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert b"".join(token.bytes for token in tokens).decode() == "".join(piece.text for piece in pieces)


def test_a_seed_gives_the_same_text_whoever_else_is_there(chat_model, words):
    ids = words(PROMPTS[0])["input_ids"]
    hot = [Request(tuple(ids), most=10, sampling=Sampling(temperature=1.3, seed=seed)) for seed in range(4)]
    alone = [together(chat_model.engine, [request])[1][0] for request in hot]
    assert together(chat_model.engine, hot)[1] == alone
    assert len({tuple(each) for each in alone}) > 1


@pytest.mark.parametrize("count", [1, 3])
def test_end_tokens_and_texts(chat_model, words, reference, count):
    ids = words(PROMPTS[1])["input_ids"]
    new = hf.greedy(reference, ids, 20)
    end = next(token for n, token in enumerate(new) if n >= 5 and token not in new[:n])
    at = new.index(end)
    text = words.decode(new[:20])
    stop = text[5:19]
    ends = Request(tuple(ids), most=20, ends=frozenset({1999, end, 7}))
    stops = Request(tuple(ids), most=20, stops=("never", stop), logprobs=0)
    texts, made, lasts = together(chat_model.engine, [ends, stops] * count)
    assert [each.finish for each in lasts] == ["stop"] * 2 * count
    assert made[::2] == [new[: at + 1]] * count
    assert texts[1::2] == [text[: text.index(stop)]] * count
    # It spans more than one token, and the text of none of them was sent.
    assert len(words(stop, add_special_tokens=False)["input_ids"]) > 1


def test_stopping(chat_model, words):
    """Who stops reading ends the answer; the model is free again at once."""
    request = Request(tuple(words(PROMPTS[0])["input_ids"]), most=400)
    pieces = chat_model.engine.stream(request)
    next(pieces)
    pieces.close()
    until = time.monotonic() + 5
    while chat_model.engine.active and time.monotonic() < until:
        time.sleep(0.01)
    assert chat_model.engine.active == 0


def test_the_queue_is_bounded_and_closing_ends_everybody(words):
    model = tiny(LlamaConfig(**SMALL, **HEADS))
    arrived: queue.SimpleQueue = queue.SimpleQueue()
    ids = tuple(words(PROMPTS[1])["input_ids"])
    with Engine(model, words, answers=1, waiting=3) as engine:
        engine.submit(Request(ids, most=100_000), arrived.put)
        assert arrived.get(timeout=60).text
        for _ in range(3):
            engine.submit(Request(ids, most=100_000), arrived.put)
        with pytest.raises(Busy, match="3 requests are waiting already"):
            engine.submit(Request(ids, most=100_000), arrived.put)
        assert (engine.active, engine.waiting) == (1, 3)
    finishes = []
    while not arrived.empty():
        piece = arrived.get()
        finishes += [piece.finish] if piece.finish else []
    assert sorted(finishes) == ["cancelled", "error", "error", "error"]
    with pytest.raises(Closed):
        engine.submit(Request(ids, most=1), arrived.put)


@pytest.mark.parametrize(("tokens", "most"), [(1, 1), (70, 2), (10_000, 4)])
def test_the_cache_bounds_how_many_are_answered_at_a_time(words, tokens, most):
    """Each may need 30 tokens of the cache; one alone is always answered."""
    model = tiny(LlamaConfig(**SMALL, **HEADS))
    nbytes = 2 * 2 * HEADS["num_key_value_heads"] * HEADS["head_dim"] * 4
    seen = set()
    finished: queue.SimpleQueue = queue.SimpleQueue()
    with Engine(model, words, cache_bytes=tokens * nbytes) as engine:

        def sink(piece):
            seen.add(engine.active)
            if piece.finish:
                finished.put(piece)

        for start in range(4):
            engine.submit(Request(tuple(range(start, start + 10)), most=20), sink)
        assert [finished.get(timeout=60).finish for _ in range(4)] == ["length"] * 4
    assert max(seen) == most


def test_what_a_model_raises_ends_its_answers_and_nothing_else(words):
    model = tiny(LlamaConfig(**SMALL, **HEADS))
    with Engine(model, words) as engine:
        (_, _, (last,)) = together(engine, [Request((5000,), most=3)])
        assert (last.finish, type(last.error)) == ("error", IndexError)
        model.lm_head.weight.data[5] = float("nan")
        (_, _, (last,)) = together(engine, [Request((3, 4), most=3)])
        assert str(last.error) == "the model gives scores that are not numbers"
        model.lm_head.weight.data[5] = 0
        (_, _, (last,)) = together(engine, [Request((3, 4), most=3)])
        assert last.finish == "length"


def test_the_context_bounds_requests(chat_model):
    assert chat_model.request(range(500)).most == 12
    assert chat_model.request(range(500), most=99).most == 12
    with pytest.raises(ConfigError, match="found 512 tokens; expected fewer than the model's context of 512"):
        chat_model.request(range(512))


def test_habits_of_a_model(talker, tmp_path):
    """How it draws tokens, and which tokens end its answers and its turns."""
    folder = tmp_path / "model"
    shutil.copytree(talker, folder)
    settings = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [5, 9]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with ChatModel(qformats.open(folder), "m", None, device="cpu", format="gguf:q4_0") as model:
        assert model.sampling(top_p=0.5) == Sampling(0.6, 0.5, 20)
        assert model.request([1]).ends == {5, 9}
        assert model.request([1], turn=True).ends == {5, 9, model.engine.tokenizer.eos_token_id}
        facts = model.facts
        assert facts.formats["gguf:q4_0"][0] == 29
        assert facts.nbytes == sum(nbytes for _, nbytes in facts.formats.values()) < 8e6
        assert facts.process_nbytes > facts.nbytes
