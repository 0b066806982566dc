"""The frequency factors of Llama 3's rotary scaling, and the scaling behind given factors.

GGUF has no key for this scaling. The converter stores one float32 factor for each rotary frequency
(tensor ``rope_freqs.weight``), by which llama.cpp divides the angle. Going back means finding parameters
that give these factors again; only a search whose result reproduces the stored values is accepted.

Source: ggml-org/llama.cpp:conversion/llama.py; transformers:modeling_rope_utils.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from qformats.errors import Described, UnsupportedModelError

__all__ = ["factors", "fit"]

_FACTORS = (8.0, 32.0, 16.0, 4.0, 2.0, 64.0)
_CONTEXTS = (8192, *(2**n for n in range(5, 21) if n != 13))
# Upstream takes torch's float32 power, whose last bit depends on the CPU's vector unit (measured: default,
# AVX2 and AVX-512 kernels differ from each other by up to 2 units in the last place for head sizes that
# are not powers of two, and agree for those that are).
_ULPS = 2

Factors = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


def factors(rope: dict[str, Any], head_dim: int) -> Factors:
    """Values of ``rope_freqs.weight``.

    Parameters
    ----------
    rope : dict
        ``rope_parameters`` of type llama3: rope_theta, factor, low_freq_factor, high_freq_factor,
        original_max_position_embeddings (positions).
    head_dim : int
        Elements per head.

    Returns
    -------
    numpy.ndarray
        float32, ``(head_dim/2,)``, dimensionless: 1 keeps a frequency, `factor` divides it.

    Notes
    -----
    Float32 in the order of upstream's torch code (``a / tensor`` is a reciprocal and a product there);
    the power is rounded once from float64, so that the bytes do not depend on the machine.
    """
    return _factors(
        rope["rope_theta"],
        head_dim,
        rope["factor"],
        rope["low_freq_factor"],
        rope["high_freq_factor"],
        rope["original_max_position_embeddings"],
    )


def _reciprocal_wavelengths(theta: float, head_dim: int) -> tuple[Factors, Factors]:
    one = np.float32(1)
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(np.float32(theta)), exponents.astype(np.float64)).astype(np.float32)
    wavelengths = (one / (one / powers)) * np.float32(2 * math.pi)
    return wavelengths, one / wavelengths


def _factors(theta: float, head_dim: int, factor: float, low: float, high: float, context: float) -> Factors:
    one = np.float32(1)
    wavelengths, reciprocals = _reciprocal_wavelengths(theta, head_dim)
    with np.errstate(all="ignore"):
        smooth = (reciprocals * np.float32(context) - np.float32(low)) / np.float32(high - low)
        between = one / ((one - smooth) / np.float32(factor) + smooth)
        long = np.where(wavelengths > np.float32(context / low), np.float32(factor), between)
        return np.where(wavelengths < np.float32(context / high), one, long).astype(np.float32)


def _ulps(a: Factors, b: Factors) -> int:
    distance = np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32).astype(np.int64))
    return int(distance.max())


def fit(values: Factors, theta: float, context_length: int) -> dict[str, Any]:
    """Find the llama3 scaling that gives these factors.

    Parameters
    ----------
    values : numpy.ndarray
        float32, ``(head_dim/2,)``: ``rope_freqs.weight`` of a file.
    theta : float
        Base of the rotary frequencies.
    context_length : int
        Positions the model was made for; only orders the search.

    Returns
    -------
    dict
        factor, low_freq_factor, high_freq_factor, original_max_position_embeddings. The last three are
        defined up to a common factor; the usual contexts (8192 first) are tried first. Empty if every
        factor is 1.

    Raises
    ------
    UnsupportedModelError
        If no llama3 scaling gives these values.
    """
    values = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    if not len(values) or not np.isfinite(values).all() or (values <= 0).any():
        raise _unknown(values)
    if (values == 1).all():
        return {}
    best: tuple[int, dict[str, Any]] | None = None
    for factor, low, high, context in _candidates(values, theta, context_length):
        if not (0 < low < high and factor >= 1 and math.isfinite(high)):
            continue
        error = _ulps(_factors(theta, 2 * len(values), factor, low, high, context), values)
        if error <= _ULPS and (best is None or error < best[0]):
            best = (
                error,
                {
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": context,
                },
            )
            if error == 0:
                break
    if best is None:
        raise _unknown(values)
    return best[1]


def _candidates(
    values: Factors, theta: float, context_length: int
) -> Iterator[tuple[float, float, float, int]]:
    plateau = len(values) > 1 and values[-1] == values[-2] != 1
    scales = (float(values[-1]),) if plateau else (float(values[-1]), *_FACTORS)
    for factor in scales:
        if factor <= 1:
            continue
        from_length = int(context_length // factor)
        contexts = tuple(dict.fromkeys(c for c in (8192, from_length, *_CONTEXTS) if c > 0))
        for context in contexts:
            yield factor, 1.0, 4.0, context
        for low, high, context in (
            *_on_line(values, theta, factor, contexts),
            *_in_gap(values, theta, factor),
        ):
            for digits in (2, 4):
                yield factor, round(low, digits), round(high, digits), context
            yield factor, low, high, context


def _on_line(
    values: Factors, theta: float, factor: float, contexts: tuple[int, ...]
) -> Iterator[tuple[float, float, int]]:
    """Parameters from two or more interpolated factors, by least squares in float64.

    ``smooth = (context / wavelength - low) / (high - low)`` is a line over ``1 / wavelength``.
    """
    reciprocals, smooth = _interpolated(values, theta, factor)
    if len(smooth) < 2 or np.ptp(reciprocals) == 0:
        return
    slope, intercept = np.polyfit(reciprocals / reciprocals.max(), smooth, 1)
    slope /= reciprocals.max()
    if slope <= 0:
        return
    for context in contexts:
        spread = float(context / slope)
        yield -float(intercept) * spread, (1 - float(intercept)) * spread, context


def _in_gap(values: Factors, theta: float, factor: float) -> Iterator[tuple[float, float, int]]:
    """Parameters if at most one factor is interpolated: any that keep the others on their sides."""
    reciprocals, smooth = _interpolated(values, theta, factor)
    kept = _reciprocal_wavelengths(theta, 2 * len(values))[1].astype(np.float64)[values == 1]
    divided = _reciprocal_wavelengths(theta, 2 * len(values))[1].astype(np.float64)[
        values == np.float32(factor)
    ]
    if len(smooth) > 1 or not len(kept) or not len(divided):
        return
    context = _CONTEXTS[0]
    top = float(reciprocals[0]) if len(smooth) else float(kept.min())
    for low in np.geomspace(float(divided.max()) * context, top * context, 34)[1:-1]:
        high = low + (top * context - low) / float(smooth[0]) if len(smooth) else (low + top * context) / 2
        yield float(low), float(high), context


def _interpolated(values: Factors, theta: float, factor: float) -> tuple[Doubles, Doubles]:
    """Reciprocal wavelength and smoothness of the factors that are neither 1 nor `factor`."""
    _, reciprocals = _reciprocal_wavelengths(theta, 2 * len(values))
    inside = (values > 1) & (values < np.float32(factor))
    smooth = (1 / values[inside].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    return reciprocals[inside].astype(np.float64), smooth


def _unknown(values: Factors) -> UnsupportedModelError:
    shown = ", ".join(f"{value:g}" for value in values[:4]) + (", ..." if len(values) > 4 else "")
    return UnsupportedModelError(
        "tensor 'rope_freqs.weight'",
        Described(f"[{shown}]"),
        ["the factors of a llama3 rotary scaling"],
        "no Transformers configuration gives these frequencies",
    )
