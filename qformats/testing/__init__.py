"""The conformance kit: what the framework relies on, as functions that check a format, a quantizer or a container.

>>> from qformats.testing import run_checks
>>> {result.outcome for result in run_checks("dense:f32")} == {"passed", "skipped"}
True

Every check is a plain function of a packer, a quantizer or a loader. It returns nothing, raises
:class:`CheckFailure` with what was found and what was expected, or :class:`NotApplicable` with the reason why it says
nothing here. The same list runs in pytest (:func:`parametrize_with_checks`), on the command line
(``qformats check NAME``) and by :func:`run_checks`.

Importing the package imports neither torch nor pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qformats.testing.failure import CheckFailure, NotApplicable
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
from qformats.testing.listing import KINDS, Check, checks
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
from qformats.testing.model import tiny_model
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
from qformats.testing.running import CheckResult, run_checks

if TYPE_CHECKING:
    from qformats.testing.parametrize import parametrize_with_checks

__all__ = [
    "KINDS",
    "Check",
    "CheckFailure",
    "CheckResult",
    "NotApplicable",
    "check_bad_shapes_are_refused",
    "check_checkpoint",
    "check_codes_survive",
    "check_config_survives_json",
    "check_descriptor",
    "check_detects_its_own",
    "check_detects_nothing_else",
    "check_device_layout",
    "check_encode_packs_what_quantize_gives",
    "check_error_is_small",
    "check_exactness",
    "check_fields_match_descriptor",
    "check_files_have_the_planned_sizes",
    "check_hard_weights",
    "check_hard_weights_are_quantized",
    "check_importance_is_taken",
    "check_inputs_stay",
    "check_loader_descriptor",
    "check_names_are_canonical",
    "check_not_finite_is_refused",
    "check_odd_shapes",
    "check_opens_headers_only",
    "check_options",
    "check_placements",
    "check_project_lands_on_grid",
    "check_quantizer_refuses_nan",
    "check_random_bytes",
    "check_reference_bytes",
    "check_result_is_on_the_grid",
    "check_rows",
    "check_same_bytes_twice",
    "check_same_codes_twice",
    "check_same_files_twice",
    "check_sizes_do_not_depend_on_data",
    "check_sqnr_floor",
    "check_strides_do_not_matter",
    "check_triton_kernels",
    "check_truncated_files_are_refused",
    "check_values_are_canonical",
    "check_weight_stays",
    "check_written_is_read_back",
    "check_wrong_fields_are_refused",
    "checks",
    "parametrize_with_checks",
    "run_checks",
    "tiny_model",
]


def __getattr__(name: str) -> Any:
    if name == "parametrize_with_checks":
        # Late: only tests need pytest.
        from qformats.testing.parametrize import parametrize_with_checks

        return parametrize_with_checks
    message = f"module 'qformats.testing' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
