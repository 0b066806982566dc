"""The one list of checks, by what they are checks of."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qformats.errors import ConfigError
from qformats.testing.formats import (
    check_bad_shapes_are_refused,
    check_checkpoint,
    check_codes_survive,
    check_config_survives_json,
    check_descriptor,
    check_device_layout,
    check_exactness,
    check_fields_match_descriptor,
    check_hard_weights,
    check_inputs_stay,
    check_not_finite_is_refused,
    check_odd_shapes,
    check_project_lands_on_grid,
    check_random_bytes,
    check_reference_bytes,
    check_rows,
    check_same_bytes_twice,
    check_sizes_do_not_depend_on_data,
    check_sqnr_floor,
    check_strides_do_not_matter,
    check_triton_kernels,
    check_values_are_canonical,
    check_wrong_fields_are_refused,
)
from qformats.testing.loaders import (
    check_detects_its_own,
    check_detects_nothing_else,
    check_files_have_the_planned_sizes,
    check_loader_descriptor,
    check_names_are_canonical,
    check_opens_headers_only,
    check_placements,
    check_same_files_twice,
    check_truncated_files_are_refused,
    check_written_is_read_back,
)
from qformats.testing.quantizers import (
    check_encode_packs_what_quantize_gives,
    check_error_is_small,
    check_hard_weights_are_quantized,
    check_importance_is_taken,
    check_options,
    check_quantizer_refuses_nan,
    check_result_is_on_the_grid,
    check_same_codes_twice,
    check_weight_stays,
)

__all__ = ["KINDS", "Check", "checks"]

KINDS = ("format", "quantizer", "container")
"""What there are checks of."""


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    kind : str
        One of :data:`KINDS`.
    function : callable
        Takes a packer, a quantizer or a loader, and raises :class:`CheckFailure` or :class:`NotApplicable`.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import checks
    >>> check = checks("format")[0]
    >>> check.kind, check.name, check.summary
    ('format', 'check_descriptor', 'The descriptor agrees with the grid and with itself.')
    >>> check(qformats.packer("dense:f32"))  # raises nothing: it passes
    """

    kind: str
    function: Callable[..., None]

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.function.__name__

    @property
    def summary(self) -> str:
        """What it checks, in a sentence."""
        return (inspect.getdoc(self.function) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def takes_model(self) -> bool:
        """Whether it can be given a model to export."""
        return "model" in inspect.signature(self.function).parameters

    def __call__(self, subject: Any, model: Any = None) -> None:
        """Run it."""
        if self.takes_model and model is not None:
            self.function(subject, model=model)
        else:
            self.function(subject)


_LIST: dict[str, tuple[Callable[..., None], ...]] = {
    "format": (
        check_descriptor,
        check_fields_match_descriptor,
        check_codes_survive,
        check_values_are_canonical,
        check_project_lands_on_grid,
        check_reference_bytes,
        check_same_bytes_twice,
        check_inputs_stay,
        check_strides_do_not_matter,
        check_sizes_do_not_depend_on_data,
        check_hard_weights,
        check_odd_shapes,
        check_rows,
        check_sqnr_floor,
        check_exactness,
        check_bad_shapes_are_refused,
        check_wrong_fields_are_refused,
        check_not_finite_is_refused,
        check_random_bytes,
        check_device_layout,
        check_triton_kernels,
        check_config_survives_json,
        check_checkpoint,
    ),
    "quantizer": (
        check_result_is_on_the_grid,
        check_weight_stays,
        check_same_codes_twice,
        check_importance_is_taken,
        check_hard_weights_are_quantized,
        check_error_is_small,
        check_encode_packs_what_quantize_gives,
        check_quantizer_refuses_nan,
        check_options,
    ),
    "container": (
        check_loader_descriptor,
        check_detects_its_own,
        check_detects_nothing_else,
        check_placements,
        check_files_have_the_planned_sizes,
        check_same_files_twice,
        check_written_is_read_back,
        check_names_are_canonical,
        check_opens_headers_only,
        check_truncated_files_are_refused,
    ),
}


def checks(kind: str | None = None) -> tuple[Check, ...]:
    """Every check of formats, of quantizers or of containers; all of them by default.

    Parameters
    ----------
    kind : str, optional
        One of :data:`KINDS`.

    Raises
    ------
    ConfigError
        If it is another word.

    Examples
    --------
    >>> from qformats.testing import checks
    >>> [check.name for check in checks("format")][:2]
    ['check_descriptor', 'check_fields_match_descriptor']
    """
    if kind is not None and kind not in KINDS:
        raise ConfigError("kind of checks", kind, ", ".join(KINDS))
    chosen = KINDS if kind is None else (kind,)
    return tuple(Check(each, function) for each in chosen for function in _LIST[each])
