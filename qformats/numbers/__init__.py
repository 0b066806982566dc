"""What the numbers of a format are: element types, bit packing, grids, and the canonical tensor.

Importing it does not import torch.
"""

from __future__ import annotations

from qformats.numbers.affine import AffineGrid
from qformats.numbers.bitpack import pack_bits, packed_bytes, unpack_bits
from qformats.numbers.division import quotient
from qformats.numbers.dtypes import COMPUTED, FLOATS, SIZES, dtype_name, torch_dtype
from qformats.numbers.float4 import E2M1, Float4Grid, Float4Tensor
from qformats.numbers.float8 import E4M3, Float8Grid
from qformats.numbers.grid import Grid, GridParams
from qformats.numbers.memory import empty
from qformats.numbers.nested import NestedScales
from qformats.numbers.powers import RuledGrid, half_powers, nearest_power, stored_exponents
from qformats.numbers.quantized import QuantizedTensor, expand_blocks
from qformats.numbers.table import TableGrid

__all__ = [
    "COMPUTED",
    "E2M1",
    "E4M3",
    "FLOATS",
    "SIZES",
    "AffineGrid",
    "Float4Grid",
    "Float4Tensor",
    "Float8Grid",
    "Grid",
    "GridParams",
    "NestedScales",
    "QuantizedTensor",
    "RuledGrid",
    "TableGrid",
    "dtype_name",
    "empty",
    "expand_blocks",
    "half_powers",
    "nearest_power",
    "pack_bits",
    "packed_bytes",
    "quotient",
    "stored_exponents",
    "torch_dtype",
    "unpack_bits",
]
