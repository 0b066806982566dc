"""How tokens are chosen: the options, and the choice itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qformats.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Choice", "Sampling", "choose", "usual"]

_LARGEST_SEED = 2**63 - 1
_FILTERED = -math.inf


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes
    ----------
    temperature : float
        0 always takes the likeliest token.
    top_p : float
        Only the likeliest tokens, up to this probability.
    top_k : int
        Only so many of the likeliest tokens; 0 for all.
    min_p : float
        Only tokens that have this share of the probability of the likeliest one.
    repetition_penalty : float
        Divides the scores of tokens that the text has already, the prompt included; 1 for none.
    frequency_penalty, presence_penalty : float
        Subtracted from the score of a token that was generated: once for each time, and once in all.
    bias : mapping of int to float
        Added to the scores of tokens.
    seed : int or None
        The same seed gives the same text again; ``None`` for another one each time.

    Raises
    ------
    ConfigError
        If a value is out of range.

    Examples
    --------
    >>> from qformats.chatting.sampling import Sampling
    >>> Sampling(temperature=0.7, top_p=0.9).greedy, Sampling().greedy
    (False, True)
    >>> Sampling(top_p=2)
    Traceback (most recent call last):
        ...
    qformats.errors.ConfigError: top_p: found 2; expected a number above 0, up to 1.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        _require("temperature", self.temperature, 0 <= self.temperature <= 100, "a number from 0 to 100")
        _require("top_p", self.top_p, 0 < self.top_p <= 1, "a number above 0, up to 1")
        _require("top_k", self.top_k, self.top_k >= 0, "a whole number of tokens, 0 for all")
        _require("min_p", self.min_p, 0 <= self.min_p <= 1, "a number from 0 to 1")
        repeated = 0 < self.repetition_penalty <= 100
        _require("repetition_penalty", self.repetition_penalty, repeated, "a number above 0, up to 100")
        for key in ("frequency_penalty", "presence_penalty"):
            _require(key, getattr(self, key), -2 <= getattr(self, key) <= 2, "a number from -2 to 2")
        for value in self.bias.values():
            _require("logit_bias", value, -100 <= value <= 100, "numbers from -100 to 100")
        if self.seed is not None:
            within = -_LARGEST_SEED <= self.seed <= _LARGEST_SEED
            _require("seed", self.seed, within, "a whole number of at most 63 bits")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def penalises(self) -> bool:
        """Whether scores depend on the text, or are shifted."""
        return bool(
            self.repetition_penalty != 1 or self.frequency_penalty or self.presence_penalty or self.bias
        )


def _require(key: str, value: float, within: bool, allowed: str) -> None:
    if not within:
        raise ConfigError(key, value, allowed)


def usual(settings: Any) -> dict[str, Any]:
    """What a model's generation_config.json says of the choice of tokens, as far as it is used here.

    Parameters
    ----------
    settings : transformers.GenerationConfig
        Of the model.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from qformats.chatting.sampling import usual
    >>> usual(SimpleNamespace(do_sample=True, temperature=0.6, top_p=0.95, top_k=None))
    {'temperature': 0.6, 'top_p': 0.95}
    >>> usual(SimpleNamespace(do_sample=False, temperature=0.6))
    {}
    """
    given = {"repetition_penalty": getattr(settings, "repetition_penalty", None)}
    if getattr(settings, "do_sample", None):
        temperature = getattr(settings, "temperature", None)
        given["temperature"] = 1.0 if temperature is None else temperature
        given |= {key: getattr(settings, key, None) for key in ("top_p", "top_k", "min_p")}
    return {key: value for key, value in given.items() if value is not None}


@dataclass(frozen=True)
class Choice:
    """A token that was chosen.

    Attributes
    ----------
    id : int
        The token.
    logprob : float or None
        Logarithm of its probability, as the model itself gives it, whatever the options of the choice; ``None`` if that
        was not asked for.
    top : tuple of (int, float)
        The likeliest tokens with theirs, the best first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(
    logits: Tensor,
    options: Sequence[Sampling],
    generators: Sequence[torch.Generator | None],
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    logprobs: Sequence[int | None],
) -> list[Choice | None]:
    """Choose the next token of each of several texts.

    What is chosen for a text depends on nothing but its own scores, options and generator.

    Parameters
    ----------
    logits : Tensor
        ``(texts, vocabulary)``.
    options : sequence of Sampling
        Of each text.
    generators : sequence of torch.Generator or None
        Random numbers of each text, on the device of `logits`.
    texts : sequence of (sequence of int, sequence of int)
        Ids of each prompt, and those generated after it.
    logprobs : sequence of int or None
        How many likeliest tokens to tell of each text; ``None`` for no probabilities at all.

    Returns
    -------
    list of Choice or None
        ``None`` where the model gives no numbers to choose by.
    """
    import torch

    logits = logits.float()
    # An infinity below is a token that can never come; one above, or NaN, is a broken model.
    sound = (~(logits.isnan() | (logits == math.inf))).all(-1) & (logits > _FILTERED).any(-1)
    told = _probabilities(logits, logprobs)
    scores = logits
    if any(each.penalises for each in options):
        scores = logits.clone()
        for row, (each, (prompt, new)) in enumerate(zip(options, texts, strict=True)):
            if each.penalises:
                scores[row] = _penalised(scores[row], each, prompt, new)
    ids = scores.argmax(-1)
    drawn = [row for row, each in enumerate(options) if not each.greedy]
    if drawn:
        ids = ids.clone()
    for rows in _alike(drawn, options):
        filtered = _filtered(scores[rows], options[rows[0]])
        chances = torch.softmax(filtered, -1)
        for row, chance in zip(rows, chances, strict=True):
            if bool(sound[row]):
                ids[row] = torch.multinomial(chance, 1, generator=generators[row])[0]
    chosen, sounds = ids.tolist(), sound.tolist()
    return [
        _choice(row, chosen[row], told, logprobs[row]) if sounds[row] else None for row in range(len(chosen))
    ]


def _alike(rows: Sequence[int], options: Sequence[Sampling]) -> list[list[int]]:
    """Rows whose scores are filtered in the same way, together."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for row in rows:
        each = options[row]
        groups.setdefault((each.temperature, each.top_k, each.top_p, each.min_p), []).append(row)
    return list(groups.values())


def _penalised(scores: Tensor, options: Sampling, prompt: Sequence[int], new: Sequence[int]) -> Tensor:
    """Scores ``(vocabulary,)`` after penalties for what the text has already."""
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    if options.repetition_penalty != 1:
        before = torch.tensor([[*prompt, *new]], device=scores.device)
        scores = RepetitionPenaltyLogitsProcessor(options.repetition_penalty)(before, scores[None])[0]
    if (options.frequency_penalty or options.presence_penalty) and new:
        ids, counts = torch.unique(torch.tensor(new, device=scores.device), return_counts=True)
        scores = scores.clone()
        scores[ids] -= options.frequency_penalty * counts + options.presence_penalty
    if options.bias:
        known = {id: value for id, value in options.bias.items() if 0 <= id < scores.shape[-1]}
        scores = scores.clone()
        scores[list(known)] += torch.tensor(list(known.values()), device=scores.device)
    return scores


def _filtered(scores: Tensor, options: Sampling) -> Tensor:
    """Scores ``(texts, vocabulary)`` by temperature, without tokens that are out; in the order of Transformers."""
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    unused: Any = None
    if options.temperature != 1:
        scores = TemperatureLogitsWarper(float(options.temperature))(unused, scores)
    if options.top_k:
        scores = TopKLogitsWarper(options.top_k)(unused, scores)
    if options.top_p < 1:
        scores = TopPLogitsWarper(options.top_p)(unused, scores)
    if options.min_p:
        scores = MinPLogitsWarper(options.min_p)(unused, scores)
    return scores


def _probabilities(logits: Tensor, logprobs: Sequence[int | None]) -> dict[int, tuple[Tensor, Any, Any]]:
    """For rows that want them: all log-probabilities, and the likeliest with their ids."""
    import torch

    rows = [row for row, count in enumerate(logprobs) if count is not None]
    if not rows:
        return {}
    most = min(max(logprobs[row] or 0 for row in rows), logits.shape[-1])
    every = torch.log_softmax(logits[rows], -1)
    values, ids = every.topk(most, -1)
    found = zip(rows, every, values.tolist(), ids.tolist(), strict=True)
    return {row: (all_of_it, best, which) for row, all_of_it, best, which in found}


def _choice(row: int, id: int, told: Mapping[int, tuple[Tensor, Any, Any]], count: int | None) -> Choice:
    if count is None:
        return Choice(id)
    every, values, ids = told[row]
    return Choice(id, float(every[id]), tuple(zip(ids, values, strict=True))[:count])
