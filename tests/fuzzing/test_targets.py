"""A short run of every target: damaged files end in our own error or a result, soon, and inside their folder.

``python scripts/fuzz.py TARGET`` runs for as long as one likes; what it finds is put into ``regressions/TARGET``.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from fuzzing import corpus
from fuzzing.runner import Changes, Runner, sandbox, seeds_of
from fuzzing.targets.every import TARGETS
from fuzzing.targets.quantized_folders import FAMILIES

_RUNS, _HEAVY_RUNS = 2000, 150
"""Changed inputs of a target; always the same ones."""
_SECONDS = 2.5
"""After which a slow machine stops, with fewer."""
_FEWEST = 20


@pytest.fixture
def place():
    with sandbox() as made:
        yield made


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read_and_once_faults_are_none_any_more(name, place):
    target = TARGETS[name]
    seeds = corpus.load(corpus.SEEDS / name)
    runner = Runner(target, place)
    assert seeds
    with runner.running():
        for data in seeds:
            fault = runner.execute(data)
            assert fault is None, fault.text
        # A seed that is refused at the door leads nowhere.
        assert runner.results >= (len(seeds) + 1) // 2
        for data in corpus.load(corpus.REGRESSIONS / name):
            fault = runner.execute(data)
            assert fault is None, fault.text


@pytest.mark.parametrize("name", TARGETS)
def test_damage_ends_in_our_error_or_a_result(name, place):
    target = TARGETS[name]
    runner, changes = Runner(target, place), Changes(target, 7, seeds_of(target))
    with runner.running():
        until = time.monotonic() + _SECONDS
        for number in range(_HEAVY_RUNS if target.heavy else _RUNS):
            if number >= _FEWEST and time.monotonic() > until:
                break
            data, before = changes.next(), runner.results
            fault = runner.execute(data)
            assert fault is None, f"{corpus.write(place.root / 'faults', data, name)}: {fault.text}"
            if runner.results > before:
                changes.keep(data)
    assert runner.refusals
    assert runner.executions >= _FEWEST


def test_regressions_belong_to_targets():
    for folder in (corpus.SEEDS, corpus.REGRESSIONS):
        assert {path.name for path in folder.iterdir() if path.is_dir()} - {"__pycache__"} <= {*TARGETS}


def test_the_corpus_stays_small():
    files = [file for file in corpus.SEEDS.rglob("*.xz")] + [
        file for file in corpus.REGRESSIONS.rglob("*.xz")
    ]
    assert sum(file.stat().st_size for file in files) < 300_000


def test_every_family_that_comes_with_the_program_has_a_target():
    plugins = {
        folder.name
        for folder in (Path(__file__).parents[2] / "plugins").glob("qformats_*")
        if folder.is_dir()
    }
    families = {name.removeprefix("qformats_").replace("_", "-") for name in plugins}
    assert len(families) > 10
    assert families - {"gguf"} <= {*FAMILIES}
