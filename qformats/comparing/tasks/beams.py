"""Deterministic beam search for short answers, several questions of one length at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qformats.comparing.loaded import LoadedModel
from qformats.interfaces import BeamSearch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["search"]

_NEVER = -65504.0
"""Logit of what is not allowed: finite, so that a step with nothing else goes on."""
_CACHE = 1 << 30
"""Bytes of keys and values of all beams together, if it is more than one question."""
_LOGITS = 1 << 26
"""Logits that are computed at a time, 256 MB in float32."""


@dataclass
class _Question:
    """The beams of one question: what they have written, and the sums of their log-probabilities."""

    length: int
    running: list[list[int]] = field(default_factory=lambda: [[]])
    sums: list[float] = field(default_factory=lambda: [0.0])
    finished: list[tuple[float, list[int]]] = field(default_factory=list)
    done: bool = False

    def finish(self, total: float, beam: list[int], written: int, how: BeamSearch) -> None:
        """Put a beam among the finished ones, the best first; of equal ones, the last comes first."""
        scored = total / _penalty(self.length + written, how)
        place = next(
            (at for at, (other, _) in enumerate(self.finished) if scored >= other), len(self.finished)
        )
        self.finished.insert(place, (scored, beam))
        del self.finished[how.beams :]


def _penalty(length: int, how: BeamSearch) -> float:
    return float(((5.0 + length) / 6) ** how.length_penalty)


def search(
    runner: LoadedModel, questions: Sequence[Sequence[int]], how: BeamSearch, advance: Callable[[int], None]
) -> list[list[list[int]]]:
    """Answers to questions.

    Parameters
    ----------
    runner : LoadedModel
        The model, whose class can continue a text with a cache.
    questions : sequence of sequence of int
        Ids that the model reads.
    how : BeamSearch
        How to search.
    advance : callable
        Told how many questions have been answered.

    Returns
    -------
    list of list of list of int
        For each question its beams, the best first, without the token that ends them.
    """
    found: list[list[list[int]]] = [[] for _ in questions]
    for group in _groups(runner, questions, how):
        answers = _searched(runner, [questions[number] for number in group], how)
        for number, beams in zip(group, answers, strict=True):
            found[number] = beams
        advance(len(group))
    return found


def _groups(runner: LoadedModel, questions: Sequence[Sequence[int]], how: BeamSearch) -> Iterator[list[int]]:
    """Questions of one length, as many as memory allows: without padding, nothing depends on the group."""
    config = runner.model.config.get_text_config()
    per_token = 2 * config.num_hidden_layers * config.hidden_size * runner.model.dtype.itemsize
    lengths: dict[int, list[int]] = {}
    for number, question in enumerate(questions):
        lengths.setdefault(len(question), []).append(number)
    for length, members in lengths.items():
        kept = _CACHE // (how.beams * (length + how.tokens) * per_token)
        most = max(1, min(kept, _LOGITS // (how.beams * runner.vocabulary)))
        for start in range(0, len(members), most):
            yield members[start : start + most]


def _searched(
    runner: LoadedModel, questions: Sequence[Sequence[int]], how: BeamSearch
) -> list[list[list[int]]]:
    import torch

    length = len(questions[0])
    counted = -(-length // how.multiple) * how.multiple
    states = [_Question(counted) for _ in questions]
    asked = torch.tensor([list(question) for question in questions], device=runner.device)
    with torch.inference_mode():
        output = _step(runner.model, asked, length, None)
        for written in range(how.tokens):
            # (questions, running beams, V)
            logits = output.logits[:, -1].float().unflatten(0, (len(states), -1))
            parents = [
                _continued(state, rows, written, how) for state, rows in zip(states, logits, strict=True)
            ]
            if written + 1 == how.tokens or all(state.done for state in states):
                break
            cache, width = output.past_key_values, logits.shape[1]
            chosen = [question * width + parent for question, rows in enumerate(parents) for parent in rows]
            cache.reorder_cache(torch.tensor(chosen, device=runner.device))
            beams = torch.tensor([state.running for state in states], device=runner.device).flatten(0, 1)
            whole = torch.cat([asked.repeat_interleave(how.beams, 0), beams], 1)
            output = _step(runner.model, whole, 1, cache)
    for state in states:
        if not state.done:
            for total, beam in zip(state.sums, state.running, strict=True):
                state.finish(total, beam, len(beam), how)
    return [[beam for _, beam in state.finished] for state in states]


def _step(model: Any, ids: Tensor, count: int, cache: Any) -> Any:
    """Run the last `count` tokens of texts; the cache holds those before them."""
    import torch

    given = model.prepare_inputs_for_generation(
        ids,
        next_sequence_length=count,
        past_key_values=cache,
        attention_mask=torch.ones_like(ids),
        use_cache=True,
        logits_to_keep=1,
        is_first_iteration=cache is None,
    )
    return model(**given)


def _continued(state: _Question, logits: Tensor, written: int, how: BeamSearch) -> list[int]:
    """Continue the beams of a question by a token; of each new one, the number of the beam that it continues."""
    import torch

    vocabulary = logits.shape[1]
    logits[:, [token for token in how.forbidden if 0 <= token < vocabulary]] = _NEVER
    for row, beam in enumerate(state.running):
        for token in _not_next(beam, how):
            if token < vocabulary:
                logits[row, token] = _NEVER
    sums = torch.tensor(state.sums, device=logits.device)
    scores = (torch.log_softmax(logits, -1) + sums[:, None]).flatten()
    most = min((max(1, len(how.ends)) + 1) * how.beams, len(scores))
    best = scores.topk(most)
    parents: list[int] = []
    running: list[list[int]] = []
    totals: list[float] = []
    for total, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(place, vocabulary)
        beam = [*state.running[parent], token]
        if token in how.ends and not state.done:
            state.finish(total, beam[:-1], len(beam), how)
        elif len(running) < how.beams:
            parents.append(parent)
            running.append(beam)
            totals.append(total)
        else:
            break
    # A vocabulary smaller than the search leaves beams without a token; they never win.
    lacking = how.beams - len(running)
    parents += parents[:1] * lacking
    running += running[:1] * lacking
    totals += [float("-inf")] * lacking
    state.running, state.sums = running, totals
    full = len(state.finished) == how.beams
    if full and state.finished[-1][0] >= max(totals) / _penalty(state.length + written + 1, how):
        state.done = True
    return parents


def _not_next(beam: Sequence[int], how: BeamSearch) -> Iterator[int]:
    """Tokens that may not continue a beam: they would repeat a run, or complete a forbidden beginning."""
    for opening in how.openings:
        if len(opening) == len(beam) + 1 and tuple(beam) == opening[:-1]:
            yield opening[-1]
    before = how.ngram - 1
    if how.ngram and len(beam) > before:
        last = beam[len(beam) - before :]
        for start in range(len(beam) - before):
            if beam[start : start + before] == last:
                yield beam[start + before]
