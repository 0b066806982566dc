"""One tensor under both of its names."""

from __future__ import annotations

from dataclasses import dataclass

from qformats_gguf.architectures.orders import Permute, Regroup
from qformats_gguf.architectures.pieces import Piece

__all__ = ["TensorMapping"]


@dataclass(frozen=True)
class TensorMapping:
    """One tensor under both of its names.

    Attributes
    ----------
    canonical, gguf : str
        Name that Transformers' model class uses on disk, and name in a GGUF file.
    permute : Permute or Regroup, optional
        Rows to reorder on the way to GGUF (`rows`) or back (`inverse`).
    force_f32 : bool
        llama.cpp and its converter keep this tensor in float32 in every file type.
    shape : tuple of int
        What the configuration says.
    offset : float
        Added to the values on the way to GGUF.
    stack : int
        Matrices of the GGUF tensor, of which this is one; 0 if it is the whole tensor.
    piece : Piece, optional
        What the GGUF tensor is a part of this one, where it does not hold all of it as it is.
    squeezed : bool
        Whether GGUF leaves out the second dimension, which is 1.
    negated_exp : bool
        Whether GGUF holds ``-exp(x)`` of these numbers.
    """

    canonical: str
    gguf: str
    shape: tuple[int, ...]
    permute: Permute | Regroup | None = None
    force_f32: bool = False
    offset: float = 0.0
    stack: int = 0
    piece: Piece | None = None
    squeezed: bool = False
    negated_exp: bool = False

    @property
    def shared(self) -> bool:
        """Whether several GGUF tensors hold what is one tensor here."""
        return self.piece is not None or (isinstance(self.permute, Regroup) and bool(self.permute.only))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the GGUF tensor."""
        if self.piece is not None:
            return self.piece.shape(self.shape)
        if isinstance(self.permute, Regroup):
            return (self.permute.count, *self.shape[1:])
        if self.squeezed:
            return (self.shape[0], *self.shape[2:])
        return (self.stack, *self.shape) if self.stack else self.shape
