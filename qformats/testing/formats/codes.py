"""Checks of the way from codes to bytes and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qformats.interfaces import Packer
from qformats.testing.canonical import canonical_values
from qformats.testing.compare import same_canonical, same_values
from qformats.testing.failure import NotApplicable, expect, reported
from qformats.testing.weights import any_codes, normal, sample, usual_shape, wild_params

if TYPE_CHECKING:
    from qformats.numbers import Grid

__all__ = ["check_codes_survive", "check_project_lands_on_grid", "check_values_are_canonical"]


def _grid(packer: Packer) -> Grid:
    if packer.grid is None:
        raise NotApplicable("plain numbers have no grid" if packer.dense_dtype else "the format has no grid")
    return packer.grid


@reported
def check_codes_survive(packer: Packer) -> None:
    """Codes and parameters come back from bytes as they were, every code of the grid.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_codes_survive
    >>> check_codes_survive(qformats.packer("gguf:q4_0"))
    """
    grid, shape = _grid(packer), usual_shape(packer)
    for what, quantized in (
        ("rounded weights", grid.quantize(normal(shape))),
        ("every code", any_codes(packer, shape)),
    ):
        packed = packer.pack(quantized)
        again = packer.unpack(packed)
        same_canonical(again, quantized, f"{what} after pack and unpack")
        same_values(packer.dequantize(packed), quantized.dequantize(), f"values of {what}")


@reported
def check_values_are_canonical(packer: Packer) -> None:
    """Decoding gives ``fl(fl(scale * level) + minimum)`` in float32, bit for bit: two roundings, nothing fused.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_values_are_canonical
    >>> check_values_are_canonical(qformats.packer("gguf:q4_0"))
    """
    if not packer.spec.level:
        raise NotApplicable("the format has no canonical form (support level 0)")
    shape = usual_shape(packer)
    tensors = [("weights", sample(packer, shape))]
    if packer.grid is not None:
        tensors += [
            (f"codes under odd scales ({seed})", packer.pack(any_codes(packer, shape, seed)))
            for seed in (2, 3)
        ]
    for what, packed in tensors:
        expected = canonical_values(packer.unpack(packed))
        same_values(packer.dequantize(packed), expected, f"values of {what}")


@reported
def check_project_lands_on_grid(packer: Packer) -> None:
    """``grid.project`` makes any parameters storable: ``validate`` takes them, and ``pack``.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_project_lands_on_grid
    >>> check_project_lands_on_grid(qformats.packer("gguf:q4_0"))
    """
    grid, shape = _grid(packer), usual_shape(packer)
    weight = normal(shape)
    for seed in range(3):
        params = grid.project(wild_params(packer, shape, seed))
        codes = grid.encode(weight, params)
        low, high = int(codes.min()), int(codes.max())
        expect(0 <= low and high < grid.levels, f"codes from {low} to {high}", f"0 to {grid.levels - 1}")
        quantized = grid.quantized(codes, params)
        grid.validate(quantized)
        if grid.independent:
            same_values(
                grid.project(params).scale.float(), params.scale.float(), "scales projected once more"
            )
        same_canonical(
            packer.unpack(packer.pack(quantized)), quantized, "projected parameters after pack and unpack"
        )
