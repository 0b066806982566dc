"""GPTQ for any grid: codes chosen so that the output of a layer, not its weights, changes least.

With inputs `x`, the squared error of a layer's output is ``tr(E H Eᵀ)``, where ``E`` is the weight before minus the
weight after and ``H`` the mean of ``x xᵀ``. A layer is quantized in four steps:

1. :mod:`~qformats_gptq.algorithm.hessian` factors ``H`` (damped, dead inputs set aside, columns in the order of their
   importance);
2. :mod:`~qformats_gptq.algorithm.fit` chooses the parameters of each block by a search weighted with ``H``;
3. :mod:`~qformats_gptq.algorithm.sweep` rounds the columns one after the other, each with what the earlier ones leave;
4. :mod:`~qformats_gptq.algorithm.refine` fits the parameters to the codes and goes over the columns again, as long as
   that helps.
"""

from __future__ import annotations

from qformats_gptq.algorithm.solve import Method, Solution, solve

__all__ = ["Method", "Solution", "solve"]
