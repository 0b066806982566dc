"""Damaged models of every kind, opened in every way: what comes out is our own error, or a result.

What each kind of damage is refused with stands in the tests of its container; here it only must be refused, or be
harmless. ``robustness.fuzz`` runs the same for as long as one likes.
"""

import random

import pytest
from robustness import fuzz, mutations, victims

_ROUNDS = 25
"""A few seconds: the many thousands that found the faults were run by hand."""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return victims.build(tmp_path_factory.mktemp("victims"))


@pytest.mark.parametrize("seed", range(2))
def test_damage_ends_in_our_error_or_a_result(built, tmp_path, seed):
    rng, outcomes = random.Random(seed), []
    for _ in range(_ROUNDS):
        name = rng.choice(sorted(built))
        copied = victims.copy(built[name], tmp_path / "bad")
        damage = mutations.mutate(rng, copied)
        way = rng.choice(fuzz.WAYS)
        fault = fuzz.attempt(way, fuzz.model_of(copied), tmp_path / "out" / "model")
        outcomes.append(fault)
        assert fault is None, f"{name}, {damage[:200]!r}, {way.__name__}: {fault!r}"
    assert len(outcomes) == _ROUNDS


def test_an_unforeseen_exception_would_be_noticed(built, tmp_path, monkeypatch):
    """The tests above can fail."""
    monkeypatch.setattr("qformats_gguf.shards.GGUFModel.__init__", lambda self, files: {}["no such key"])
    model = fuzz.model_of(built["gguf"])
    for way in fuzz.WAYS:
        assert fuzz.attempt(way, model, tmp_path / "out" / "model") is not None, way.__name__
