"""The three joints that plugins fill: :class:`Quantizer`, :class:`Packer`, :class:`Loader`.

Their docstrings are the reference. Hooks hand over *classes* (see :mod:`qformats.hookspecs`); nothing runs at
registration, and a plugin module imports torch only inside the methods that compute.
"""

from __future__ import annotations

from qformats.interfaces.loader import Loader
from qformats.interfaces.option import Option
from qformats.interfaces.packer import DensePacker, ModuleFields, Packer, unknown_variant
from qformats.interfaces.quantizer import Quantizer
from qformats.layout import Assignment, Draft, Layout, OutputFile, Placement

__all__ = [
    "Assignment",
    "DensePacker",
    "Draft",
    "Layout",
    "Loader",
    "ModuleFields",
    "Option",
    "OutputFile",
    "Packer",
    "Placement",
    "Quantizer",
    "unknown_variant",
]
