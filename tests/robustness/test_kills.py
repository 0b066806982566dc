"""Exports that are killed: a few chains of each kind; ``robustness.kills`` runs as many as one likes."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter

import pytest
from robustness import kills
from robustness.killing import ended

_QUICK = ("file", "split", "folder", "recipe")
"""Without calibration, whose kinds run by hand and in tests/calibration."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return kills.Work(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("kind", _QUICK)
def test_killed_at_any_moment(work, kind):
    told, rng = Counter(), random.Random(kind)
    for _ in range(3):
        told += kills.chain(work, kind, rng)
    assert told["killed"] >= 2
    assert told["replacing"]


def test_half_a_model_would_be_noticed(work):
    """The check of the chains can fail."""
    kills.prepared(work, "split")
    clean, older = work.clean["split"], work.older["split"]
    assert clean.keys() == older.keys()
    kills._whole("split", older, [clean, older])
    first = next(name for name in clean if "-00001-of-" in name)
    kills._whole("split", {name: clean[name] for name in clean if name != first}, [clean, older])
    with pytest.raises(AssertionError, match="is no model"):
        kills._whole("split", {**clean, first: older[first]}, [clean, older])


def test_a_signal_ends_a_copy_as_it_ends_a_program(tmp_path):
    code = ended(threading.Event().wait, after=0.05, number=signal.SIGTERM, log=tmp_path / "log")
    assert code == -signal.SIGTERM
