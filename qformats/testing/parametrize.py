"""Checks as tests of pytest; the only module of the kit that imports it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from qformats.errors import BackendUnavailableError
from qformats.interfaces import Family
from qformats.testing.failure import NotApplicable
from qformats.testing.listing import Check
from qformats.testing.running import chosen_checks
from qformats.testing.subjects import Subject

try:
    import pytest
except ModuleNotFoundError as error:
    raise BackendUnavailableError(
        "pytest", "the package is not installed", "Install it: pip install pytest"
    ) from error

__all__ = ["parametrize_with_checks"]


def parametrize_with_checks(
    what: str | Subject | Family | Iterable[str | Subject | Family],
    *,
    only: str | Iterable[str] | None = None,
    model: str | Path | None = None,
) -> pytest.MarkDecorator:
    """Let a test of one argument, ``check``, run once for every check; it has to call it.

    A check that does not apply skips its test, with the reason.

    Parameters
    ----------
    what : str, Packer, Family, Quantizer, Loader, or iterable of these
        Names or objects; see :func:`qformats.testing.run_checks`.
    only : str or iterable of str, optional
        Parts of the names of the checks to run.
    model : str or path, optional
        Model that checks export, instead of a tiny llama.

    Returns
    -------
    pytest.MarkDecorator
        Ids are such as ``check_codes_survive[toy:int6]``.

    Examples
    --------
    >>> from qformats.testing import parametrize_with_checks
    >>> @parametrize_with_checks("dense:f32", only="check_descriptor")
    ... def test_conformance(check):
    ...     check()
    >>> test_conformance.pytestmark[0].args[1][0].id
    'check_descriptor[dense:f32]'
    """
    pairs = chosen_checks(what, only)
    cases = [
        pytest.param(_test(check, subject, model), id=f"{check.name}[{subject.name}]")
        for check, subject in pairs
    ]
    return pytest.mark.parametrize("check", cases)


def _test(check: Check, subject: Subject, model: str | Path | None) -> Callable[[], None]:
    def run() -> None:
        __tracebackhide__ = True
        try:
            check(subject, model)
        except NotApplicable as reason:
            pytest.skip(str(reason))

    return run
