"""Threads that wait for short work."""

import multiprocessing
import os
import threading

import pytest

from qformats.work.crew import share


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_element_once(threads):
    done = [0] * 23

    def work(start, stop):
        for place in range(start, stop):
            done[place] += 1

    share(work, 23, threads)
    assert done == [1] * 23


def test_pieces_are_done_at_the_same_time():
    both = threading.Barrier(2, timeout=30)
    share(lambda start, stop: both.wait(), 2, 2)


@pytest.mark.parametrize("place", [0, 1])
def test_errors_reach_the_caller_and_the_threads_go_on(place):
    def work(start, stop):
        if start <= place < stop:
            raise ValueError("piece")

    for _ in range(3):
        with pytest.raises(ValueError, match="piece"):
            share(work, 2, 2)
    found = []
    share(lambda start, stop: found.append(start), 2, 2)
    assert sorted(found) == [0, 1]


def test_many_callers():
    totals = [[0] * 8 for _ in range(8)]

    def caller(number):
        for _ in range(50):
            share(lambda start, stop: totals[number].__setitem__(start, totals[number][start] + 1), 8, 3)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    assert all(total == [50, 0, 50, 0, 0, 50, 0, 0] for total in totals)


def _child(results):
    found = []
    share(lambda start, stop: found.append(start), 4, 2)
    results.put((os.getpid(), sorted(found)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own():
    share(lambda start, stop: None, 4, 2)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_child, args=(results,))
    child.start()
    assert results.get(timeout=60)[1] == [0, 2]
    child.join(timeout=60)
    assert child.exitcode == 0
