"""Checks of quantizers: each a function of a quantizer, on the smallest packers that there are."""

from __future__ import annotations

from qformats.errors import ConfigError, NonFiniteError, PluginError, QFormatsError
from qformats.interfaces import Option, Quantizer
from qformats.testing.companions import companions
from qformats.testing.compare import same_canonical, same_fields, unchanged
from qformats.testing.failure import Mismatch, NotApplicable, expect, raised, reported
from qformats.testing.weights import hard_weights, normal

__all__ = [
    "check_encode_packs_what_quantize_gives",
    "check_error_is_small",
    "check_hard_weights_are_quantized",
    "check_importance_is_taken",
    "check_options",
    "check_quantizer_refuses_nan",
    "check_result_is_on_the_grid",
    "check_same_codes_twice",
    "check_weight_stays",
]

_SHAPE = (6, 64)
_WORSE = 4.0
"""How many times the squared error of plain rounding a quantizer may make: one that does is broken, not clever."""


@reported
def check_result_is_on_the_grid(quantizer: Quantizer) -> None:
    """Codes and parameters lie on the grid, whichever kind it is and whatever dtype the weight has.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_result_is_on_the_grid
    >>> check_result_is_on_the_grid(registry().quantizer("rtn"))
    """
    for packer in companions():
        for dtype in ("f32", "f16", "bf16"):
            quantized = quantizer.quantize(normal(_SHAPE, dtype=dtype), packer)
            what = f"codes of {quantized.shape} for {packer.name}"
            expect(quantized.shape == _SHAPE, what, str(_SHAPE))
            try:
                packer.grid.validate(quantized)
            except QFormatsError as error:
                hint = "Round parameters with grid.project, and choose codes with grid.encode"
                raise Mismatch(f"off the grid of {packer.name}: {error}", "a result on it", hint) from error


@reported
def check_weight_stays(quantizer: Quantizer) -> None:
    """The weight and the importance are not changed.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_weight_stays
    >>> check_weight_stays(registry().quantizer("rtn"))
    """
    importance = normal(_SHAPE[1:], seed=3).abs()
    for packer in companions():
        for name, weight in [("normal weights", normal(_SHAPE)), *hard_weights(_SHAPE)]:
            with unchanged(f"quantize of {name} for {packer.name}", weight, importance):
                quantizer.quantize(weight, packer)
        weight = normal(_SHAPE)
        with unchanged(f"quantize with an importance for {packer.name}", weight, importance):
            quantizer.quantize(weight, packer, importance)


@reported
def check_same_codes_twice(quantizer: Quantizer) -> None:
    """The same weight gives the same codes and parameters again.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_same_codes_twice
    >>> check_same_codes_twice(registry().quantizer("rtn"))
    """
    for packer in companions():
        first, second = (quantizer.quantize(normal(_SHAPE), packer) for _ in range(2))
        same_canonical(second, first, f"weights quantized again for {packer.name}")


@reported
def check_importance_is_taken(quantizer: Quantizer) -> None:
    """With an importance of each column the result is on the grid still, also where some columns do not count.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_importance_is_taken
    >>> check_importance_is_taken(registry().quantizer("rtn"))
    """
    import torch

    weight = normal(_SHAPE)
    some = torch.ones(_SHAPE[1])
    some[::3] = 0
    for packer in companions():
        for importance in (torch.ones(_SHAPE[1]), normal(_SHAPE[1:], seed=3).abs(), some):
            packer.grid.validate(quantizer.quantize(weight, packer, importance))


@reported
def check_hard_weights_are_quantized(quantizer: Quantizer) -> None:
    """Zeros, constants, outliers and subnormal weights end on the grid, and zeros stay zero.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_hard_weights_are_quantized
    >>> check_hard_weights_are_quantized(registry().quantizer("rtn"))
    """
    for packer in companions():
        for name, weight in hard_weights(_SHAPE):
            quantized = quantizer.quantize(weight, packer)
            packer.grid.validate(quantized)
            values = quantized.dequantize()
            what = f"{name} for {packer.name}"
            expect(bool(values.isfinite().all()), f"infinity or NaN for {what}", "finite values")
            expect(bool(weight.any()) or not bool(values.any()), f"other values for {what}", "0 everywhere")


@reported
def check_error_is_small(quantizer: Quantizer) -> None:
    """Normal weights keep their values: at most four times the squared error of the format's own rounding.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_error_is_small
    >>> check_error_is_small(registry().quantizer("rtn"))
    """
    weight = normal(_SHAPE)
    for packer in companions():
        plain = packer.grid.quantize(weight)
        errors = [
            float((quantized.dequantize() - weight).square().sum())
            for quantized in (quantizer.quantize(weight, packer), plain)
        ]
        limit = _WORSE * errors[1]
        found = f"a squared error of {errors[0]:.3g} for {packer.name}"
        expect(errors[0] <= limit, found, f"at most {limit:.3g}, {_WORSE:g} times that of plain rounding")


@reported
def check_encode_packs_what_quantize_gives(quantizer: Quantizer) -> None:
    """``encode`` gives the bytes of ``pack(quantize)``.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_encode_packs_what_quantize_gives
    >>> check_encode_packs_what_quantize_gives(registry().quantizer("rtn"))
    """
    for packer in companions():
        for name, weight in [("normal weights", normal(_SHAPE)), *hard_weights(_SHAPE)]:
            expected = packer.pack(quantizer.quantize(weight, packer))
            found = quantizer.encode(weight, packer)
            same_fields(found, expected, f"encode of {name} for {packer.name}")


@reported
def check_quantizer_refuses_nan(quantizer: Quantizer) -> None:
    """``encode`` raises NonFiniteError for NaN and infinity.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_quantizer_refuses_nan
    >>> check_quantizer_refuses_nan(registry().quantizer("rtn"))
    """
    for packer in companions():
        for bad in (float("nan"), float("inf")):
            weight = normal(_SHAPE)
            weight[2, 3] = bad
            try:
                quantizer.encode(weight, packer)
            except NonFiniteError:
                continue
            hint = "Call qformats.kernels.dense.require_finite first"
            raise Mismatch(f"bytes for weights with {bad}", "NonFiniteError", hint)


@reported
def check_options(quantizer: Quantizer) -> None:
    """Options have names and help of their own, and nonsense for a value is refused with ConfigError, or taken.

    Examples
    --------
    >>> from qformats.registry import registry
    >>> from qformats.testing import check_options
    >>> check_options(registry().quantizer("rtn"))
    """
    options = quantizer.options
    if not options:
        raise NotApplicable("the quantizer has no options")
    expect(all(isinstance(option, Option) for option in options), f"options {options!r}", "Option objects")
    names = [option.name for option in options]
    expect(len({*names}) == len(names), f"options {', '.join(names)}", "a name of its own for each")
    for option in options:
        expect(
            option.name and option.help, f"the option {option.name!r} without help", "a line that tells users"
        )
        _nonsense(quantizer, option.name)


def _nonsense(quantizer: Quantizer, option: str) -> None:
    """A value that is nothing."""
    before = quantizer.given
    quantizer.given = {option: "no such value"}
    try:
        quantizer.quantize(normal(_SHAPE), companions()[0])
    except PluginError as error:
        hint = "Read options with qformats.interfaces.number, size or switch"
        raise Mismatch(f"for {option}='no such value': {raised(error)}", "ConfigError", hint) from error
    except ConfigError:
        return
    finally:
        quantizer.given = before
