"""Whether another grid can hold a quantized tensor unchanged, and if not, why.

Decided by arithmetic on codes and parameters, never by the names of formats. :func:`foresee` answers from two grids
and a shape, :func:`represent` from the data.
"""

from __future__ import annotations

from qformats.errors import NotExactError
from qformats.exact.foresight import Answer, foresee
from qformats.exact.representation import represent

__all__ = ["Answer", "NotExactError", "foresee", "represent"]
