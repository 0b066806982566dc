"""Writing a model in another format: plan, fill, seal.

Plan decides everything from headers, sizes included. Fill computes and writes slices in parallel, beside the target.
Seal checks what was written, syncs it and puts it in place.
"""

from __future__ import annotations

from qformats.exporting.plan import Action, Plan, TensorPlan, make_plan
from qformats.exporting.recipe import Recipe
from qformats.exporting.report import ExportReport, TensorReport
from qformats.exporting.run import run

__all__ = ["Action", "ExportReport", "Plan", "Recipe", "TensorPlan", "TensorReport", "make_plan", "run"]
