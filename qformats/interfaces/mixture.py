"""Mixtures: names that stand for a choice of formats, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qformats.interfaces.packer import Packer

__all__ = ["Mixture"]


class Mixture(Packer):
    """A format of whole models: most tensors get one format, some a better one. ``gguf:q4_k_m`` is one.

    The loader of its container makes the choice (:meth:`~qformats.Loader.mixes`); no tensor is packed in a mixture.

    Parameters
    ----------
    variant : str
        Second half of its name.
    summary : str
        What it mixes.
    typical : Packer
        Format of most tensors, in the same family.

    Examples
    --------
    >>> import qformats
    >>> from qformats.interfaces import Mixture
    >>> mixture = Mixture("q4_0_and_more", "q4_0, and more bits where they count", qformats.packer("gguf:q4_0"))
    >>> mixture.name, mixture.typical.name
    ('gguf:q4_0_and_more', 'gguf:q4_0')
    """

    def __init__(self, variant: str, summary: str, typical: Packer) -> None:
        self.spec = replace(typical.spec, variant=variant, summary=summary)
        self.grid, self.default_quantizer = typical.grid, typical.default_quantizer
        self._typical = typical

    @property
    def typical(self) -> Packer:
        """Format of most tensors."""
        return self._typical

    def veto(self, shape: Sequence[int]) -> str | None:
        """What the usual format says."""
        return self._typical.veto(shape)
