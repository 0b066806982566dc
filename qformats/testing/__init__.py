"""The conformance kit: what the framework relies on, as functions that check a format, a quantizer or a container.

>>> from qformats.testing import run_checks
>>> {result.outcome for result in run_checks("dense:f32")} == {"passed", "skipped"}
True

Every check is a plain function of a packer, a quantizer or a loader. It returns nothing, raises
:class:`CheckFailure` with what was found and what was expected, or :class:`NotApplicable` with the reason why it says
nothing here. The same list runs in pytest (:func:`parametrize_with_checks`), on the command line
(``qformats check NAME``) and by :func:`run_checks`.

Importing the package imports neither torch nor pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qformats.testing.failure import CheckFailure, NotApplicable
from qformats.testing.listing import KINDS, Check, checks
from qformats.testing.model import tiny_model
from qformats.testing.running import CheckResult, run_checks

if TYPE_CHECKING:
    from qformats.testing.parametrize import parametrize_with_checks

__all__ = [
    "KINDS",
    "Check",
    "CheckFailure",
    "CheckResult",
    "NotApplicable",
    "checks",
    "parametrize_with_checks",
    "run_checks",
    "tiny_model",
]

_CHECKS = {check.name: check.function for check in checks()}


def __getattr__(name: str) -> Any:
    if name in _CHECKS:
        return _CHECKS[name]
    if name == "parametrize_with_checks":
        # Late: only tests need pytest.
        from qformats.testing.parametrize import parametrize_with_checks

        return parametrize_with_checks
    message = f"module 'qformats.testing' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_CHECKS])
