"""Checks of shapes: odd ones are held, others are refused with a sentence."""

from __future__ import annotations

from qformats.errors import PluginError, QFormatsError
from qformats.interfaces import Packer
from qformats.testing.compare import same_values
from qformats.testing.failure import Mismatch, NotApplicable, expect, raised, reported
from qformats.testing.weights import normal, sample, shapes, usual_shape, writable

__all__ = ["check_bad_shapes_are_refused", "check_odd_shapes"]

_MOST = 12
"""Shapes that are tried."""
_REFUSE = "Call self.require(dense.shape) first"
_ACCEPT = "Make pack work for it, or refuse it in veto. Without elements, view and unflatten need every size"


@reported
def check_odd_shapes(packer: Packer) -> None:
    """Whatever ``veto`` admits is held: one row, one block, columns that do not fill a byte.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_odd_shapes
    >>> check_odd_shapes(qformats.packer("gguf:q4_0"))
    """
    if not packer.readable:
        raise NotApplicable("the format can only be copied")
    possible = shapes(packer)
    if not possible:
        raise NotApplicable("veto refuses every shape that is tried")
    # Small ones, and some of each size.
    for shape in {*possible[: _MOST // 2], *possible[:: max(1, len(possible) // (_MOST // 2))]}:
        packed = sample(packer, shape)
        values = packer.dequantize(packed)
        expect(tuple(values.shape) == shape, f"values of shape {tuple(values.shape)}", str(shape))
        expect(
            packed.nbytes == packer.nbytes(shape),
            f"{packed.nbytes} bytes of {shape}",
            str(packer.nbytes(shape)),
        )
        if packer.spec.level:
            same_values(packer.unpack(packed).dequantize(), values, f"unpacked values of {shape}")


@reported
def check_bad_shapes_are_refused(packer: Packer) -> None:
    """``veto`` answers for any shape with a clause or None, and what it refuses raises ShapeError or ConfigError.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_bad_shapes_are_refused
    >>> check_bad_shapes_are_refused(qformats.packer("gguf:q4_0"))
    """
    rows, columns = usual_shape(packer)
    for shape in [(), (columns,), (2, rows, columns), (rows, columns + 1), (rows + 1, columns), (rows, 1)]:
        problem = packer.veto(shape)
        expect(
            problem is None or (isinstance(problem, str) and problem and not problem.endswith(".")),
            f"veto({shape}) {problem!r}",
            "None, or a clause without a full stop",
        )
        if packer.writable:
            _agrees(packer, shape, problem)
    for shape in [(0, columns), (rows, 0)]:
        if packer.writable and not packer.veto(shape):
            _clean(packer, shape)
    writable(packer)


def _agrees(packer: Packer, shape: tuple[int, ...], problem: str | None) -> None:
    error = _clean(packer, shape, problem)
    if problem is None:
        expect(error is None, f"veto({shape}) None, and then {error}", "one or the other")
    else:
        expect(error is not None, f"bytes for {shape}, which veto refuses ({problem})", "ShapeError", _REFUSE)


def _clean(packer: Packer, shape: tuple[int, ...], problem: str | None = None) -> QFormatsError | None:
    """What encoding a weight of this shape raises; a failure if that is not one of the framework's own errors."""
    try:
        packer.encode_reference(normal(shape))
    except PluginError as error:
        told = f"for a weight of {shape}: {raised(error)}"
        if problem is None:
            raise Mismatch(told, "bytes, since veto accepts this shape", _ACCEPT) from error
        raise Mismatch(told, "ShapeError", _REFUSE) from error
    except QFormatsError as error:
        return error
    return None
