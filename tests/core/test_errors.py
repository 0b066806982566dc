"""The error family: its documented tree, what callers can catch, and sentences made of data."""

import builtins
import inspect
import re
from pathlib import Path

import pytest
from cli.command import call

import qformats
from qformats import errors

FAMILY = [
    cls
    for cls in vars(errors).values()
    if inspect.isclass(cls) and issubclass(cls, errors.QFormatsError) and cls is not errors.QFormatsError
]


def _documented():
    """Class name to builtin base, read from the tree in the module's docstring."""
    lines = re.findall(r"^      (\w+)\((\w+)\)  ", errors.__doc__, re.MULTILINE)
    return {name: getattr(builtins, base) for name, base in lines}


def test_tree_in_the_docstring_equals_the_classes():
    assert _documented() == {cls.__name__: cls.__bases__[1] for cls in FAMILY}
    assert all(cls.__bases__[0] is errors.QFormatsError for cls in FAMILY)
    assert "    QFormatsError(Exception)\n" in errors.__doc__
    assert errors.QFormatsError.__bases__ == (Exception,)


def test_all_names_the_family():
    assert sorted(errors.__all__) == sorted(
        ["Described", "QFormatsError", "on_the_command_line", "shown", "spelled", *_documented()]
    )
    assert qformats.QFormatsError is errors.QFormatsError


# One error of every class, every argument recognisable in the sentence.
EXAMPLES = [
    (errors.UnknownFormatError, ("abc:x", ["abc:y", "other:z"], {"bad 1.0": "ImportError: no"}), {}),
    (errors.UnknownFormatError, ("fast", ["slow"], {}, "quantizer"), {}),
    (errors.AmbiguousFormatError, ("x", {"abc:x": "8 bits", "other:x": "4 bits"}), {}),
    (errors.ConfigError, ("type", "abc:x", "one that can be written"), {"nearest": ["abc:y", "abc:z"]}),
    (errors.NameTakenError, ("format", "abc:x", "plugin 'a' of pkg 1", "plugin 'b' of pkg 2"), {}),
    (errors.PluginLoadError, ("abc", "ImportError: no module"), {}),
    (errors.PluginError, ("abc", "Packer.pack", KeyError("odd")), {}),
    (errors.ShapeError, ("weight", (3, 5), "columns a multiple of 4", "Pad it"), {}),
    (errors.ConfigError, ("bits", 7, "4 or 8", "Choose one"), {}),
    (
        errors.CheckpointError,
        (Path("dir/file.bin"), "8 bytes", "16 bytes"),
        {"tensor": "a.b", "hint": "Fetch it"},
    ),
    (errors.ModelNotFoundError, ("some/where", "no such file", "Give a path"), {}),
    (errors.UnsupportedModelError, ("architecture", "odd", ["llama", "gpt2"], "Ask for it"), {}),
    (errors.NonFiniteError, ("2 of 9 values are not finite", "Repair it"), {}),
    (errors.WeightsError, ("file.bin", "a.b", "2 of 9 values are not finite", "Repair it"), {}),
    (errors.NotExactError, ("levels -8 to 8 need 17 codes",), {}),
    (errors.InexactExportError, ("some/model", "abc:x", {"a.b": "levels do not fit"}), {}),
    (errors.OutputError, ("out.bin", "the disk is full", "Free some"), {}),
    (errors.BackendUnavailableError, ("cuda", "no device", "Use the CPU"), {}),
    (errors.WorkerError, ("process 2 of 2", "was killed by signal 9", "Start it again"), {}),
]
IDS = [f"{cls.__name__}-{len(args)}" for cls, args, _ in EXAMPLES]


def _texts(value):
    if isinstance(value, dict):
        return [text for item in value.items() for part in item for text in _texts(part)]
    return [str(part) for part in value] if isinstance(value, list) else [str(value)]


def test_every_class_has_an_example():
    assert {cls for cls, *_ in EXAMPLES} == set(FAMILY)


@pytest.mark.parametrize(("cls", "args", "more"), EXAMPLES, ids=IDS)
def test_message_holds_every_datum_once_and_reads_as_text(cls, args, more):
    error = cls(*args, **more)
    message = str(error)
    for datum in (*args, *more.values()):
        for text in _texts(datum):
            assert text in message, text
    assert "None" not in message
    assert "\n" not in message
    assert ".." not in message
    assert not message.startswith(("'", '"', "("))
    # Whoever catches the builtin sees the same sentence.
    with pytest.raises(cls.__bases__[1], match=f"^{re.escape(message)}$"):
        raise error


@pytest.mark.parametrize(("cls", "args", "more"), EXAMPLES, ids=IDS)
def test_data_are_attributes(cls, args, more):
    error = cls(*args, **more)
    parameters = [
        p for p in inspect.signature(cls).parameters if p not in ("hint", "expected", "found", "reason")
    ]
    for name in parameters:
        assert hasattr(error, name), name


def test_what_is_left_out_leaves_no_trace():
    assert str(errors.ConfigError("bits", 7, "4 or 8")) == "bits: found 7; expected 4 or 8."
    assert str(errors.NonFiniteError("3 values are NaN")) == "3 values are NaN."
    assert str(errors.CheckpointError("m.bin", "truncated")) == "m.bin: truncated."
    assert str(errors.CheckpointError("m.bin", "truncated", tensor="w")) == "m.bin: tensor 'w': truncated."


def test_a_missing_field_is_no_shape():
    found = str(errors.ShapeError("scale", None, "(4,) of f16"))
    assert found == "tensor 'scale': it is missing; expected (4,) of f16."


def test_descriptions_have_no_quotes():
    found = errors.ConfigError("scales", errors.Described("2 that are NaN"), "finite scales")
    assert str(found) == "scales: found 2 that are NaN; expected finite scales."
    assert found.value == "2 that are NaN"
    odd = errors.UnsupportedModelError(
        "model", errors.Described("one with a vision part"), ["a language model"]
    )
    assert str(odd) == "model: found one with a vision part; expected a language model."


def test_unknown_names_suggest_the_nearest():
    assert "Did you mean 'abc:four'?" in str(errors.UnknownFormatError("abc:fuor", ["abc:four", "xyz:one"]))
    assert "Did you mean" not in str(errors.UnknownFormatError("zzzz", ["abc:four"]))
    assert "pip install" in str(errors.UnknownFormatError("abc:four", []))


def test_of_many_names_only_the_nearest_are_told():
    many = [f"abc:{kind}{bits}" for kind in ("int", "fp") for bits in range(10)]
    error = errors.UnknownFormatError("abc:imt4", many)
    assert len(error.nearest) == 3
    assert str(error).count("abc:") == 1 + 3
    assert "qformats formats abc lists all 20" in str(error)
    lost = str(errors.UnknownFormatError("zzzz", [*many, "xyz:one"], nearest=[]))
    assert lost == "no format 'zzzz'; qformats formats lists all 21, of the families abc, xyz"
    assert "known: abc:fp0, abc:fp1" in str(errors.UnknownFormatError("zzzz", many, kind="GGUF tensor type"))


def test_what_is_typed_keeps_its_spelling():
    told = [
        str(errors.ConfigError("a", 1, "2", hint))
        for hint in ("tensor.float() helps", "qformats formats helps", "pip install x")
    ]
    assert [text.partition("2. ")[2] for text in told] == [
        "tensor.float() helps.",
        "qformats formats helps.",
        "pip install x.",
    ]
    assert str(errors.ConfigError("a", 1, "2", "give another one")).endswith("Give another one.")


def test_options_are_spelled_for_whom_reads_them(tmp_path, capsys):
    import qformats

    target = tmp_path / "out.gguf"
    target.touch()
    with pytest.raises(errors.OutputError, match="or replace it with force=True"):
        qformats.export("demo", target, format="gguf:q8_0")
    result = call(capsys, "export", "demo", "-f", "gguf:q8_0", "-o", target)
    assert "or replace it with --force" in result.err
    with pytest.raises(errors.ConfigError, match=r"formats to try \(try_\)"):
        qformats.compare("demo")
    assert "formats to try (--try)" in call(capsys, "compare", "demo").err
    # Whatever happened before.
    assert errors.spelled("--force", "force=True") == "force=True"


def test_a_name_known_from_elsewhere_is_not_taken_for_a_mistake():
    told = str(
        errors.UnknownFormatError("abc:five", ["abc:four"], nearest=["abc:four"], about="it is of xyz")
    )
    assert told == "no format 'abc:five': it is of xyz. Nearest: 'abc:four'. Installed: abc:four"
