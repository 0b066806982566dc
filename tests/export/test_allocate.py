"""Spending bytes: never more than the budget, and never far from the best."""

import itertools
import random

import pytest

from qformats.exporting.allocate import Choice, allocate


def _best(choices, budget):
    sums = (
        (sum(each.nbytes for each in some), sum(each.loss for each in some))
        for some in itertools.product(*choices.values())
    )
    return min(loss for nbytes, loss in sums if nbytes <= budget)


def _random(generator, tensors):
    """Losses that fall by about four for every bit, as those of formats do."""
    found = {}
    for tensor in range(tensors):
        columns, cost = generator.randint(1, 40), 10 ** generator.uniform(-3, 0)
        bits = sorted(generator.sample([2.6, 3.4, 4.25, 4.5, 5.5, 6.6, 8.5], 5))
        found[f"t{tensor}"] = [
            Choice(f"f{b}", int(32 * columns * b), cost * columns * 4**-b * generator.uniform(0.7, 1.4))
            for b in bits
        ]
    return found


@pytest.mark.parametrize("seed", range(40))
def test_is_near_the_best_and_within_the_budget(seed):
    generator = random.Random(seed)
    choices = _random(generator, 5)
    least = sum(min(c.nbytes for c in each) for each in choices.values())
    most = sum(max(c.nbytes for c in each) for each in choices.values())
    budget = generator.randint(least, most)
    found = allocate(choices, budget)
    assert list(found) == list(choices)
    assert sum(choice.nbytes for choice in found.values()) <= budget
    # Five tensors of very different sizes are the worst case: with more, single steps are smaller.
    assert sum(choice.loss for choice in found.values()) <= 2 * _best(choices, budget)


def test_everything_at_once_if_there_is_room():
    choices = _random(random.Random(1), 6)
    found = allocate(choices, 10**9)
    assert all(found[name].loss == min(c.loss for c in each) for name, each in choices.items())


def test_of_equal_sizes_the_better_one_is_taken():
    same = [Choice("a", 10, 2.0), Choice("b", 10, 1.0), Choice("c", 9, 1.0)]
    assert allocate({"x": same}, 10)["x"].format == "c"
    assert allocate({"x": same[:2]}, 10)["x"].format == "b"


def test_larger_and_worse_is_never_taken():
    choices = {"x": [Choice("small", 10, 1.0), Choice("worse", 12, 1.5), Choice("large", 20, 0.5)]}
    assert allocate(choices, 15)["x"].format == "small"
    assert allocate(choices, 20)["x"].format == "large"
