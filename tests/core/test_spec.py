"""Descriptors: symbolic dimensions, what they refuse, and sizes."""

import ast
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qformats.errors import ConfigError
from qformats.interfaces.spec import FieldSpec, FormatSpec, evaluate, solve
from qformats.numbers.dtypes import SIZES

ROUND_UP = [
    "K",
    "K / 8",
    "K * 6 / 8",
    "K / 32 * 18",
    "(K + 31) / 32",
    "K * 2 + 1",
    "K // 4",
    "3 * (K + 1) - 3",
]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("N", 5),
        ("K / 32", 4),
        ("K // 32", 3),
        ("K / 32 * 18", 72),
        ("(K + 2) * N - 1", 509),
        ("N / K", 1),
        ("7", 7),
        ("  N + 1 ", 6),
    ],
)
def test_values(expression, value):
    assert evaluate(expression, N=5, K=100) == value


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_division_counts_the_blocks_that_hold_all(count, block):
    blocks = evaluate(f"K / {block}", K=count)
    assert blocks * block >= count > (blocks - 1) * block


HOSTILE = [
    "K ** 9999999",
    "9 ** 9 ** 9 ** 9",
    "1 << 9999999999",
    "__import__('os')",
    "K.bit_length()",
    "K.real",
    "[K]",
    "K[0]",
    "lambda: K",
    "K if K else N",
    "K == N",
    "(K := 5)",
    "-K",
    "~K",
    "not K",
    "1.5 * K",
    "'K'",
    "True",
    "None",
    "M",
    "k",
    "",
    "K +",
    "K; N",
    "K = 1",
    "import os",
    "f'{K}'",
    "K % 2",
    "K @ N",
    "\x00",
    "(" * 20 + "K",
    "(" * 500 + "K" + ")" * 500,
    "K" + " + K" * 100_000,
    "9" * 5000,
]


@pytest.mark.parametrize("expression", HOSTILE, ids=lambda text: repr(text[:24]))
def test_hostile_expressions_are_refused_quickly(expression):
    began = time.perf_counter()
    with pytest.raises(ConfigError, match="dimension"):
        evaluate(expression, N=4, K=8)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize("expression", ["K / 0", "K // (N - 4)", "1 / (K - K)"])
def test_division_by_zero_is_an_error_of_the_expression(expression):
    with pytest.raises(ConfigError, match="does not divide by zero"):
        evaluate(expression, N=4, K=8)


@pytest.mark.parametrize("expression", ROUND_UP)
@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 10**7))
def test_solve_gives_the_largest_number_with_that_value(expression, count):
    value = evaluate(expression, K=count)
    found = solve(expression, "K", value)
    assert found >= count
    assert evaluate(expression, K=found) == value
    assert evaluate(expression, K=found + 1) > value


def test_solve_of_what_does_not_depend_on_the_name():
    assert solve("K", "N", 7) == 0
    assert solve("N * K", "N", 7) == 0
    assert solve("12", "K", 12) == 0


@pytest.mark.parametrize("expression", ["K - K", "5 - K", "K * 0", "0 // (K + 1)"])
def test_solve_of_what_does_not_grow_ends(expression):
    began = time.perf_counter()
    with pytest.raises(ConfigError, match="grows with K"):
        solve(expression, "K", 10)
    assert time.perf_counter() - began < 1


def test_expressions_here_are_python_s():
    """`evaluate` reads the same trees as Python, but for ``/``."""
    for expression in ROUND_UP:
        if "/" not in expression:
            code = compile(ast.parse(expression, mode="eval"), "<spec>", "eval")
            assert evaluate(expression, K=23) == eval(code, {"__builtins__": {}}, {"K": 23})


def _spec(**more):
    fields = (
        FieldSpec("codes", ("N", "K * 6 / 8"), "u8"),
        FieldSpec("scale", ("N", "K / 32"), "f16"),
        FieldSpec("count", (), "i64"),
    )
    return FormatSpec("family", "variant", "a summary", fields, **more)


@pytest.mark.parametrize(
    ("shape", "nbytes"),
    [((4, 64), 4 * 48 + 4 * 2 * 2 + 8), ((1, 1), 1 + 2 + 8), ((3, 33), 3 * 25 + 3 * 2 * 2 + 8), ((0, 64), 8)],
)
def test_sizes(shape, nbytes):
    assert _spec().nbytes(*shape) == nbytes


def test_names_and_bits_per_weight():
    spec = _spec()
    assert spec.name == "family:variant"
    assert spec.bits_per_weight == pytest.approx(6 + 16 / 32, abs=1e-5)
    assert [field.resolve(3, 40) for field in spec.fields] == [(3, 30), (3, 2), ()]


@pytest.mark.parametrize("dtype", SIZES)
def test_every_dtype_has_its_size(dtype):
    assert FieldSpec("x", ("N", "K"), dtype).nbytes(3, 5) == 15 * SIZES[dtype]


def test_mistakes_of_a_plugin_author_show_when_the_descriptor_is_made():
    with pytest.raises(ConfigError, match=r"dtype of field 'scale': found 'float16'; expected one of .*f16"):
        FieldSpec("scale", ("N",), "float16")
    with pytest.raises(ConfigError, match="M / 2"):
        FieldSpec("scale", ("N", "M / 2"), "f16")
