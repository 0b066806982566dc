"""What the stored tensors of a module tell: in which of AutoAWQ's layouts it is, its shape, and its groups."""

from __future__ import annotations

from dataclasses import dataclass

from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_awq.layouts import padded_groups

__all__ = ["USUAL", "ZEROS", "Found", "examine"]

ZEROS = ("qzeros", "scaled_zeros")
"""Names of zero points; llm-awq's are the latter."""
_SCALES = ("f16", "bf16", "f32")
USUAL = (128, 64, 32)
"""Columns of a group that AutoAWQ's layouts with padded scales know."""


@dataclass(frozen=True)
class Found:
    """A quantized module.

    Attributes
    ----------
    layout : str
        ``"gemm"``, ``"gemv"`` or ``"gemv_fast"``.
    shape : tuple of int
        ``(N, K)`` of its weight.
    group_size : int
        Columns of a group.
    scale_dtype : str
        Short name of the dtype of the scales.
    """

    layout: str
    shape: tuple[int, int]
    group_size: int
    scale_dtype: str


def examine(module: ModuleFields, declared: int | None) -> Found | None:
    """Read the shapes of a module; ``None`` if its weight is plain.

    Shapes leave no doubt about the layout, whatever is declared: scales have a column or a row per output.

    Parameters
    ----------
    module : ModuleFields
        The module.
    declared : int or None
        Columns of a group as declared; 0 for the whole row.

    Raises
    ------
    ConfigError
        If fields are missing, contradict each other, or are of a layout that is not read.
    """
    stored = module.stored
    zeros = [name for name in ZEROS if name in stored]
    if "qweight" not in stored and not zeros:
        if "scales" in stored:
            found = Described("scales without qweight, by which AWQ divides what an activation gives")
            hint = "use the model before it was quantized"
            raise ConfigError(f"fields of {module.name}", found, "a model without scaled activations", hint)
        return None
    if len(zeros) != 1 or not {"qweight", "scales"} <= stored.keys():
        found = Described("only " + ", ".join(sorted(stored)))
        raise ConfigError(f"fields of {module.name}", found, "qweight, qzeros and scales")
    (a, b), kind = _matrix(module, "qweight", ("i32", "i16"))
    (c, d), scale_dtype = _matrix(module, "scales", _SCALES)
    point, _ = _matrix(module, zeros[0], ("i32", *_SCALES))
    integers = stored[zeros[0]][1] == "i32"
    if kind == "i32" and integers and d == 8 * b and point == (c, b) and a % c == 0:
        return Found("gemm", (d, a), a // c, scale_dtype)
    if kind == "i32" and integers and c == a and point[0] == a and d == 8 * point[1]:
        return Found("gemv", (a, 8 * b), _group(module, 8 * b, d, declared), scale_dtype)
    if kind == "i16" and not integers and d == 4 * a and point == (c, d) and b % 64 == 0:
        return Found("gemv_fast", (d, b), _group(module, b, c, declared), scale_dtype)
    shapes = f"qweight {kind} {(a, b)}, {zeros[0]} {stored[zeros[0]][1]} {point} and scales {(c, d)}"
    if kind == "i32" and integers and b == d and point == (c, b // 8):
        raise ConfigError(
            f"fields of {module.name}", Described(f"{shapes}, the layout of GPTQ"), "one of AWQ"
        )
    if kind == "i32" and 8 * d == 4 * b:
        raise ConfigError(
            f"fields of {module.name}",
            Described(f"{shapes}, the layout of Marlin"),
            "gemm, gemv or gemv_fast",
        )
    raise ConfigError(f"fields of {module.name}", Described(shapes), "shapes of gemm, gemv or gemv_fast")


def _matrix(module: ModuleFields, field: str, dtypes: tuple[str, ...]) -> tuple[tuple[int, int], str]:
    shape, dtype = module.stored[field]
    if len(shape) != 2 or not all(shape) or dtype not in dtypes:
        allowed = f"a matrix of {' or '.join(dtypes)}"
        raise ConfigError(f"{field} of {module.name}", Described(f"{dtype} of shape {shape}"), allowed)
    return (shape[0], shape[1]), dtype


def _group(module: ModuleFields, columns: int, room: int, declared: int | None) -> int:
    """Columns of a group where scales are padded: as declared, or the only usual number that gives such padding."""
    first = [] if declared is None else [declared or columns]
    for group in (*first, *USUAL, columns):
        if columns % group == 0 and padded_groups(columns, group) == room:
            return group
    allowed = f"as many as groups of {', '.join(map(str, USUAL))} of {columns} columns need"
    raise ConfigError(f"scales of {module.name}", Described(f"room for {room} groups"), allowed)
