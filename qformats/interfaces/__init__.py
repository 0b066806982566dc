"""The interfaces that plugins implement.

They are :class:`Family` and :class:`Packer`, :class:`Quantizer`, :class:`Loader` and :class:`ModelClass` with its
:class:`Evaluation`. Their docstrings are the reference. Hooks return *classes* (see :mod:`qformats.hookspecs`); nothing
runs at registration, and a plugin module imports torch only inside the methods that compute.
"""

from __future__ import annotations

from qformats.exact import Answer, foresee, represent
from qformats.interfaces.activations import Place, Scheme, Step
from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors
from qformats.interfaces.dense import DensePacker, dense
from qformats.interfaces.evaluation import BeamSearch, Evaluation, Scored
from qformats.interfaces.family import Family, ModuleFields
from qformats.interfaces.float4 import Float4Packer
from qformats.interfaces.float8 import Float8Packer
from qformats.interfaces.importance import ColumnSums, Importance
from qformats.interfaces.layout import Assignment, Draft, Layout, OutputFile, Placement
from qformats.interfaces.loader import Loader
from qformats.interfaces.mixture import Mixture
from qformats.interfaces.model_class import ModelClass
from qformats.interfaces.option import Option, number, size, switch
from qformats.interfaces.packer import PackedTensor, Packer, RowProducts
from qformats.interfaces.quantizer import Quantizer
from qformats.interfaces.rows import cut, join
from qformats.interfaces.spec import FieldSpec, FormatSpec, KernelSpec, evaluate
from qformats.interfaces.step_numbers import placed
from qformats.interfaces.stored import StoredTensor, concat_rows, same_values
from qformats.interfaces.values import Values

__all__ = [
    "Answer",
    "Assignment",
    "BeamSearch",
    "Checkpoint",
    "ColumnSums",
    "DensePacker",
    "Draft",
    "Evaluation",
    "Family",
    "FieldSpec",
    "Float4Packer",
    "Float8Packer",
    "FormatSpec",
    "Importance",
    "KernelSpec",
    "Layout",
    "Loader",
    "Mixture",
    "ModelClass",
    "ModuleFields",
    "Option",
    "OutputFile",
    "PackedTensor",
    "Packer",
    "Place",
    "Placement",
    "Quantizer",
    "ReplacedTensors",
    "RowProducts",
    "Scheme",
    "Scored",
    "Step",
    "StoredTensor",
    "Values",
    "concat_rows",
    "cut",
    "dense",
    "evaluate",
    "foresee",
    "join",
    "number",
    "placed",
    "represent",
    "same_values",
    "size",
    "switch",
]
