"""What the stored tensors of one module tell: shape, width, groups, order, and whether it is symmetric.

Configurations are often wrong or silent; tensors are believed before them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformats.errors import ConfigError, Described
from qformats.interfaces import ModuleFields
from qformats_gptq.config import BITS
from qformats_gptq.zeros import VERSIONS, constant_words

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Found", "examine", "in_order", "normal_order"]

_SCALES = ("f16", "bf16", "f32")
_INDICES = {"i32": "int32", "i64": "int64"}


@dataclass(frozen=True)
class Found:
    """A quantized module.

    Attributes
    ----------
    shape : tuple of int
        ``(N, K)`` of its weight.
    bits : int
        Width of a code.
    group_size : int
        Columns of a group; 0 for the whole row.
    ordered : bool
        Whether column `k` belongs to group ``k // group_size``.
    symmetric : bool
        Whether every zero point is the middle code.
    version : str or None
        How zero points are stored: ``"gptq"``, ``"gptq_v2"``, or ``None`` where only the weights can tell.
    scale_dtype : str
        Short name of the dtype of the scales.
    flat : bool
        Whether ``g_idx`` is there and all zeros.
    """

    shape: tuple[int, int]
    bits: int
    group_size: int
    ordered: bool
    symmetric: bool
    version: str | None
    scale_dtype: str
    flat: bool


def examine(
    module: ModuleFields, bits: int, group_size: int | None, symmetric: bool | None, version: str | None
) -> Found | None:
    """Read the shapes and the small fields of a module; ``None`` if its weight is plain.

    Parameters
    ----------
    module : ModuleFields
        The module.
    bits : int
        Width of a code where there is no ``g_idx``, which tells it.
    group_size : int or None
        What is declared: columns of a group, 0 for the whole row, or nothing.
    symmetric : bool or None
        What is declared.
    version : str or None
        ``checkpoint_format`` as declared.

    Raises
    ------
    ConfigError
        If fields are missing or contradict each other.
    """
    stored = module.stored
    if "qweight" not in stored and "qzeros" not in stored:
        return None
    for name in ("qweight", "qzeros", "scales"):
        if name not in stored:
            found = Described("only " + ", ".join(sorted(stored)))
            raise ConfigError(f"fields of {module.name}", found, "qweight, qzeros and scales")
    words, outputs = _matrix(module, "qweight", ("i32",))
    groups, scaled = _matrix(module, "scales", _SCALES)
    if scaled == 8 * outputs:
        # 4-bit codes of AWQ (gemm) lie along the outputs: 8 of them in a word.
        found = Described(
            f"qweight of {words} x {outputs} and scales of {groups} x {scaled}, the layout of AWQ"
        )
        raise ConfigError(f"fields of {module.name}", found, "those of GPTQ, with as many columns")
    length, kind = _order(module)
    if length:
        bits, rest = divmod(32 * words, length)
        if rest or bits not in BITS:
            allowed = f"{', '.join(map(str, BITS[:-1]))} or {BITS[-1]} / 32 of the {length} columns in g_idx"
            raise ConfigError(f"qweight of {module.name}", Described(f"{words} rows"), allowed)
    else:
        bits = _width(module, outputs) or bits
    columns = 32 * words // bits
    if outputs % 32 or columns % 32 or words * 32 != columns * bits:
        allowed = "outputs and columns that are multiples of 32"
        raise ConfigError(f"weight of {module.name}", Described(f"{outputs} x {columns}"), allowed)
    for name, found_shape, wanted in (
        ("scales", (groups, scaled), (groups, outputs)),
        ("qzeros", _matrix(module, "qzeros", ("i32",)), (groups, outputs * bits // 32)),
    ):
        if found_shape != wanted or not 0 < groups <= columns:
            allowed = f"{wanted} for a weight of ({outputs}, {columns}) in {bits} bits"
            raise ConfigError(f"{name} of {module.name}", Described(f"shape {found_shape}"), allowed)
    order = normal_order(_array(module, "g_idx", kind), groups) if length else None
    size, ordered = _group_size(module.name, columns, groups, group_size, order)
    known: str | None = version
    if symmetric is not False:
        known, symmetric = _symmetry(module, bits, outputs, symmetric, version)
    flat = order is not None and not order.any()
    return Found((outputs, columns), bits, size, ordered, symmetric, known, stored["scales"][1], flat)


def _matrix(module: ModuleFields, field: str, dtypes: tuple[str, ...]) -> tuple[int, int]:
    shape, dtype = module.stored[field]
    if len(shape) != 2 or not all(shape) or dtype not in dtypes:
        allowed = f"a matrix of {' or '.join(dtypes)}"
        raise ConfigError(f"{field} of {module.name}", Described(f"{dtype} of shape {shape}"), allowed)
    return shape[0], shape[1]


def _order(module: ModuleFields) -> tuple[int, str]:
    """Columns and dtype of ``g_idx``; none where it is absent or empty."""
    if "g_idx" not in module.stored:
        return 0, "i32"
    shape, dtype = module.stored["g_idx"]
    if len(shape) != 1 or dtype not in _INDICES:
        raise ConfigError(
            f"g_idx of {module.name}", Described(f"{dtype} of shape {shape}"), "i32 of shape (K,)"
        )
    return shape[0], dtype


def _width(module: ModuleFields, outputs: int) -> int | None:
    """Width of a code by that of the zero points: modules of one model may differ, whatever is declared for all."""
    shape, dtype = module.stored["qzeros"]
    bits, rest = divmod(32 * shape[-1], outputs) if len(shape) == 2 and dtype == "i32" else (0, 0)
    return bits if not rest and bits in BITS else None


def declaration(module: ModuleFields) -> dict[str, Any] | None:
    """What a folder with such a module would declare, for those that declare nothing; ``None`` if it is not GPTQ's.

    AWQ gives its tensors the same names, but packs its codes along the outputs: its scales have more columns than its
    codes.
    """
    shapes = [module.stored.get(field, ((), "")) for field in ("qweight", "qzeros", "scales")]
    if any(len(shape) != 2 or not all(shape) for shape, _ in shapes):
        return None
    outputs, scaled, bits = shapes[0][0][1], shapes[2][0][1], _width(module, shapes[0][0][1])
    if bits is None or outputs != scaled or shapes[0][1] != "i32":
        return None
    return {"quant_method": "gptq", "bits": bits}


def _array(module: ModuleFields, field: str, kind: str) -> np.ndarray[Any, Any]:
    import numpy as np

    return np.frombuffer(module.read(field), _INDICES[kind])


def normal_order(g_idx: np.ndarray[Any, Any], groups: int) -> np.ndarray[Any, Any]:
    """Groups of columns as numbers from 0; some programs count from the last group backwards.

    Raises
    ------
    ConfigError
        If there is no such group.
    """
    import numpy as np

    order = np.where(g_idx < 0, g_idx + groups, g_idx)
    if len(order) and (order.min() < 0 or order.max() >= groups):
        found = Described(f"groups {int(g_idx.min())} to {int(g_idx.max())}")
        raise ConfigError("g_idx", found, f"0 to {groups - 1}, one for each row of scales")
    return order.astype(np.int32)


def in_order(order: np.ndarray[Any, Any], group_size: int) -> bool:
    """Whether columns belong to their groups one after the other; `group_size` 0 stands for one group."""
    import numpy as np

    return bool((order == np.arange(len(order)) // (group_size or max(1, len(order)))).all())


def _sizes(
    columns: int, groups: int, declared: int | None, order: np.ndarray[Any, Any] | None
) -> Iterator[int]:
    """Columns of a group, the most likely first; 0 for the whole row."""
    import numpy as np

    if declared is not None:
        yield declared
    if groups == 1:
        yield 0
    if order is not None:
        yield int(np.bincount(order).max())
    # Without any other sign: a power of two, or as few columns as there can be.
    yield from (1 << power for power in range(3, 24))
    yield -(-columns // groups)


def _group_size(
    name: str, columns: int, groups: int, declared: int | None, order: np.ndarray[Any, Any] | None
) -> tuple[int, bool]:
    """Columns of a group, and whether they follow each other."""
    possible = [
        size
        for size in _sizes(columns, groups, declared, order)
        if (groups == 1 if size == 0 else -(-columns // size) == groups)
    ]
    if not possible:
        allowed = f"a number that divides {columns} columns"
        raise ConfigError(f"scales of {name}", Described(f"{groups} groups"), allowed)
    if order is None:
        return possible[0], True
    for size in possible:
        if in_order(order, size):
            return size, True
    return possible[0], False


def _symmetry(
    module: ModuleFields, bits: int, outputs: int, symmetric: bool | None, version: str | None
) -> tuple[str | None, bool]:
    """How zero points are stored, and whether all of them are the middle code."""
    words = _array(module, "qzeros", "i32").reshape(-1, outputs * bits // 32)
    middle = 1 << (bits - 1)
    for name, offset in VERSIONS.items():
        if bool((words == constant_words(bits, outputs, middle - offset)).all()):
            if version is not None and name != version:
                warnings.warn(
                    f"GPTQ zero points are {middle - offset}, as checkpoint_format {name!r} stores them, although "
                    f"{version!r} is declared: they are read as {name!r}",
                    UserWarning,
                    stacklevel=2,
                )
            return name, True
    if symmetric:
        warnings.warn(
            f"GPTQ zero points differ although the model is declared symmetric: {module.name} is read as asymmetric",
            UserWarning,
            stacklevel=2,
        )
    return version, False
