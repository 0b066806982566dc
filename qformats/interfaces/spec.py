"""Descriptors: what a format stores, as data.

A descriptor answers from a tensor's shape alone how many bytes it will take and under which names, so that a
whole export can be planned before a weight is read.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from qformats.errors import ConfigError
from qformats.numbers.dtypes import SIZES
from qformats.work.shown import Shown

__all__ = ["MODES", "FieldSpec", "FormatSpec", "KernelSpec", "evaluate", "solve"]

MODES = ("affine", "minimum", "table", "float")
"""How the shared kernels decode a code."""


_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Div: lambda a, b: -(-a // b),
}


_LARGEST = 1 << 62
"""No dimension of a tensor is larger."""
_LONGEST = 100
"""Characters of an expression: enough for any format, and far too few to exhaust the parser."""


@lru_cache(maxsize=256)
def _parse(expression: str) -> ast.expr:
    if len(expression) > _LONGEST:
        raise ConfigError("dimension", expression[:_LONGEST] + "...", f"at most {_LONGEST} characters")
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        expected = f"an expression such as 'K / 32 * 18' ({error})"
        raise ConfigError("dimension", expression, expected) from error


def evaluate(expression: str, **names: int) -> int:
    """Value of a symbolic dimension such as ``"N"`` or ``"K / 32 * 18"``.

    Only whole numbers, the given names, ``+ - * // /`` and parentheses are understood; ``a / b`` rounds up,
    as the number of blocks that hold `a` elements does.

    Raises
    ------
    ConfigError
        If the expression holds anything else.

    Examples
    --------
    >>> from qformats.interfaces import evaluate
    >>> evaluate("N * (K / 32)", N=2, K=65)
    6
    """

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)) if type(number) is int:
                return number
            case ast.Name(id=name) if name in names:
                return names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                divisor = value(right)
                if divisor == 0 and isinstance(op, ast.Div | ast.FloorDiv):
                    raise ConfigError("dimension", expression, "an expression that does not divide by zero")
                return _BINARY[type(op)](value(left), divisor)
            case _:
                raise ConfigError("dimension", expression, f"integers, {', '.join(names)}, + - * // /")

    return value(_parse(expression))


def solve(expression: str, name: str, value: int) -> int:
    """Largest number for which an expression in one name gives `value`; 0 if it does not depend on that name.

    Expressions grow with their names, so halving finds the answer.

    Raises
    ------
    ConfigError
        If the expression does not grow with its name.
    """
    names = {node.id for node in ast.walk(_parse(expression)) if isinstance(node, ast.Name)}
    if names != {name}:
        return 0
    low, high = 0, 1
    while evaluate(expression, **{name: high}) <= value:
        if high > _LARGEST:
            raise ConfigError("dimension", expression, f"an expression that grows with {name}")
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        if evaluate(expression, **{name: middle}) <= value:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class FieldSpec:
    """One stored tensor of a format.

    Attributes
    ----------
    name : str
        Name beside the module, such as ``"weight"`` or ``"weight_scale"``.
    shape : tuple of str
        Symbolic dimensions in ``N`` (out_features, rows) and ``K`` (in_features, columns).
    dtype : str
        Short name of :mod:`qformats.numbers.dtypes`.
    unit : str
        What one element means: ``"packed codes"``, ``"weight units per step"``.

    Raises
    ------
    ConfigError
        If a dimension is not an expression in ``N`` and ``K``, or the name of the dtype is unknown.

    Examples
    --------
    >>> from qformats import FieldSpec
    >>> field = FieldSpec("qweight", ("K / 32 * 4", "N"), "i32", "packed codes")
    >>> field.resolve(rows=128, columns=64), field.nbytes(rows=128, columns=64)
    ((8, 128), 4096)
    """

    name: str
    shape: tuple[str, ...]
    dtype: str
    unit: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in SIZES:
            raise ConfigError(f"dtype of field {self.name!r}", self.dtype, "one of " + ", ".join(SIZES))
        self.resolve(1, 1)

    def resolve(self, rows: int, columns: int) -> tuple[int, ...]:
        """Shape for a weight of ``[rows, columns]``."""
        return tuple(evaluate(dim, N=rows, K=columns) for dim in self.shape)

    def nbytes(self, rows: int, columns: int) -> int:
        """Bytes for a weight of ``[rows, columns]``."""
        return math.prod(self.resolve(rows, columns)) * SIZES[self.dtype]


@dataclass(frozen=True)
class KernelSpec:
    """What the shared dequantization kernel needs to know of a format (support level 2).

    Attributes
    ----------
    bits : int
        Code width: 2, 3, 4, 5, 6 or 8.
    mode : str
        ``"affine"`` (integer zero point), ``"minimum"`` (float minimum), ``"table"`` (codebook) or ``"float"`` (codes
        are floats: of 8 bits in E4M3, see :class:`qformats.numbers.Float8Grid`, or of 4 bits in twice E2M1, see
        :class:`qformats.numbers.Float4Grid`).
    block_size : int
        Columns that share a scale; 0 means the whole row.
    scale_dtype : str
        ``"f16"`` or ``"f32"``; of products, where scales are products.
    outer : int
        Where each scale is a product that the kernel takes apart, see :class:`qformats.numbers.NestedScales`: columns
        that share the outer scale; a multiple of 128, for blocks of 16 or 32. 0 where scales are single numbers.

    Examples
    --------
    >>> from qformats import KernelSpec
    >>> KernelSpec(bits=4, mode="affine", block_size=32, scale_dtype="f16")
    KernelSpec(bits=4, mode='affine', block_size=32, scale_dtype='f16', outer=0)
    """

    bits: int
    mode: str
    block_size: int
    scale_dtype: str
    outer: int = 0


@dataclass(frozen=True, repr=False)
class FormatSpec(Shown):
    """Descriptor of one format, ``family:variant``.

    Attributes
    ----------
    family, variant : str
        The two halves of the name.
    summary : str
        One line for listings.
    fields : tuple of FieldSpec
        What is stored for a weight of ``[N, K]``.
    bits : int or None
        Width of a code; ``None`` where codes have no fixed width (dense and lattice formats).
    block_size : int
        Columns that share their parameters; 1 for dense formats, 0 for the whole row.
    canonical : bool
        Whether packed bytes have a canonical form, in codes and parameters; others can be dequantized only.
    source : str
        Where the byte layout is defined, as ``project:path``.
    sqnr_floor_db : float or None
        Signal-to-noise ratio that the reference rounding of normally distributed weights, 4096 to a row, must reach.
    kernel : KernelSpec or None
        How the shared kernel decodes it; ``None`` if it does not.

    Examples
    --------
    >>> from qformats import FieldSpec, FormatSpec
    >>> fields = (FieldSpec("codes", ("N", "K / 2"), "u8"), FieldSpec("scale", ("N", "K / 32"), "f16"))
    >>> spec = FormatSpec("mine", "int4", "4 bits, a scale per 32", fields, bits=4, block_size=32)
    >>> spec.name, spec.level, spec.nbytes(64, 64), spec.bits_per_weight
    ('mine:int4', 1, 2304, 4.5)
    """

    family: str
    variant: str
    summary: str
    fields: tuple[FieldSpec, ...]
    bits: int | None = None
    block_size: int = 1
    canonical: bool = True
    source: str = ""
    sqnr_floor_db: float | None = None
    kernel: KernelSpec | None = None

    def _shown_facts(self) -> dict[str, str]:
        return {
            "name": self.name,
            "summary": self.summary,
            "bits": f"{self.bits_per_weight:.4g} bits per weight",
            "level": f"level {self.level}",
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        return [("field", "shape", "dtype"), *((f.name, " x ".join(f.shape), f.dtype) for f in self.fields)]

    @property
    def name(self) -> str:
        """Full name, ``family:variant``."""
        return f"{self.family}:{self.variant}"

    @property
    def level(self) -> int:
        """Level of support. 0: can be dequantized. 1: has a canonical form. 2: also runs on the shared kernel."""
        return 2 if self.kernel is not None else int(self.canonical)

    def nbytes(self, rows: int, columns: int) -> int:
        """Exact stored bytes of a weight of ``[rows, columns]``."""
        return sum(field.nbytes(rows, columns) for field in self.fields)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of a large tensor, including scales."""
        rows, columns = 4096, 4096
        return self.nbytes(rows, columns) * 8 / (rows * columns)
