"""Values of foreign files: each getter takes its own type and range, and nothing else."""

import math

import numpy as np
import pytest

from qformats.errors import CheckpointError, ConfigError
from qformats.interfaces import Values
from qformats.interfaces.values import REQUIRED
from qformats_gguf.metadata import Keys, Value, ValueType, array, boolean, f32, string, u32

DEEP = []
for _ in range(5000):
    DEEP = [DEEP]

JUNK = [
    True,
    1,
    -1,
    2.0,
    2**63,
    10**5000,
    math.nan,
    math.inf,
    "1",
    "\ud800",
    b"x",
    [1],
    ["a"],
    {"a": 1},
    DEEP,
]
GETTERS = {
    "integer": (lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63),
    "number": (lambda value: type(value) in (int, float) and abs(value) < 1e308),
    "text": (lambda value: isinstance(value, str)),
    "flag": (lambda value: isinstance(value, bool)),
    "strings": (lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value)),
    "integers": (lambda value: value == [1]),
    "numbers": (lambda value: value == [1]),
    "section": (lambda value: isinstance(value, dict)),
}


@pytest.mark.parametrize("getter", GETTERS)
@pytest.mark.parametrize("place", range(len(JUNK)))
def test_each_getter_takes_its_own_type(getter, place):
    value = JUNK[place]
    get = getattr(Values({"key": value}, "config.json"), getter)
    if GETTERS[getter](value):
        found = get("key")
        assert isinstance(found, Values) or found == value
    else:
        with pytest.raises(
            CheckpointError, match=r"^config\.json: key(\[0\])?: found .*; expected "
        ) as caught:
            get("key")
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize("getter", [name for name in GETTERS if name != "section"])
def test_absent_and_null_are_the_default_or_an_error(getter):
    for values in (Values({}, "f"), Values({"key": None}, "f")):
        get = getattr(values, getter)
        assert get("key", None) is None
        assert "key" not in values
        for error in (lambda get=get: get("key"), lambda get=get: get("key", REQUIRED)):
            with pytest.raises(CheckpointError, match="key: found nothing; expected"):
                error()
    assert Values({}).section("key").integer("inner", 7) == 7


def test_ranges_and_choices():
    values = Values({"n": 4, "x": 0.5, "s": "gptq", "list": [1.0, 2.0]})
    assert values.integer("n", minimum=4, maximum=4) == values.integer("n", among=(2, 4)) == 4
    assert values.number("x", above=0, maximum=0.5) == 0.5
    assert values.text("s", among=("gptq", "gptq_v2")) == "gptq"
    for call, told in (
        (lambda: values.integer("n", minimum=5), "n: found 4; expected a whole number from 5."),
        (lambda: values.integer("n", minimum=1, maximum=3), "a positive whole number up to 3."),
        (lambda: values.integer("n", among=(2, 8)), "one of 2, 8."),
        (lambda: values.number("x", above=0.5), "a number above 0.5."),
        (lambda: values.number("x", above=0, maximum=0.25), "a positive number up to 0.25."),
        (lambda: values.text("s", among=("marlin",), default=None), "one of marlin."),
        (lambda: values.numbers("list", largest=1), r"list[1]: found 2.0; expected finite numbers up to 1."),
    ):
        # Without a file, whoever knows it names it.
        with pytest.raises(ConfigError) as caught:
            call()
        assert told in str(caught.value)


def test_sections_name_their_path():
    values = Values({"rope": {"inner": {"theta": "x"}}}, "config.json")
    with pytest.raises(CheckpointError, match=r"^config\.json: rope\.inner\.theta: found 'x'"):
        values.section("rope").section("inner").number("theta")


def test_keys_of_a_header():
    metadata = {
        "u": u32(3),
        "f": f32(0.5),
        "b": boolean(True),
        "s": string("x"),
        "a": array(ValueType.STRING, ["p", "q"]),
        "n": Value(ValueType.ARRAY, np.arange(3, dtype=np.uint16), ValueType.U16),
        "nan": Value(ValueType.ARRAY, np.array([1, np.nan], np.float32), ValueType.F32),
    }
    keys = Keys(metadata, "m.gguf")
    assert (keys.integer("u"), keys.number("f"), keys.number("u"), keys.flag("b")) == (3, 0.5, 3.0, True)
    assert (keys.text("s"), keys.strings("a"), keys.integers("n")) == ("x", ["p", "q"], [0, 1, 2])
    with pytest.raises(CheckpointError, match=r"m\.gguf: nan\[1\]: found nan; expected finite numbers"):
        keys.numbers("nan")
    with pytest.raises(CheckpointError, match=r"m\.gguf: b: found True; expected a whole number"):
        keys.integer("b")
    assert "x" not in keys
