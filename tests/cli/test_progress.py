"""What a terminal shows while a command works: every step by name, from the first moment on, and only if wanted."""

from __future__ import annotations

import re

import pytest
from cli.command import call, run_in_terminal, without_escapes

from qformats.cli.console import Bar, Talk, talk


def _in_order(text, *steps):
    place = 0
    for step in steps:
        found = text.find(step, place)
        assert found >= 0, (step, text)
        place = found


def test_every_step_of_an_export_has_a_name(tmp_path):
    code, text = run_in_terminal("export", "demo", "-f", "nf4", "-o", tmp_path / "x")
    assert code == 0
    steps = (
        "reading the headers of demo",
        "planning",
        "loading torch",
        "writing",
        "checking what was written",
    )
    _in_order(without_escapes(text), *steps, f"{tmp_path / 'x'}"[:20])
    # Nothing of it stays on the screen.
    assert re.search(r"\x1b\[2K", text)


def test_every_step_of_generation_has_a_name():
    code, text = run_in_terminal("generate", "demo", "Once", "-n", "2", "--device", "cpu")
    assert code == 0
    steps = (
        "reading the headers",
        "loading torch",
        "loading Transformers",
        "loading",
        "reading 2 tokens",
        "loaded in",
    )
    _in_order(without_escapes(text), *steps)


def test_every_step_of_a_comparison_has_a_name(tmp_path):
    code, text = run_in_terminal("compare", "demo", "--try", "q8", "--text", "demo", "--windows", "1")
    assert code == 0
    steps = (
        "reading the headers of demo",
        "loading torch",
        "loading Transformers, and reading the text",
        "comparing weights",
        "loading",
        "running",
    )
    _in_order(without_escapes(text), *steps)


def test_quiet(capsys, tmp_path):
    target = tmp_path / "x.gguf"
    code, text = run_in_terminal("export", "demo", "-f", "q8", "-o", target, "--quiet")
    assert (code, text) == (0, f"{target}\n")
    for args in (("-q", "export", "demo", "-f", "gguf"), ("export", "demo", "-f", "gguf", "-q")):
        result = call(capsys, *args, "-o", target, "--force")
        assert (result.code, result.out, result.err) == (0, f"{target}\n", "")
    # Errors are not silenced.
    result = call(capsys, "export", "demo", "-f", "gguf", "-o", target, "-q")
    assert result.code == 4
    assert "exists already" in result.err
    result = call(capsys, "generate", "demo", "Once", "-n", "2", "--device", "cpu", "-q")
    assert (result.code, result.err) == (0, "")
    assert result.out


def test_verbose(capsys, tmp_path):
    result = call(capsys, "export", "demo", "-v", "-f", "gguf", "-o", tmp_path / "x.gguf")
    assert result.code == 0
    lines = result.err.splitlines()
    assert all(re.fullmatch(r"qformats: +\d+\.\d s: .+", line) for line in lines)
    _in_order(result.err, "planning", "loading torch", "writing (10.0 MB)", "checking what was written")
    # It is this run's choice, not the process's.
    assert call(capsys, "export", "demo", "-f", "gguf", "-o", tmp_path / "y.gguf").err == ""


@pytest.mark.parametrize(
    "command", ["export", "generate", "compare", "inspect", "formats", "check", "reshard"]
)
def test_all_commands_have_the_shared_options(capsys, command):
    shown = call(capsys, command, "--help")
    assert shown.code == 0
    for option in ("--quiet", "--verbose", "--debug"):
        assert option in shown.out


def test_names_in_steps_do_not_steer_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(talk, "verbose", True)
    with Bar() as bar:
        bar.start("reading [bold]\x1b[31mred\nname")
    assert capsys.readouterr().err == "qformats:   0.0 s: reading [bold]\\x1b[31mred\\nname\n"
    assert Talk() == Talk(quiet=False, verbose=False, debugging=False)


def test_the_hub_has_the_screen_to_itself():
    """Its client shows bars of its own; ours would be drawn over them."""
    code, text = run_in_terminal("inspect", "some/model", HF_HUB_OFFLINE="1")
    assert code == 3
    shown = without_escapes(text).replace("\r", "")
    assert shown.lstrip().startswith("qformats: asking the hub for some/model\n")
    assert "reading the headers" not in shown
    assert "not in the local hub cache" in shown


def test_a_wait_for_kernels_is_named(monkeypatch):
    """numba compiles for the first arguments of a type, and not for the next ones."""
    import io

    import numba

    import qformats.kernels.cpu

    assert qformats.kernels.cpu
    monkeypatch.setattr("sys.stderr", terminal := io.StringIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    double = numba.njit(lambda value: 2 * value)
    with Bar() as bar:
        bar.start("writing")
        shown = bar._progress.tasks[0]
        described = []
        update = bar._progress.update
        monkeypatch.setattr(
            bar._progress, "update", lambda *a, **k: (update(*a, **k), described.append(shown.description))
        )
        assert double(2) == 4
        assert described == ["writing: compiling kernels, only this once", "writing"]
        double(3)
        assert len(described) == 2
