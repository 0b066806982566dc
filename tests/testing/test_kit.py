"""The kit itself: its list, its ways to run, and what an import of it costs."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from testing import broken

import qformats
import qformats.testing as kit
from qformats.errors import ConfigError, QFormatsError, UnknownFormatError
from qformats.registry import registry
from qformats.testing import CheckFailure, NotApplicable, checks, parametrize_with_checks, run_checks
from qformats.testing.subjects import subjects

MODULES = sorted(module.name for module in pkgutil.walk_packages(kit.__path__, "qformats.testing."))


def test_every_check_is_in_the_list():
    found = {
        name: function
        for module in map(importlib.import_module, MODULES)
        for name, function in vars(module).items()
        if name.startswith("check_")
        and inspect.isfunction(function)
        and function.__module__ == module.__name__
    }
    assert found == {check.name: check.function for check in checks()}
    for name, function in found.items():
        assert getattr(kit, name) is function
    assert {name for name in kit.__all__ if name.startswith("check_")} == found.keys()


def test_every_check_says_what_it_checks_in_a_sentence():
    for check in checks():
        assert check.summary.endswith("."), check.name
        assert check.takes_model == ("`model`" in inspect.getdoc(check.function)), check.name


def test_public_names_exist():
    for name in kit.__all__:
        assert inspect.getdoc(getattr(kit, name)), name
    with pytest.raises(AttributeError, match="no attribute 'check_nothing'"):
        _ = kit.check_nothing


def test_importing_the_kit_is_light():
    program = (
        "import sys\nimport qformats.testing\nqformats.testing.checks()\nqformats.testing.check_rows\n"
        "heavy = {'torch', 'pytest', 'numpy', 'numba', 'transformers', 'triton', 'safetensors'} & {*sys.modules}\n"
        "assert not heavy, heavy\n"
        "qformats.testing.parametrize_with_checks\nassert 'pytest' in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_results_tell_everything():
    results = run_checks("dense:f16")
    assert [result.check for result in results] == [check.name for check in checks("format")]
    for result in results:
        assert (result.subject, result.kind) == ("dense:f16", "format")
        assert result.outcome in ("passed", "skipped")
        assert bool(result.reason) == (result.outcome == "skipped")
        assert result.seconds >= 0


def test_failures_do_not_end_a_run():
    results = run_checks(broken.NarrowKernel(), only=["check_descriptor", "device"])
    assert [result.outcome for result in results] == ["failed", "failed"]
    assert results[0].reason.startswith(
        "check_descriptor: kit:narrowkernel of testing: found kernel bits 3; expected"
    )


def test_a_failure_is_an_assertion_and_one_of_our_errors():
    with pytest.raises(CheckFailure) as caught:
        kit.check_descriptor(broken.NarrowKernel())
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, QFormatsError)
    assert (caught.value.found, caught.value.expected) == ("kernel bits 3", "enough for 16 levels")


def test_what_a_plugin_raises_is_the_cause_and_told_in_one_line():
    class Raising(broken.Right):
        def pack(self, quantized):
            raise KeyError("two\nlines")

    with pytest.raises(
        CheckFailure, match=r"found .*Raising\.pack raised KeyError: .*; expected no error\.$"
    ) as caught:
        kit.check_codes_survive(Raising())
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_a_check_that_does_not_apply_says_why():
    with pytest.raises(NotApplicable, match="the format is only read"):
        kit.check_hard_weights(qformats.packer("gguf:iq3_s"))
    with pytest.raises(
        NotApplicable, match="folders and exports ask the registry, and no plugin registers it"
    ):
        kit.check_checkpoint(broken.Right())


def test_another_plugin_under_the_same_name_is_not_exported(install):
    class Kit(broken.Kit):
        packers = (broken.Trusting(),)

    install(Kit)
    other = broken.Right()
    other.spec = Kit.packers[0].spec
    with pytest.raises(NotApplicable, match="ask the registry, and another one has its name"):
        kit.check_checkpoint(other)


@pytest.mark.parametrize(
    ("what", "names"),
    [
        ("dense", ["dense:f32", "dense:f16", "dense:bf16"]),
        ("gptq:4bit-96g", ["gptq:4bit-96g"]),
        ("rtn", ["rtn"]),
        ("huggingface", ["huggingface"]),
        (["rtn", "dense:f32"], ["rtn", "dense:f32"]),
        (broken.Right(), ["kit:right"]),
        (broken.Kit(), ["kit:right"]),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_names_and_objects(what, names):
    assert [subject.name for subject in subjects(what)] == names


def test_a_name_may_stand_for_several_things():
    both = subjects("gguf")
    assert [subject.name for subject in both] == [*registry().format_names("gguf"), "gguf"]
    assert subjects("gptq")[-1] is not None
    assert type(subjects("gptq")[-1]).__name__ == "GPTQ"


def test_unknown_names_are_refused():
    with pytest.raises(
        UnknownFormatError, match=r"no format, quantizer or container 'ggufs'\. Did you mean 'gguf'"
    ):
        run_checks("ggufs")
    with pytest.raises(UnknownFormatError, match="no format 'dense:f33'"):
        run_checks("dense:f33")
    with pytest.raises(ConfigError, match=r"what to check: found 'int'; expected a name"):
        run_checks(5)
    with pytest.raises(
        ConfigError, match=r"name of a check: found 'nothing'; expected a part of one of check_desc"
    ):
        run_checks("dense:f32", only="nothing")
    with pytest.raises(
        ConfigError, match="kind of checks: found 'loader'; expected format, quantizer, container"
    ):
        checks("loader")


def test_ids_are_readable_and_skips_have_reasons():
    mark = parametrize_with_checks([broken.Right(), "rtn"])
    assert mark.args[0] == "check"
    ids = [case.id for case in mark.args[1]]
    assert ids[0] == "check_descriptor[kit:right]"
    assert ids[-1] == "check_options[rtn]"
    assert len(ids) == len({*ids}) == len(checks("format")) + len(checks("quantizer"))

    class Bare(broken.Rounding):
        options = ()

    without = parametrize_with_checks(Bare(), only="check_options")
    with pytest.raises(pytest.skip.Exception, match="the quantizer has no options"):
        without.args[1][0].values[0]()
    with pytest.raises(CheckFailure):
        parametrize_with_checks(broken.NarrowKernel(), only="check_descriptor").args[1][0].values[0]()


TEST_FILE = """
from qformats.testing import parametrize_with_checks

@parametrize_with_checks("dense:f32", only=["check_descriptor", "floor"])
def test_conformance(check):
    check()
"""


def test_a_test_file_with_the_decorator(tmp_path):
    (tmp_path / "test_it.py").write_text(TEST_FILE)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-v",
            "-rs",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            ".",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_it.py::test_conformance[check_descriptor[dense:f32]] PASSED" in done.stdout
    assert "the descriptor declares no sqnr_floor_db" in done.stdout.partition("short test summary")[2]


def test_the_page_lists_every_check_with_what_it_says():
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
    listed = dict(re.findall(r"^\| `(check_\w+)` \| (.+) \|$", page, re.MULTILINE))
    assert listed == {check.name: check.summary.replace("``", "`") for check in checks()}
    assert list(listed) == [check.name for check in checks()]
