"""Beam search of tasks: against all answers there are, computed without a cache."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from models import glm_goldens

import qformats
from qformats.comparing.loaded import LoadedModel
from qformats.comparing.tasks import beams
from qformats.comparing.tasks.beams import search
from qformats.interfaces import BeamSearch

WORDS = (40, 41, 42, 43)
END = 705
QUESTION = (31, 32, 33, 34, 701, 704)


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    path = glm_goldens.glm_130b(tmp_path_factory.mktemp("glm") / "ranks")
    return LoadedModel(qformats.open(path), torch.device("cpu"), torch.float32)


def only(*allowed):
    return tuple(token for token in range(768) if token not in allowed)


@functools.cache
@torch.no_grad()
def log_probs(model, question, written):
    """Log-probabilities of the next token, with all tokens outside of :data:`WORDS` and the end ruled out."""
    logits = model.model(torch.tensor([[*question, *written]])).logits[0, -1].float()
    logits[list(only(*WORDS, END))] = -65504.0
    return torch.log_softmax(logits, -1)


def every_answer(model, question, most, multiple=1, penalty=1.0):
    """All answers of up to `most` tokens, best first."""
    found = []
    length = -(-len(question) // multiple) * multiple
    for count in range(most + 1):
        for written in itertools.product(WORDS, repeat=count):
            total = sum(float(log_probs(model, question, written[:at])[t]) for at, t in enumerate(written))
            # An answer that is not as long as it may be has an end, which counts too.
            counted = count
            if count < most:
                total += float(log_probs(model, question, written)[END])
                counted += 1
            found.append((total / ((5 + length + counted) / 6) ** penalty, list(written)))
    return sorted(found, reverse=True)


def how(**changes):
    given = {"beams": 64, "tokens": 3, "ends": (END,), "forbidden": only(*WORDS, END)} | changes
    return BeamSearch(**given)


@pytest.mark.parametrize(("multiple", "penalty"), [(1, 1.0), (32, 1.0), (1, 4.0)])
def test_with_enough_beams_the_best_answers_are_found(glm, multiple, penalty):
    expected = [beam for _, beam in every_answer(glm, QUESTION, 3, multiple, penalty)]
    assert len(expected) == 1 + 4 + 16 + 64
    (found,) = search(glm, [QUESTION], how(multiple=multiple, length_penalty=penalty), lambda count: None)
    assert found == expected[:64]


def test_the_length_decides(glm):
    """The cases above differ, so that none of them passes by chance."""
    orders = {
        tuple(tuple(b) for _, b in every_answer(glm, QUESTION, 3, m, p)) for m, p in ((1, 1.0), (1, 4.0))
    }
    assert len(orders) == 2


def test_one_beam_is_greedy(glm):
    greedy = glm.model.generate(
        torch.tensor([QUESTION]),
        max_new_tokens=5,
        min_new_tokens=5,
        do_sample=False,
        suppress_tokens=[705, 22],
    )[0, len(QUESTION) :].tolist()
    told = BeamSearch(beams=1, tokens=5, ends=(705, 22), forbidden=(705, 22))
    assert search(glm, [QUESTION], told, lambda count: None) == [[greedy]]


def test_no_run_of_tokens_comes_twice(glm):
    def repeats(beam):
        pairs = list(itertools.pairwise(beam))
        return len(pairs) != len(set(pairs))

    (found,) = search(glm, [QUESTION], how(tokens=4, ngram=2, beams=400), lambda count: None)
    every = [beam for count in range(5) for beam in itertools.product(WORDS, repeat=count)]
    allowed = {beam for beam in every if not repeats(beam)}
    assert 0 < len(allowed) < len(every) <= len(found)
    # What is ruled out comes last, however likely it is.
    assert {tuple(beam) for beam in found[: len(allowed)]} == allowed


def test_forbidden_beginnings_are_allowed_later(glm):
    (found,) = search(glm, [QUESTION], how(openings=((40,), (41, 42))), lambda count: None)
    best = [tuple(beam) for beam in found][:40]
    assert not any(beam[:1] == (40,) or beam[:2] == (41, 42) for beam in best)
    assert any(40 in beam[1:] for beam in best)
    assert any((41, 42) in itertools.pairwise(beam[1:]) for beam in best)


def test_a_question_is_answered_alike_in_company(glm, monkeypatch):
    """Of one length, in one batch; of others, in others."""
    questions = [QUESTION, (51, 52, 53, 54, 701, 704), (61, 62, 701, 704), (71, 72, 73, 74, 701, 704)]
    told = how(beams=4, tokens=5, forbidden=())
    answers = search(glm, questions, told, lambda count: None)
    assert answers == [search(glm, [question], told, lambda count: None)[0] for question in questions]
    assert len({str(answer) for answer in answers}) == 4
    # With memory for one question at a time.
    monkeypatch.setattr(beams, "_CACHE", 1)
    counts = []
    assert search(glm, questions, told, counts.append) == answers
    assert counts == [1, 1, 1, 1]


def test_it_runs_transformers_own_classes_too():
    demo = LoadedModel(qformats.open("demo"), torch.device("cpu"), torch.float32)
    ids = torch.tensor([[0, 45, 110, 320, 77]])
    greedy = demo.model.generate(ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, 5:].tolist()
    told = BeamSearch(beams=1, tokens=4, ends=(0,), forbidden=(0,))
    assert search(demo, [ids[0].tolist()], told, lambda count: None) == [[greedy]]
