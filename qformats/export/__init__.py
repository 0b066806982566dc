"""Writing a model in another format: plan, fill, seal.

Plan decides everything from headers, sizes included. Fill computes and writes slices in parallel, beside the target.
Seal checks what was written, syncs it and puts it in place.
"""

from __future__ import annotations

from qformats.export.plan import Action, Plan, TensorPlan, make_plan
from qformats.export.recipe import Recipe
from qformats.export.report import ExportReport, TensorReport
from qformats.export.run import run

__all__ = ["Action", "ExportReport", "Plan", "Recipe", "TensorPlan", "TensorReport", "make_plan", "run"]
