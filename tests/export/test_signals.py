"""Ctrl-C between the steps of a pool of threads, and never inside one: an interrupted pool may hang for ever."""

import signal
import threading

import pytest

import qformats
from qformats.exporting import Recipe, make_plan
from qformats.exporting.run import execute
from qformats.work import pool
from qformats.work.signals import interruptible


def test_signals_wait_until_they_are_asked_for():
    handler = signal.getsignal(signal.SIGINT)
    steps = []

    def work() -> None:
        with interruptible() as deliver:
            deliver()
            signal.raise_signal(signal.SIGINT)
            steps.append("not interrupted")
            deliver()
            steps.append("too late")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["not interrupted"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_was_not_asked_for_comes_at_the_end():
    steps = []

    def work() -> None:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
            steps.append("all of it")
        steps.append("too late")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["all of it"]


def test_an_error_on_its_way_is_not_replaced():
    def work() -> None:
        with interruptible():
            signal.raise_signal(signal.SIGINT)
            raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        work()


def test_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as deliver:
            signal.raise_signal(signal.SIGINT)
            deliver()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_receive_none():
    done = []

    def work() -> None:
        with interruptible() as deliver:
            deliver()
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


@pytest.mark.parametrize("step", ["wait", "submit"])
def test_no_step_of_the_pool_is_cut_in_two(llama, tmp_path, monkeypatch, step):
    ended = []

    def interrupted(real):
        def call(*arguments, **more):
            signal.raise_signal(signal.SIGINT)
            result = real(*arguments, **more)
            ended.append(step)
            return result

        return call

    owner = pool if step == "wait" else pool.ThreadPoolExecutor
    monkeypatch.setattr(owner, step, interrupted(getattr(owner, step)))
    plan = make_plan(qformats.open(llama), tmp_path / "out.gguf", Recipe("gguf:q8_0"), {})
    with pytest.raises(KeyboardInterrupt):
        execute(plan)
    assert ended
    assert list(tmp_path.iterdir()) == []
