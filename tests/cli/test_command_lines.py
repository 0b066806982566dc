"""What newcomers type: other programs' commands and options, short names of formats, mistyped options."""

from __future__ import annotations

import pytest
from cli.command import call


def _instead(capsys, *args):
    result = call(capsys, *args)
    assert (result.code, result.out) == (2, "")
    message, *lines = result.err.splitlines()
    assert message.startswith("qformats: ")
    assert all(line.startswith("  qformats ") for line in lines)
    return message.removeprefix("qformats: "), [line.strip() for line in lines]


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("convert", "demo"), "qformats export demo --format gguf"),
        (
            ("quantize", "in.gguf", "out.gguf", "q4_0"),
            "qformats export in.gguf --output out.gguf --format q4_0",
        ),
        (("quantize", "demo", "--format", "nf4"), "qformats export demo --format nf4"),
        (("dequantize", "demo"), "qformats export demo --format dense:f16"),
        (("run", "demo", "a b"), "qformats generate demo 'a b'"),
        (("chat", "demo", "hi"), "qformats generate demo hi --chat"),
        (("info", "demo"), "qformats inspect demo"),
        (("list",), "qformats formats"),
        (("list", "gguf"), "qformats formats gguf"),
        (("exprot", "demo"), "qformats export demo"),
    ],
)
def test_other_names_of_commands(capsys, args, line):
    message, lines = _instead(capsys, *args)
    assert message.startswith(f"no command '{args[0]}'. ")
    assert lines == [line]


def test_a_command_like_no_other_lists_all(capsys):
    message, lines = _instead(capsys, "frobnicate")
    assert "Commands are export, generate, compare, " in message
    assert "reshard" in message
    assert lines == []


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("export", "demo", "--formt", "gguf"), "qformats export demo --format gguf"),
        (("export", "demo", "--formt=gguf"), "qformats export demo --format=gguf"),
        (("inspect", "demo", "--tensor"), "qformats inspect demo --tensors"),
        (("reshard", "demo", "--forse"), "qformats reshard demo --force"),
    ],
)
def test_mistyped_options(capsys, args, line):
    message, lines = _instead(capsys, *args)
    assert message.startswith("no option --")
    assert lines == [line]


def test_an_option_like_no_other(capsys):
    message, lines = _instead(capsys, "export", "demo", "--zzzzzz")
    assert message == "no option --zzzzzz; the command's --help lists all"
    assert lines == []


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (("--format", "q4_k_m"), ["--format gguf:q4_1"]),
        (("--format=q4_k_m",), ["--format=gguf:q4_1"]),
        (("--format", "gguf", "--type", "q4_k_m"), ["--format gguf --type q4_1"]),
        (("-fawq",), ["-fgptq:4bit-128g-asym"]),
        (("--format", "gguf:q4_k"), ["--format gguf:q4_0"]),
        (("--format", "int4"), ["--format glm:int4", "--format gptq:4bit-128g"]),
        (("--type", "f16"), ["--type dense:f16", "--type gguf:f16"]),
    ],
)
def test_the_command_line_to_type_instead(capsys, args, lines):
    message, found = _instead(capsys, "export", "demo", *args)
    assert found == [f"qformats export demo {line}" for line in lines]
    # Three formats at most, not all that there are.
    assert message.count(":") <= 8


def test_no_format_at_all(capsys):
    message, lines = _instead(capsys, "export", "demo")
    assert message.startswith("--format is missing")
    assert lines[0] == "qformats export demo --format gguf"
    _, lines = _instead(capsys, "export", "demo", "-o", "x.gguf")
    assert lines == ["qformats export demo --format gguf --output x.gguf"]


def test_a_short_name_is_explained_in_one_line(capsys, tmp_path):
    result = call(capsys, "export", "demo", "-f", "q8", "--dry-run", "-o", tmp_path / "x")
    assert result.code == 0
    assert result.err == "qformats: q8 is gguf:q8_0: 8 bits, one scale per 32\n"
    quiet = call(capsys, "export", "demo", "-q", "-f", "q8", "--dry-run", "-o", tmp_path / "x")
    assert (quiet.code, quiet.err) == (0, "")


def test_options_of_llama_cpp(capsys, tmp_path):
    target = tmp_path / "out.gguf"
    result = call(capsys, "export", "demo", "--outfile", target, "--outtype", "f16", "--threads", "1")
    assert result.code == 0
    assert result.err == "qformats: f16 is gguf:f16: float16\n"
    assert f"{target}  gguf:f16" in result.out


def test_options_of_another_quantizer(capsys, tmp_path):
    for option in ("--calibration", "--samples"):
        result = call(capsys, "export", "demo", "-f", "gguf:q4_0", option, "1", "-o", tmp_path / "x")
        assert result.code == 2
        assert "Add --quantizer gptq, which has this option" in result.err
        assert list(tmp_path.iterdir()) == []
