"""What a calibration gives to a quantizer, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.calibration.moments import Moments
from qformats.interfaces.packer import Packer
from qformats.numbers.quantized import QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Layer", "Round", "Rounded", "Scale", "SharedInput"]


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer to quantize.

    Attributes
    ----------
    name : str
        Canonical name of its weight, or of the matrix that it is a range of rows of.
    packer : Packer
        Format to quantize into; it has a grid.
    read : callable
        Reads the weight.

    Examples
    --------
    >>> import qformats
    >>> from qformats.calibration import Layer
    >>> name = "model.layers.0.mlp.up_proj.weight"
    >>> Layer(name, qformats.packer("gguf:q4_0"), lambda: qformats.open("demo").read(name)).weight.shape
    torch.Size([1024, 256])
    """

    name: str
    packer: Packer
    read: Callable[[], Tensor]

    @property
    def weight(self) -> Tensor:
        """The unquantized weight, float32, ``(N, K)``; read anew each time, so that only one is in memory."""
        return self.read()


@dataclass(frozen=True, eq=False)
class Rounded:
    """Result of a layer.

    Attributes
    ----------
    quantized : QuantizedTensor
        On the grid of the layer's format.
    loss, signal : float
        Squared error of the layer's output, and the squared output itself: mean over tokens, summed over outputs.
    damping : float
        Share of the mean of its diagonal that was added to the Hessian.

    Examples
    --------
    >>> import qformats, torch
    >>> from qformats.calibration import Rounded
    >>> quantized = qformats.quantize(torch.ones(1, 32), "gguf:q4_0")
    >>> Rounded(quantized, loss=0.0, signal=32.0, damping=0.01).loss
    0.0
    """

    quantized: QuantizedTensor
    loss: float
    signal: float
    damping: float


Round = Callable[[Sequence[Layer], Moments, Callable[[str], None]], Iterator[Rounded]]
"""Quantizes layers that have the same input; the third argument shows the user a notice."""


@dataclass(frozen=True, eq=False)
class SharedInput:
    """Layers of one input whose columns may be multiplied by factors, which what is in front of them takes over.

    Attributes
    ----------
    layers : sequence of Layer
        Those that are quantized; their weights are as scaled by other inputs so far.
    shares : sequence of float
        Share of the tokens that reach each of them: 1, except for experts.
    moments : Moments
        Of the input.
    magnitude : Tensor
        float32, ``(K,)``: mean magnitude of each column of the input.
    index : Tensor
        int64, ``(K,)``: which factor each column has. Most often each its own; where queries share a value, columns
        share a factor.
    exact : callable
        Of factors that are wanted, float32, those nearest that can be folded into what stays plain numbers without an
        error.

    Examples
    --------
    >>> import qformats, torch
    >>> from qformats.calibration import Layer, Moments, SharedInput
    >>> moments = Moments(32, torch.device("cpu"))
    >>> moments.add(torch.ones(4, 32))
    >>> layer = Layer("up.weight", qformats.packer("gguf:q4_0"), lambda: torch.eye(32))
    >>> shared = SharedInput([layer], [1.0], moments, torch.ones(32), torch.arange(32), lambda wanted: wanted)
    >>> shared.count
    32
    """

    layers: Sequence[Layer]
    shares: Sequence[float]
    moments: Moments
    magnitude: Tensor
    index: Tensor
    exact: Callable[[Tensor], Tensor]

    @property
    def count(self) -> int:
        """Number of factors."""
        return int(self.index.max()) + 1


Scale = Callable[[SharedInput], "Tensor | None"]
"""Chooses factors, float32 ``(count,)``, all positive, as `exact` gave them; None to leave the layers as they are."""
