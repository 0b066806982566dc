"""Checks of formats: each a function of a packer."""

from __future__ import annotations

from qformats.testing.formats.codes import (
    check_codes_survive,
    check_project_lands_on_grid,
    check_values_are_canonical,
)
from qformats.testing.formats.descriptor import (
    check_descriptor,
    check_fields_match_descriptor,
    check_sizes_do_not_depend_on_data,
)
from qformats.testing.formats.exactness import check_exactness
from qformats.testing.formats.fields import check_random_bytes, check_wrong_fields_are_refused
from qformats.testing.formats.folders import check_checkpoint, check_config_survives_json
from qformats.testing.formats.inputs import (
    check_inputs_stay,
    check_same_bytes_twice,
    check_strides_do_not_matter,
)
from qformats.testing.formats.kernels import check_device_layout, check_triton_kernels
from qformats.testing.formats.reference import check_reference_bytes
from qformats.testing.formats.rows import check_rows
from qformats.testing.formats.shapes import check_bad_shapes_are_refused, check_odd_shapes
from qformats.testing.formats.values import check_hard_weights, check_not_finite_is_refused, check_sqnr_floor

__all__ = [
    "check_bad_shapes_are_refused",
    "check_checkpoint",
    "check_codes_survive",
    "check_config_survives_json",
    "check_descriptor",
    "check_device_layout",
    "check_exactness",
    "check_fields_match_descriptor",
    "check_hard_weights",
    "check_inputs_stay",
    "check_not_finite_is_refused",
    "check_odd_shapes",
    "check_project_lands_on_grid",
    "check_random_bytes",
    "check_reference_bytes",
    "check_rows",
    "check_same_bytes_twice",
    "check_sizes_do_not_depend_on_data",
    "check_sqnr_floor",
    "check_strides_do_not_matter",
    "check_triton_kernels",
    "check_values_are_canonical",
    "check_wrong_fields_are_refused",
]
