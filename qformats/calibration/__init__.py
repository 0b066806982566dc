"""Running a model block by block over text, to choose codes by the effect of the weights.

One decoder block is in memory at a time. Linear layers are quantized in the order in which data reaches them, each
group of layers with one input (query, key and value) by the statistics of that input once everything before it
is quantized. The token embedding comes before the blocks, the output head after them. What is finished is on disk, so
that a killed run goes on from there.
"""

from __future__ import annotations

from qformats.calibration.importance import measure_importance
from qformats.calibration.layer import Layer, Rounded, SharedInput
from qformats.calibration.moments import Moments
from qformats.calibration.outliers import InputOutliers, OutlierReport, measure_outliers
from qformats.calibration.run import calibrate
from qformats.calibration.sensitivity import measure_sensitivity
from qformats.calibration.settings import OPTIONS, Settings

__all__ = [
    "OPTIONS",
    "InputOutliers",
    "Layer",
    "Moments",
    "OutlierReport",
    "Rounded",
    "Settings",
    "SharedInput",
    "calibrate",
    "measure_importance",
    "measure_outliers",
    "measure_sensitivity",
]
