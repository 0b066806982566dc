"""Nothing is missing from the documentation, and nothing in it has gone: commands, options, formats."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import typer
from cli.command import call
from docs.pages import DOCS, commands

from qformats.cli.app import app
from qformats.cli.declared import command
from qformats.cli.declared import commands as of_plugins
from qformats.cli.reporting import with_json_file
from qformats.cli.suggestions import WrongCommandLine
from qformats.registry import registry

ROOT = DOCS.parent
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
OWN = typer.main.get_command(app).commands
COMMANDS = {**OWN, **{name: command(point) for name, point in of_plugins().items()}}


def _generator():
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parsed(words: list[str]) -> None:
    """Parse a command line; every option and argument in it must exist."""
    if words == ["--version"]:
        return
    chosen = COMMANDS[words[0]]
    context = chosen.make_context(words[0], with_json_file(chosen.params, words[1:]))
    context.close()


@pytest.mark.parametrize(
    "page", [page for page in PAGES if commands(page)], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_in_pages_are_understood(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        try:
            _parsed(words)
        except (KeyError, typer._click.exceptions.ClickException, WrongCommandLine) as error:
            pytest.fail(f"qformats {' '.join(words)}: {error}")


def test_the_test_of_commands_can_fail():
    with pytest.raises(WrongCommandLine, match="--fromat"):
        _parsed(["export", "demo", "--format", "gguf:q4_0", "--fromat", "x"])


def test_every_command_has_a_section():
    told = re.findall(r"^## `qformats ?(.*)`$", (DOCS / "cli.md").read_text(), re.MULTILINE)
    assert sorted(told) == sorted(["", *COMMANDS])


def test_every_option_of_every_command_is_in_its_section():
    sections = re.split(r"^## `qformats ?(.*)`$", (DOCS / "cli.md").read_text(), flags=re.MULTILINE)
    text = dict(zip(sections[1::2], sections[2::2], strict=True))
    missing = [
        (name, option)
        for name, chosen in COMMANDS.items()
        for param in chosen.params
        if not getattr(param, "hidden", False)
        for option in param.opts
        if option.startswith("--") and option not in text[name]
    ]
    assert missing == []


def test_every_option_of_plugins_is_listed():
    page = (DOCS / "cli.md").read_text()
    quantizers = [registry().quantizer(name) for name in registry().quantizer_names()]
    for kind in (*registry().loaders(), *quantizers):
        for option in kind.options:
            assert f"| {kind.name} | `{option.name}` | {option.help} |" in page


def test_every_format_is_in_the_list_and_on_the_page_of_its_family():
    listed = (DOCS / "formats.md").read_text()
    for packer in registry().formats():
        assert f"`{packer.name}`" in listed
        assert f"| `{packer.name}` |" in (DOCS / "formats" / f"{packer.spec.family}.md").read_text()


def test_byte_maps_hold_every_element_once():
    """Of a block of 256 with whole bits for each code; the layout of q4_k is spelt out in ggml-common.h."""
    _generator()
    from pages import bytemap

    for name, bits in (("gguf:q4_k", 4), ("gguf:q6_k", 6), ("gguf:q3_k", 3), ("gguf:q5_0", 5)):
        held: dict[int, int] = {}
        for run in bytemap.runs(registry().packer(name)):
            for j in range(run.count):
                for element, places in zip(run.elements, run.bits, strict=True):
                    at = element + run.step * j
                    held[at] = held.get(at, 0) + len(places)
        size = 32 if name == "gguf:q5_0" else 256
        assert held == dict.fromkeys(range(size), bits), name
    first = bytemap.runs(registry().packer("gguf:q4_k"))[0]
    assert (first.first, first.count, first.elements, first.bits) == (
        16,
        32,
        (0, 32),
        ((0, 1, 2, 3), (4, 5, 6, 7)),
    )


def test_quickstart_runs_from_top_to_bottom(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    lines = commands(DOCS / "quickstart.md")
    assert len(lines) == 9
    for words in lines:
        done = call(capsys, *words)
        assert done.code == 0, (words, done.err)
    assert Path("report.html").stat().st_size > 10_000
    card = Path("demo-formats", "README.md").read_text()
    assert "Q4_K_M.gguf" in card
    assert Path("qformats-my-format", "pyproject.toml").is_file()
