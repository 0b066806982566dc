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
        (("talk", "demo"), "qformats chat demo"),
        (("api", "demo"), "qformats serve demo"),
        (("info", "demo"), "qformats inspect demo"),
        (("list",), "qformats formats"),
        (("list", "gguf"), "qformats formats gguf"),
        (("exprot", "demo"), "qformats export demo --format gguf"),
        (("exprot", "demo", "--format=nf4"), "qformats export demo --format=nf4"),
        (("inspct",), "qformats inspect MODEL"),
        (("generat", "demo"), "qformats generate demo 'Once upon a time'"),
        (("compar", "demo"), "qformats compare demo --try gguf"),
        (("compar", "demo", "x.gguf"), "qformats compare demo x.gguf"),
        (("compar", "demo", "--try", "nf4"), "qformats compare demo --try nf4"),
        (("lora", "./adapter"), "qformats merge ./adapter BASE --output OUT"),
        (("merg", "a", "b", "-o", "c"), "qformats merge a b -o c"),
        (("formts",), "qformats formats"),
        (("reshrd", "in", "out"), "qformats reshard in out"),
    ],
)
def test_other_names_of_commands(capsys, args, line):
    message, lines = _instead(capsys, *args)
    assert message.startswith(f"no command '{args[0]}'. ")
    assert lines == [line]


def test_a_command_like_no_other_lists_all(capsys):
    message, lines = _instead(capsys, "frobnicate")
    assert "Commands are export, generate, chat, serve, compare, " in message
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


@pytest.mark.parametrize("option", ["--zzzzzz", "--bogus", "--prompt"])
def test_an_option_like_no_other(capsys, option):
    message, lines = _instead(capsys, "export", "demo", option)
    assert message == f"no option {option}; the command's --help lists all"
    assert lines == []


def test_options_before_the_command(capsys):
    assert _instead(capsys, "--verson") == (
        "no option --verson. Did you mean --version?",
        ["qformats --version"],
    )
    assert _instead(capsys, "--bogus") == ("no option --bogus; the command's --help lists all", [])


@pytest.mark.parametrize(
    ("args", "told", "line"),
    [
        (
            ("generate",),
            "missing argument 'model': file or folder, a hub id",
            "qformats generate my-model.gguf",
        ),
        (
            ("generate", "demo"),
            "missing argument 'prompt': beginning of the text",
            "qformats generate my-model",
        ),
        (
            ("merge", "a"),
            "missing argument 'base': model that it was trained on",
            "qformats merge ./my-adapter",
        ),
        (
            ("merge", "a", "b"),
            "missing option '--output'",
            "qformats merge ./my-adapter ./my-model -o merged",
        ),
        (
            ("export", "demo", "--format"),
            "option '--format' requires an argument",
            "qformats export ./my-model",
        ),
        (("export", "demo", "-j", "x"), "invalid value for '--threads'", "qformats export ./my-model"),
        (("export", "demo", "more"), "got unexpected extra argument more", "qformats export ./my-model"),
        (("compare", "demo", "--window", "1"), "invalid value for '--window'", "qformats compare ./my-model"),
        (("reshard", "demo"), "missing argument 'output': folder to write", "qformats reshard ./glm-130b"),
        (("completion",), "missing argument", "qformats completion"),
    ],
)
def test_what_lacks_something_is_said_in_one_line_with_an_example(capsys, args, told, line):
    message, lines = _instead(capsys, *args)
    assert message.startswith(told)
    assert f"qformats {args[0]} --help says more" in message
    assert len(lines) == 1
    assert lines[0].startswith(line)


@pytest.mark.parametrize(
    ("name", "about", "nearest"),
    [
        ("exl2", "ExLlamaV2's format, which exllamav2 and TabbyAPI read", "gptq:4bit-128g"),
        (
            "AQLM",
            "additive codebooks of vectors, which Transformers reads with the package aqlm",
            "gptq:4bit-128g",
        ),
        ("q4_k_xl", "it is a publisher's own mix, which llama-quantize does not make", "gguf:q4_k_m"),
        ("gguf:q6_k_l", "it is a publisher's own mix, which llama-quantize does not make", "gguf:q6_k"),
        ("iq3_m", "it is llama.cpp's mix of lattice types, which can be read but not written", "gguf:q3_k_m"),
    ],
)
def test_names_known_from_elsewhere_are_said_to_be(capsys, name, about, nearest):
    message, lines = _instead(capsys, "export", "demo", "--format", name)
    assert message.startswith(f"no format '{name}': {about}")
    assert f"Nearest: '{nearest}'" in message
    assert "Did you mean" not in message
    assert lines == [f"qformats export demo --format {nearest}"]


def test_short_names_are_no_formats_from_elsewhere(capsys):
    message, _ = _instead(capsys, "export", "demo", "--format", "q4")
    assert message.startswith("no format 'q4'. Did you mean 'gguf:q4_k_m'")


def test_families_are_found_by_names_like_theirs(capsys):
    message, lines = _instead(capsys, "formats", "ggfu")
    assert message.startswith("no family or format 'ggfu'. Did you mean 'gguf'? qformats formats lists all ")
    assert lines == ["qformats formats gguf"]
    message, lines = _instead(capsys, "formats", "bitsnbytes")
    assert lines == ["qformats formats bitsandbytes"]
    assert _instead(capsys, "formats", "gguf:q4_9")[1] == ["qformats formats gguf:q4_0"]
    assert _instead(capsys, "formats", "xyzzy")[1] == []


def test_merge_takes_outfile_too(capsys, tmp_path):
    result = call(capsys, "merge", tmp_path / "none", "demo", "--outfile", tmp_path / "out")
    assert (result.code, result.out) == (3, "")
    assert f"{tmp_path / 'none'}: " in result.err


@pytest.mark.parametrize(
    ("args", "lines"),
    [
        (("--format", "q4_km"), ["--format gguf:q4_k_m"]),
        (("--format=q4_km",), ["--format=gguf:q4_k_m"]),
        (("--format", "gguf", "--type", "q4_km"), ["--format gguf --type q4_k_m"]),
        (("-fexl2",), ["-fgptq:4bit-128g"]),
        (("--format", "gguf:iq3_s"), ["--format gguf:q3_k_m"]),
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
        assert "Add --quantizer awq or --quantizer gptq, which have this option" in result.err
        assert list(tmp_path.iterdir()) == []


def test_formats_of_a_family_or_one_in_full(capsys):
    result = call(capsys, "formats", "llama.cpp")
    assert (result.code, result.err) == (0, "")
    assert "gguf:q4_0" in result.out
    assert "glm:int4" not in result.out
    one = call(capsys, "formats", "gguf:q4_0")
    assert one.out.startswith("gguf:q4_0  4 bits, one signed scale per 32")
    assert "qformats export MODEL --format gguf:q4_0" in one.out
    assert "It can only be read." in call(capsys, "formats", "gguf:iq3_s").out
