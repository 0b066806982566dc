"""Tables fit the terminal at any width; without a terminal they are complete."""

from __future__ import annotations

import re
import sys
from io import StringIO

import pytest
from cli.command import call, run_in_terminal, without_escapes
from rich.console import Console
from rich.text import Text

import qformats
from qformats.cli.console import table
from qformats.cli.tables import shortened

LONG = "a-model-with-quite-a-long-name-from-a-fine-tuning-run-of-someone-" * 2
COMMANDS = {
    "formats": ("formats",),
    "plugins": ("plugins",),
    "inspect": ("inspect", "MODEL", "--tensors"),
    "inspect --plan": ("inspect", "demo", "--plan", "gguf:q4_0", "--tensors"),
    "export --dry-run": ("export", "demo", "-f", "gguf:q4_0", "-o", "x.gguf", "--dry-run"),
    "export": ("export", "MODEL", "-f", "glm:int4", "-o", "OUT", "--force"),
    "compare": ("compare", "demo", "MODEL", "--text", "demo", "--window", "16", "--windows", "2", "--speed"),
    "check": ("check", "gguf:q4_0", "-k", "sqnr", "-k", "hard"),
}
WHOLE = ("Run it:", "Load it with", "import qformats", "skipped ")
"""Lines that are copied as a whole: the terminal wraps them where it likes."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / f"{LONG}.gguf"
    qformats.export("demo", path, format="gguf:q4_0")
    return path


def arguments(args, model, tmp_path):
    return [str({"MODEL": model, "OUT": tmp_path / "out"}.get(a, a)) for a in args]


@pytest.mark.parametrize("columns", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_no_line_is_longer_than_the_terminal(args, columns, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    done = call(capsys, *arguments(args, model, tmp_path))
    assert done.code == 0, done.err
    paths = (str(model), str(tmp_path))
    lines = [
        line
        for line in without_escapes(done.out).splitlines()
        if not line.startswith(WHOLE) and not any(p in line for p in paths)
    ]
    assert len(lines) >= 3
    assert [line for line in lines if Text(line).cell_len > columns] == []


@pytest.mark.parametrize("columns", [40, 120])
def test_a_real_terminal_is_measured(columns):
    code, text = run_in_terminal("plugins", columns=columns)
    assert code == 0
    assert max(map(len, without_escapes(text).splitlines())) <= columns


@pytest.mark.parametrize("args", COMMANDS.values(), ids=COMMANDS)
def test_without_a_terminal_values_are_whole_and_nothing_is_filled_up(
    args, model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "60")
    done = call(capsys, *arguments(args, model, tmp_path))
    lines = done.out.splitlines()
    assert "…" not in done.out
    assert [line for line in lines if line != line.rstrip()] == []
    assert max((len(line) for line in lines if set(line) == {"─"}), default=0) <= 120
    if args[0] == "plugins":
        brought = next(line for line in lines if line.startswith("gguf "))
        assert "q4_0, q4_1" in brought
        assert "; container gguf; " in brought
        assert brought.endswith("; hook qformats_gguf_register_architectures")
    if args[0] == "compare":
        assert any(line.startswith(LONG) for line in lines)
    if "--tensors" in args:
        name = (
            "blk.0.ffn_norm.weight" if "--plan" in args else "model.layers.0.post_attention_layernorm.weight"
        )
        assert sum(line.startswith(f"{name} ") for line in lines) == 1


def drawn(made, width: int, encoding: str = "utf-8") -> list[str]:
    class Stream(StringIO):
        pass

    Stream.encoding = encoding
    out = Stream()
    Console(file=out, width=width, highlight=False).print(made)
    return out.getvalue().splitlines()


def example():
    made = table("name", "kind", "bytes", "", right=("bytes",), dropped=("kind",))
    made.add_row(
        "model.layers.0.self_attn.q_proj.weight", "matrix", "1,234,567", "said in a few words of prose"
    )
    made.add_row("norm", "vector", "89", "")
    return made


def test_a_wide_table_shows_everything():
    assert drawn(example(), 100) == [
        "name                                    kind        bytes",
        "─" * 87,
        "model.layers.0.self_attn.q_proj.weight  matrix  1,234,567  said in a few words of prose",
        "norm                                    vector         89",
    ]


def test_a_narrower_one_shortens_names_and_wraps_prose_before_it_drops_a_column():
    lines = drawn(example(), 76)
    assert max(map(len, lines)) <= 76
    assert "kind" in lines[0]
    assert lines[2].startswith("model.layers.…q_proj.weight  matrix")
    assert "1,234,567" in lines[2]
    assert "".join(lines).count("prose") == 1


def test_the_narrowest_drops_what_is_of_least_use():
    lines = drawn(example(), 40)
    assert max(map(len, lines)) <= 40
    assert "kind" not in lines[0]
    assert "1,234,567" in lines[2]
    text = re.sub(r"\s+", " ", " ".join(line[-13:] for line in lines[2:-1]))
    assert all(word in text for word in ("said", "few", "words", "prose"))


def keys():
    made = table("metadata", "")
    for key, value in {"llama.attention.key_length": "64", "llama.attention.value_length": "32"}.items():
        made.add_row(key, value)
    made.add_row("general.architecture", "llama")
    return made


@pytest.mark.parametrize("width", [20, 22])
def test_names_that_would_look_alike_wrap_instead(width):
    lines = drawn(keys(), width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    joined = "".join(line.split("  ")[0].strip() for line in lines[2:])
    assert joined == "llama.attention.key_lengthllama.attention.value_lengthgeneral.architecture"


def test_names_that_stay_different_are_shortened():
    made = table("tensor", "bytes", right=("bytes",))
    for name in ("model.layers.0.input_layernorm.weight", "model.layers.1.mlp.down_proj.weight"):
        made.add_row(name, "1,234")
    lines = drawn(made, 30)
    assert len(lines) == 4
    assert all("…" in line for line in lines[2:])


def test_what_is_left_out_is_named():
    assert drawn(example(), 40)[-1] == "not shown in 40 columns: kind"
    assert "not shown" not in "".join(drawn(example(), 100))
    assert drawn(example(), 100)[-1].startswith("norm")


@pytest.mark.parametrize("width", [1, 5, 10, 20])
def test_any_width_is_kept(width):
    assert max(map(len, drawn(example(), width))) <= width


def test_terminals_without_unicode_get_ascii():
    lines = drawn(example(), 60, "ascii")
    assert all(line.isascii() for line in lines)
    assert "..." in lines[2]


def test_columns_that_are_empty_take_no_room():
    made = table("a", "b", "c", right=("b",))
    made.add_row("x")
    assert drawn(made, 40)[0].split() == ["a", "b", "c"]
    assert drawn(table("", ""), 40) == []


@pytest.mark.parametrize("width", range(1, 12))
def test_shortened_text_is_as_wide_as_asked(width):
    assert shortened(Text("abcdefghijkl"), width).cell_len == width
    # Characters that take two columns may leave one over.
    assert width - 1 <= shortened(Text("語" * 12), width).cell_len <= width


def test_markup_and_styles_survive_shortening():
    found = shortened(Text.from_markup("[red]abcdefghijkl[/red]"), 7)
    assert found.plain == "abc…jkl"
    assert any(span.style == "red" and span.start == 4 for span in found.spans) or len(found.spans) >= 2
