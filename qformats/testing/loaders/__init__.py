"""Checks of loaders: each a function of a loader, and of the model that it is to write."""

from __future__ import annotations

from qformats.testing.loaders.detecting import (
    check_detects_its_own,
    check_detects_nothing_else,
    check_loader_descriptor,
)
from qformats.testing.loaders.layouts import (
    check_files_have_the_planned_sizes,
    check_placements,
    check_same_files_twice,
)
from qformats.testing.loaders.reading import (
    check_names_are_canonical,
    check_opens_headers_only,
    check_truncated_files_are_refused,
    check_written_is_read_back,
)

__all__ = [
    "check_detects_its_own",
    "check_detects_nothing_else",
    "check_files_have_the_planned_sizes",
    "check_loader_descriptor",
    "check_names_are_canonical",
    "check_opens_headers_only",
    "check_placements",
    "check_same_files_twice",
    "check_truncated_files_are_refused",
    "check_written_is_read_back",
]
