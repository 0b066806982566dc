"""Layers whose weight stays packed: a linear layer, and an embedding, of any format."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.rows import pick
from qformats.runtime.layer import PackedLayer
from qformats.runtime.products import product

__all__ = ["PackedLayer", "QuantEmbedding", "QuantLinear"]


class QuantLinear(PackedLayer, nn.Linear):  # type: ignore[override] # `weight` cannot be set
    """A linear layer whose weight is packed, in any format.

    Forward and backward decode the weight (or run the shared kernels); the dense weight is never kept, not even for
    the backward pass. Gradients reach the input and the bias; the weight has none.

    Parameters
    ----------
    in_features, out_features : int
        Columns and rows of the weight.
    bias : bool
        Whether a bias is added.
    packer : Packer or str
        Format of the weight, or its name.
    device : torch.device or str, optional
        Where fields are allocated, uninitialised (see :meth:`from_packed`).
    dtype : torch.dtype, optional
        Of the bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        packer: Packer | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self._place(packer, (out_features, in_features), device)
        made = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if made is None else nn.Parameter(made, requires_grad=False))

    @classmethod
    def from_packed(cls, packed: PackedTensor, bias: Tensor | None = None) -> QuantLinear:
        """A layer of this weight, which it holds without copying it."""
        rows, columns = packed.shape
        layer = cls(columns, rows, packer=packed.packer, bias=False, device="meta")
        layer.set_packed(packed)
        if bias is not None:
            layer.bias = nn.Parameter(bias, requires_grad=False)
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias``: ``(..., K)`` to ``(..., N)``, in the dtype of the input."""
        home, bias = self._home, self._parameters["bias"]
        learning = torch.is_grad_enabled() and (
            input.requires_grad or (bias is not None and bias.requires_grad)
        )
        if home._form is not None:
            if input.is_cuda and not learning and not torch.compiler.is_compiling():
                # Where the weight is another module's, that one's neighbours are given other states.
                if self.neighbours is not None:
                    found = self.neighbours.product(self, input)
                    if found is not None:
                        return found
                return home.prepared()(input, bias)
            from qformats.kernels import ops

            return ops.linear(input, home.arranged(), bias)
        if learning:
            result: Tensor = _DecodedLinear.apply(input, bias, home)  # type: ignore[no-untyped-call]
            return result
        if not input.is_cpu:
            return functional.linear(input, home.dequantize(input.dtype), bias)
        found = product(input, home)
        return found if bias is None else found + bias


class _DecodedLinear(torch.autograd.Function):
    """A linear layer that decodes its weight again for the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, bias: Tensor | None, layer: PackedLayer) -> Tensor:
        ctx.layer = layer
        return functional.linear(input, layer.dequantize(input.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        of_input = grad @ ctx.layer.dequantize(grad.dtype) if ctx.needs_input_grad[0] else None
        of_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return of_input, of_bias, None


class QuantEmbedding(PackedLayer, nn.Embedding):  # type: ignore[override] # `weight` cannot be set
    """An embedding whose table is packed, in any format; only the rows that are looked up are decoded.

    A table whose format stores several rows together is decoded whole at each use.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows and columns of the table.
    padding_idx : int, optional
        As :class:`torch.nn.Embedding` has it; without effect, since the table is not trained.
    packer : Packer or str
        Format of the table, or its name.
    device : torch.device or str, optional
        Where fields are allocated, uninitialised (see :meth:`from_packed`).
    dtype : torch.dtype, optional
        Of the result; it follows casts of the module.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        packer: Packer | str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse = None, 2.0, False, False
        self._place(packer, (num_embeddings, embedding_dim), device)
        self.embed_scale: Tensor | float | None = None
        # Its dtype is that of the result, and is cast together with the model.
        self.register_buffer("result", torch.zeros((), dtype=dtype, device=device), persistent=False)

    @classmethod
    def from_packed(cls, packed: PackedTensor, dtype: torch.dtype | None = None) -> QuantEmbedding:
        """An embedding with this table, which it holds without copying it."""
        rows, columns = packed.shape
        layer = cls(rows, columns, packer=packed.packer, device="meta")
        layer.set_packed(packed)
        layer.register_buffer("result", torch.zeros((), dtype=dtype), persistent=False)
        return layer

    def scale(self, by: Tensor | float | None) -> None:
        """Multiply the rows that are given by a number from now on.

        Parameters
        ----------
        by : Tensor, float or None
            A tensor of one element is cast together with the model; None for rows as they are.
        """
        del self.embed_scale
        if isinstance(by, Tensor):
            self.register_buffer("embed_scale", by, persistent=False)
        else:
            self.embed_scale = by

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table: ids ``(...)`` to ``(..., K)``."""
        rows, by = self._rows(input), self.embed_scale
        if by is None:
            return rows
        return rows * (by.to(rows.dtype) if isinstance(by, Tensor) else by)

    def _rows(self, input: Tensor) -> Tensor:
        home, dtype = self._home, cast(Tensor, self.result).dtype
        if home._form is not None:
            from qformats.kernels import ops

            return ops.embedding(input, home.arranged(), dtype)
        packed = home.packed()
        if packed.packer.row_step(home.shape) != 1:
            return functional.embedding(input, home.dequantize(dtype))
        ids, places = input.unique(return_inverse=True)  # type: ignore[no-untyped-call]
        if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < home.shape[0]:
            message = f"ids run from {int(ids[0])} to {int(ids[-1])}, but the table has {home.shape[0]} rows"
            raise IndexError(message)
        rows = pick(packed, ids).dequantize() if len(ids) else torch.empty(0, home.shape[1])
        return rows.to(input.device, dtype)[places]
