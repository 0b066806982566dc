"""Each check catches a plugin that is wrong in what it checks, and says so; right plugins pass."""

import re

import pytest
from testing import broken

from qformats import Family, Loader, Packer
from qformats.testing import CheckFailure, checks, run_checks

CASES = [(name, case) for name, cases in broken.BROKEN.items() for case in cases]
CHECKS = {check.name: check for check in checks()}


def _registered(install, subject, family=None):
    """The subject, also found by its name."""
    if isinstance(subject, Packer):
        own = family or type("Own", (Family,), {"name": "kit", "packers": (subject,)})
        return install(own).packer(subject.name)
    if isinstance(subject, Loader):
        return install(type(subject)).loader(subject.name)
    return install(type(subject)).quantizer(subject.name)


def test_every_check_has_a_broken_counterpart():
    assert broken.BROKEN.keys() == CHECKS.keys()


@pytest.mark.parametrize(
    ("name", "case"), CASES, ids=[f"{name}-{case.make.__name__}" for name, case in CASES]
)
def test_a_broken_plugin_is_caught(name, case, install):
    subject = _registered(install, case.make(), case.family)
    with pytest.raises(CheckFailure) as caught:
        CHECKS[name](subject)
    error, message = caught.value, str(caught.value)
    assert (error.check, error.subject, error.plugin) == (name, subject.name, "testing")
    assert message.startswith(f"{name}: {subject.name} of testing: found ")
    assert "; expected " in message
    assert "\n" not in message
    assert re.search(case.says, message), message


@pytest.mark.parametrize(
    "make", [broken.Right, broken.Rounding, broken.Folder], ids=lambda make: make.__name__
)
def test_the_right_plugin_passes(make, install):
    results = run_checks(_registered(install, make()))
    assert {result.outcome for result in results} <= {"passed", "skipped"}, [
        result.reason for result in results if result.outcome == "failed"
    ]
    assert not [result for result in results if result.outcome == "skipped"]
