"""Checks of how well values are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.errors import NonFiniteError, QFormatsError
from qformats.interfaces import Packer
from qformats.testing.failure import Mismatch, NotApplicable, expect, raised, reported
from qformats.testing.weights import hard_weights, normal, usual_shape, writable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_hard_weights", "check_not_finite_is_refused", "check_sqnr_floor"]

_COLUMNS = 4096
_ROWS = 32
_HUGE = 1e38


@reported
def check_sqnr_floor(packer: Packer) -> None:
    """Normal weights, 4096 per row, reach the signal-to-noise ratio that the descriptor declares.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_sqnr_floor
    >>> check_sqnr_floor(qformats.packer("gguf:q4_0"))
    """
    floor = packer.spec.sqnr_floor_db
    if floor is None:
        raise NotApplicable("the descriptor declares no sqnr_floor_db")
    writable(packer)
    packer.require((_ROWS, _COLUMNS))
    weight = normal((_ROWS, _COLUMNS))
    error = packer.dequantize(packer.encode_reference(weight)) - weight
    reached = 10 * float((weight.double().square().sum() / error.double().square().sum()).log10())
    expect(reached >= floor, f"{reached:.2f} dB", f"at least {floor:g} dB, as sqnr_floor_db says")


@reported
def check_hard_weights(packer: Packer) -> None:
    """Zeros, constants, outliers and subnormal weights are stored, and decode to values of their size.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_hard_weights
    >>> check_hard_weights(qformats.packer("gguf:q4_0"))
    """
    writable(packer)
    for name, weight in hard_weights(usual_shape(packer)):
        values = packer.dequantize(packer.encode_reference(weight))
        expect(bool(values.isfinite().all()), f"infinity or NaN for {name}", "finite values")
        reach = float(weight.abs().max())
        if not reach:
            expect(not bool(values.any()), f"{float(values.abs().max())} for {name}", "0 everywhere")
        # Scales are rounded, and those below the smallest one that can be stored are lost or become that one.
        limit, most = 2 * reach + 1e-4, float(values.abs().max())
        expect(
            most <= limit, f"a value of {most:g} for {name}", f"at most {limit:g}, twice the largest weight"
        )


@reported
def check_not_finite_is_refused(packer: Packer) -> None:
    """NaN and infinity raise NonFiniteError; weights beyond every scale raise it, or stay finite.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_not_finite_is_refused
    >>> check_not_finite_is_refused(qformats.packer("gguf:q4_0"))
    """
    writable(packer)
    shape = usual_shape(packer)
    for bad in (float("nan"), float("inf"), float("-inf")):
        for dtype in ("f32", "f16", "bf16"):
            weight = normal(shape, dtype=dtype)
            weight[-1, shape[1] // 2] = bad
            _refused(packer, weight, f"{bad} in {dtype}")
    weight = normal(shape)
    weight[0, 0] = _HUGE
    try:
        values = packer.dequantize(packer.encode_reference(weight))
    except NonFiniteError:
        return
    expect(
        bool(values.isfinite().all()), f"infinity or NaN for {_HUGE:g}", "NonFiniteError, or finite values"
    )


def _refused(packer: Packer, weight: Tensor, what: str) -> None:
    try:
        packer.encode_reference(weight)
    except NonFiniteError:
        return
    except QFormatsError as error:
        raise Mismatch(f"for {what}: {raised(error)}", "NonFiniteError") from error
    hint = "Call qformats.kernels.dense.require_finite first"
    raise Mismatch(f"bytes for weights with {what}", "NonFiniteError", hint)
