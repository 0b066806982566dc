"""What a text proves about a model: intervals over its windows, and how much more text would settle a question.

Tokens of one window are about one thing, and a format harms some things more than others, so tokens are not
independent: on the demo model, intervals that take them to be (at 95 %, over 255 to 2,000 tokens) hold the divergence
of the whole text only 30 to 70 % of the time. Means of windows are close to independent. Intervals of Student's t over
them hold it 90 to 95 % of the time, for six formats, from 4 windows on and whatever their length.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from qformats.comparing.report import BehaviourChange, TextUsed

__all__ = [
    "LEAST_TOKENS",
    "LEAST_WINDOWS",
    "LIMIT",
    "Closeness",
    "Evidence",
    "Interval",
    "closer",
    "evidence",
    "interval",
    "more_text",
    "shortage",
    "student",
    "windows_needed",
]

LIMIT = 0.06
"""Nats per token: a model stays close to the base if its predictions change by less, and lose less on the text."""
LEAST_TOKENS = 1000
"""Scored tokens of a verdict at least: a format may break one token in hundreds, and those must be among them."""
LEAST_WINDOWS = 4
"""Windows of a verdict at least: how much they differ is not known from fewer."""
_CONFIDENCE = 0.95
_PATIENCE = 1_000_000
"""Windows from which on a question is not worth asking: the value lies on the limit."""


@dataclass(frozen=True)
class Interval:
    """A mean over windows, and the bounds between which the mean of all such text lies with 95 % confidence."""

    mean: float
    low: float
    high: float


class Closeness(Enum):
    """Whether a model stays close to the base."""

    CLOSE = "close"
    APART = "apart"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Evidence:
    """What is known of a model's predictions.

    Attributes
    ----------
    kl : Interval
        Mean divergence from the base, nats per token.
    loss : Interval
        Mean of how much more the model loses on each token than the base does (the logarithm of the ratio of their
        perplexities), nats per token. Paired: both read the same tokens.
    closeness : Closeness
        ``CLOSE`` if both intervals lie below :data:`LIMIT`, ``APART`` if one lies above it.
    missing : int or None
        Windows that would probably decide it, beyond those that were scored; 0 if it is decided, ``None`` if no
        reasonable number would.
    """

    kl: Interval
    loss: Interval
    closeness: Closeness
    missing: int | None


def evidence(change: BehaviourChange) -> Evidence:
    """What the windows of a text tell about a model; :func:`shortage` says if there are enough of them."""
    kl, loss = ([getattr(w, name) for w in change.windows] for name in ("kl", "log_ratio"))
    found = [interval(values) for values in (kl, loss)]
    if any(each.low >= LIMIT for each in found):
        closeness = Closeness.APART
    elif all(each.high < LIMIT for each in found):
        closeness = Closeness.CLOSE
    else:
        closeness = Closeness.UNDECIDED
    missing: int | None = 0
    if closeness is Closeness.UNDECIDED:
        needed = [windows_needed(values, LIMIT) for values in (kl, loss)]
        missing = None if None in needed else max(n or 0 for n in needed) - len(kl)
    return Evidence(found[0], found[1], closeness, missing)


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of a mean, from one value for each window; without bounds for fewer than two.

    Examples
    --------
    >>> from qformats.comparing.evidence import interval
    >>> found = interval([1.0, 2.0, 3.0, 4.0])
    >>> found.mean, round(found.low, 2), round(found.high, 2)
    (2.5, 0.45, 4.55)
    """
    count = len(values)
    mean = sum(values) / count if count else math.nan
    if math.isinf(mean):
        return Interval(mean, mean, mean)
    if count < 2 or math.isnan(mean):
        return Interval(mean, -math.inf, math.inf)
    half = student(count - 1) * statistics.stdev(values, mean) / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def windows_needed(values: Sequence[float], limit: float) -> int | None:
    """Windows after which the interval of their mean would leave a limit out, if mean and spread stay the same."""
    distance = abs(interval(values).mean - limit)
    spread = statistics.stdev(values) if len(values) > 1 else math.inf
    if not distance or not math.isfinite(spread / distance):
        return None
    count = len(values)
    while student(count - 1) * spread / math.sqrt(count) >= distance:
        if count > _PATIENCE:
            return None
        count += max(1, count // 100)
    return count


def closer(change: BehaviourChange, other: BehaviourChange) -> bool:
    """Whether a model is certainly closer to the base than another one that read the same windows."""
    if len(change.windows) != len(other.windows):
        return False
    more = interval([b.kl - a.kl for a, b in zip(change.windows, other.windows, strict=True)])
    return more.low > 0


def shortage(text: TextUsed) -> str:
    """What a verdict misses, in sentences: nothing if the text is long enough for one."""
    per_window = text.window_length - 1 - text.window_length // 2
    if text.scored >= LEAST_TOKENS and text.windows >= LEAST_WINDOWS:
        return ""
    wanted = max(LEAST_WINDOWS, math.ceil(LEAST_TOKENS / per_window))
    tokens = "token was" if text.scored == 1 else "tokens were"
    windows = "1 window" if text.windows == 1 else f"{text.windows:,} windows"
    return (
        f"Too few tokens for a verdict: {text.scored:,} {tokens} scored, in {windows}; it takes {LEAST_TOKENS:,} in "
        f"{LEAST_WINDOWS} windows. {more_text(wanted - text.windows, text)}"
    )


def more_text(windows: int, text: TextUsed) -> str:
    """Sentence on how much more text is needed."""
    per_window = text.window_length - 1 - text.window_length // 2
    what = "1 more window" if windows == 1 else f"{windows:,} more windows"
    return (
        f"About {windows * per_window:,} more tokens are needed: {what} of {text.window_length} (a longer text, or a "
        "higher --windows)."
    )


def student(freedom: int) -> float:
    """Bound that 97.5 % of Student's t distribution lie below.

    From the expansion of Abramowitz and Stegun, 26.7.5; from 3 degrees of freedom on it is right to one in a thousand.
    """
    if freedom < 3:
        return {1: 12.7062, 2: 4.3027}[freedom]
    z = statistics.NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
