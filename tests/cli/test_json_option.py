"""``--json`` is a flag or has a file, in every command alike, and takes no model for its file."""

import json
from typing import Annotated

import pytest
import typer
from cli.command import call

from qformats.cli.app import app
from qformats.cli.reporting import with_json_file


def params(function):
    """Parameters of a command of our own."""
    made = typer.Typer(add_completion=False)
    made.command()(function)
    return typer.main.get_command(made).params


Text = Annotated[str | None, typer.Option("--json")]


def one(
    model: str,
    tensors: Annotated[bool, typer.Option("--tensors")] = False,
    option: Annotated[list[str] | None, typer.Option("--option", "-O")] = None,
    json: Text = None,
) -> None: ...


def many(
    base: str,
    models: Annotated[list[str] | None, typer.Argument()] = None,
    try_: Annotated[list[str] | None, typer.Option("--try")] = None,
    json: Text = None,
) -> None: ...


def none(json: Text = None) -> None: ...


def silent(model: str) -> None: ...


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        (one, "demo --json", "demo --json=-"),
        (one, "--json demo", "--json=- demo"),
        (one, "--json config.json", "--json=- config.json"),
        (one, "demo --json facts.json", "demo --json=facts.json"),
        (one, "demo --json facts", "demo --json=facts"),
        (one, "--json facts.json demo", "--json=facts.json demo"),
        (one, "--json facts demo", "--json=facts demo"),
        (one, "demo --json -", "demo --json=-"),
        (one, "--json --tensors demo", "--json=- --tensors demo"),
        (one, "-O arch=llama --json demo", "-O arch=llama --json=- demo"),
        (one, "-Oarch=llama --json demo", "-Oarch=llama --json=- demo"),
        (one, "--option arch=llama --json x demo", "--option arch=llama --json=x demo"),
        (one, "demo --json=facts", "demo --json=facts"),
        (one, "--json -- demo", "--json=- -- demo"),
        (one, "demo -- --json", "demo -- --json"),
        (many, "a --json b", "a --json=- b"),
        (many, "a --json b.json", "a --json=b.json"),
        (many, "a --json B.JSON c", "a --json=B.JSON c"),
        (many, "--json a", "--json=- a"),
        (many, "--json a b", "--json=- a b"),
        (many, "a --try q --json", "a --try q --json=-"),
        (many, "a --try --json", "a --try --json"),
        (none, "--json", "--json=-"),
        (none, "--json x", "--json=x"),
    ],
)
def test_whose_the_next_word_is(command, args, expected):
    assert with_json_file(params(command), args.split()) == expected.split()


def test_commands_without_the_option_are_left_alone():
    assert with_json_file(params(silent), ["--json", "x"]) == ["--json", "x"]


COMMANDS = {
    "bench": ("bench", "demo", "-p", "8", "-n", "2", "--repeats", "1", "--device", "cpu"),
    "formats": ("formats",),
    "plugins": ("plugins",),
    "inspect": ("inspect", "demo"),
    "inspect --plan": ("inspect", "demo", "--plan", "gguf:q4_0"),
    "check": ("check", "gguf:q4_0", "-k", "sqnr"),
    "verify": ("verify", "demo"),
    "compare": ("compare", "demo", "--try", "gguf:q4_0"),
    "export": ("export", "demo", "-f", "gguf:q4_0", "--dry-run"),
    "export several": ("export", "demo", "-f", "gguf:q4_0", "-f", "nf4", "--dry-run"),
    "generate": ("generate", "demo", "Once upon", "-n", "2", "--device", "cpu"),
    "outliers": ("outliers", "demo", "--chunks", "1", "--chunk-size", "32", "--device", "cpu"),
    "imatrix": ("imatrix", "demo", "--chunks", "1", "--chunk-size", "32", "-o", "m.gguf", "--force"),
}


def test_every_command_that_reports_is_tried():
    """A new command with ``--json`` must be in the list above; `merge` and `reshard` are tried with their folders."""
    known = typer.main.get_command(app).commands
    reporting = {name for name, each in known.items() if any("--json" in p.opts for p in each.params)}
    assert reporting == {name.split()[0] for name in COMMANDS} | {"merge"}


@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_a_flag_or_a_file(args, tmp_path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    file = tmp_path / "report.json"
    shown = call(capsys, *args, "--json")
    assert shown.code == 0, shown.err
    printed = json.loads(shown.out, parse_constant=pytest.fail)
    for given in (("--json", file), (f"--json={file}",)):
        written = call(capsys, *args, *given)
        assert written.code == 0, written.err
        # The usual output is there too, and the file holds what the flag prints.
        assert written.out
        assert "{" not in written.out[:2]
        found = json.loads(file.read_text(), parse_constant=pytest.fail)
        assert type(found) is type(printed)
        if isinstance(found, dict):
            assert found.keys() == printed.keys()
        else:
            assert [row.keys() for row in found] == [row.keys() for row in printed]
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    "content", ['{"architectures": ["LlamaForCausalLM"]}', "not JSON", "[" * 9000, "[1]"]
)
def test_what_is_no_report_is_not_replaced(content, tmp_path, capsys):
    file = tmp_path / "config.json"
    file.write_text(content)
    done = call(capsys, "inspect", "demo", "--json", file)
    assert (done.code, file.read_text()) == (4, content)
    assert "is not an earlier JSON report of this command, so it is not replaced" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "code", "says"),
    [("no/such/folder/x.json", 4, "no folder"), (".", 4, "is a folder"), ("", 2, "a file, or nothing")],
)
def test_bad_places_are_refused_before_the_work(place, code, says, capsys):
    """Before the model is looked for: it does not exist either."""
    done = call(capsys, "inspect", "no-such-model", f"--json={place}")
    assert (done.code, done.out) == (code, "")
    assert says in done.err
