"""All checks of a format, a quantizer or a container, one after the other."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qformats.errors import ConfigError
from qformats.interfaces import Family
from qformats.testing.failure import CheckFailure, NotApplicable
from qformats.testing.listing import Check, checks
from qformats.testing.subjects import Subject, kind_of, subjects

__all__ = ["CheckResult", "chosen_checks", "each_result", "run_checks"]


@dataclass(frozen=True)
class CheckResult:
    """What became of one check.

    Attributes
    ----------
    check : str
        Name of the check.
    subject : str
        Name of the format, quantizer or container.
    kind : str
        ``"format"``, ``"quantizer"`` or ``"container"``.
    outcome : str
        ``"passed"``, ``"failed"`` or ``"skipped"``.
    reason : str
        Why it failed or was skipped.
    seconds : float
        How long it took.

    Examples
    --------
    >>> from qformats.testing import run_checks
    >>> result = run_checks("dense:f32", only="check_descriptor")[0]
    >>> result.check, result.subject, result.outcome
    ('check_descriptor', 'dense:f32', 'passed')
    """

    check: str
    subject: str
    kind: str
    outcome: str
    reason: str
    seconds: float


def run_checks(
    what: str | Subject | Family | Iterable[str | Subject | Family],
    *,
    only: str | Iterable[str] | None = None,
    model: str | Path | None = None,
) -> list[CheckResult]:
    """Run every check that there is for something; nothing is raised by those that fail.

    Parameters
    ----------
    what : str, Packer, Family, Quantizer, Loader, or iterable of these
        See :func:`qformats.testing.subjects`.
    only : str or iterable of str, optional
        Parts of the names of the checks to run.
    model : str or path, optional
        Model that checks export, instead of a tiny llama: for containers that hold other models only.

    Raises
    ------
    UnknownFormatError
        If nothing installed answers to a name.
    ConfigError
        If no check has such a name.

    Examples
    --------
    >>> from qformats.testing import run_checks
    >>> [result.outcome for result in run_checks("dense:f32", only=["shapes", "floor"])]
    ['passed', 'skipped', 'passed']
    """
    return list(each_result(what, only=only, model=model))


def each_result(
    what: str | Subject | Family | Iterable[str | Subject | Family],
    *,
    only: str | Iterable[str] | None = None,
    model: str | Path | None = None,
) -> Iterator[CheckResult]:
    """Do what :func:`run_checks` does, and give each result as soon as it is there."""
    return (_result(check, subject, model) for check, subject in chosen_checks(what, only))


def chosen_checks(
    what: str | Subject | Family | Iterable[str | Subject | Family], only: str | Iterable[str] | None = None
) -> list[tuple[Check, Subject]]:
    """Every check with its subject; see :func:`run_checks`."""
    parts = [only] if isinstance(only, str) else list(only or [""])
    every = [(check, subject) for subject in subjects(what) for check in checks(kind_of(subject))]
    found = [pair for pair in every if any(part in pair[0].name for part in parts)]
    if every and not found:
        names = dict.fromkeys(check.name for check, _ in every)
        raise ConfigError("name of a check", ", ".join(parts), "a part of one of " + ", ".join(names))
    return found


def _result(check: Check, subject: Subject, model: str | Path | None) -> CheckResult:
    outcome, reason, began = "passed", "", time.perf_counter()
    try:
        check(subject, model)
    except NotApplicable as error:
        outcome, reason = "skipped", str(error)
    except CheckFailure as error:
        outcome, reason = "failed", str(error)
    seconds = time.perf_counter() - began
    return CheckResult(check.name, subject.name, check.kind, outcome, reason, seconds)
