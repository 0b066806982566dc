"""Numbers for people: units, signs, and no meaningless digits."""

from __future__ import annotations

import math

from qformats.comparing.report import Estimate
from qformats.numbers.error import percent as written_percent

__all__ = [
    "MINUS",
    "NONE",
    "PERCENT",
    "TIMES",
    "count",
    "decimal",
    "error_percent",
    "estimate",
    "fixed",
    "percent",
    "power",
    "share",
    "signed",
    "size",
    "tick",
    "times",
]

MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NARROW NO-BREAK SPACE}%"
TIMES = "\N{MULTIPLICATION SIGN}"
NONE = "\N{EN DASH}"
"""Shown instead of a number that does not exist."""
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _special(value: float | None) -> str | None:
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return None


def _minus(written: str) -> str:
    return written.replace("-", MINUS)


def fixed(value: float | None, places: int) -> str:
    """So many decimal places."""
    special = _special(value)
    if special is not None or value is None:
        return special or NONE
    written = f"{value:,.{places}f}"
    # A small negative number that rounds to nothing is nothing.
    return _minus(written if float(written.replace(",", "")) else written.lstrip("-"))


def decimal(value: float | None, digits: int = 3) -> str:
    """So many significant digits; powers of ten for what is very small or large."""
    special = _special(value)
    if special is not None or value is None:
        return special or NONE
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -5 < exponent < 7:
        return fixed(value, max(0, digits - 1 - exponent))
    mantissa = f"{value:.{digits - 1}e}".split("e")[0]
    return f"{_minus(mantissa)} {TIMES} {power(exponent)}"


def tick(value: float) -> str:
    """A round number at an axis: without the zeros that only fill up digits."""
    written = decimal(value, 4)
    return written.rstrip("0").rstrip(".") if "." in written and TIMES not in written else written


def power(exponent: int) -> str:
    """A power of ten."""
    return "1" if exponent == 0 else f"10{str(exponent).translate(_SUPERSCRIPT)}"


def estimate(measured: Estimate | None, scale: float = 1, unit: str = "", sign: bool = False) -> str:
    """A mean with its standard error, to two digits of the error: ``12.34 ± 0.21``."""
    if measured is None:
        return NONE
    value, error = measured.value * scale, measured.error * scale
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{signed(value) if sign else decimal(value)}{unit}"
    places = min(9, max(0, 1 - math.floor(math.log10(error))))
    written = fixed(value, places)
    if sign and value > 0:
        written = f"+{written}"
    return f"{written} ± {fixed(error, places)}{unit}"


def signed(value: float | None, digits: int = 3) -> str:
    """With a plus where it is positive."""
    written = decimal(value, digits)
    return f"+{written}" if value is not None and value > 0 else written


def percent(value: float | None, digits: int = 3) -> str:
    """A share of one as a percentage, to so many digits."""
    return decimal(None if value is None else value * 100, digits) + PERCENT


def error_percent(error: float) -> str:
    """A relative error, in the digits that it has in the terminal too."""
    return written_percent(error).replace("%", PERCENT) if math.isfinite(error) else _special(error) or NONE


def share(part: float, whole: float) -> str:
    """A part of something as a whole percentage, with a tenth where it is less than ten.

    Nearly nothing is not written as nothing, nor nearly everything as everything.
    """
    if not whole:
        return NONE
    value = 100 * part / whole
    written = fixed(value, 0 if value >= 9.95 else 1)
    if 0 < value < 0.05:
        written = "<0.1"
    elif 99.5 <= value < 100:
        written = ">99"
    return written + PERCENT


def times(whole: float, part: float) -> str:
    """How many times as large, with the sign for it."""
    return NONE if not part else f"{decimal(whole / part, 2 if whole / part < 10 else 3)}{TIMES}"


def size(nbytes: float) -> str:
    """Bytes in powers of 1000, three digits."""
    units = ["TB", "GB", "MB", "kB", "B"]
    while nbytes >= 999.5 and len(units) > 1:
        nbytes /= 1000
        units.pop()
    places = 0 if units[-1] == "B" or nbytes >= 99.95 else 1 if nbytes >= 9.995 else 2
    return f"{nbytes:.{places}f}\N{NO-BREAK SPACE}{units[-1]}"


def count(number: int, one: str, many: str | None = None) -> str:
    """A number of things: ``1 window``, ``12 windows``."""
    return f"{number:,}\N{NO-BREAK SPACE}{one if number == 1 else many or one + 's'}"
