"""Round trips of one tensor: quantize, pack, unpack, dequantize."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qformats.errors import ConfigError, Described, ShapeError
from qformats.interfaces import PackedTensor, Packer
from qformats.numbers import QuantizedTensor
from qformats.registry import registry
from qformats.work.arguments import told

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["dequantize", "pack", "packer", "quantize", "unpack"]


def packer(format: str) -> Packer:
    """Packer of a format.

    Parameters
    ----------
    format : str
        ``family:variant``, a family for its default variant, or a variant that only one family has: ``"nf4"``.

    Raises
    ------
    UnknownFormatError
        If nothing installed answers to the name.
    AmbiguousFormatError
        If several formats do.

    Examples
    --------
    >>> import qformats
    >>> spec = qformats.packer("gguf:q4_0").spec
    >>> spec.summary, spec.block_size, spec.nbytes(4096, 4096)
    ('4 bits, one signed scale per 32', 32, 9437184)
    """
    return registry().meant(format)


def quantize(
    tensor: Tensor,
    format: str,
    *,
    quantizer: str = "rtn",
    quantizer_options: Mapping[str, str] | None = None,
    importance: Tensor | None = None,
) -> QuantizedTensor:
    """Choose codes and parameters for a weight.

    Parameters
    ----------
    tensor : Tensor
        float32, float16 or bfloat16, ``(N, K)`` = (out_features, in_features); a parameter is detached. Formats whose
        upstream rounds in the dtype of the source do so. float64 is rounded to float32 first. Not modified.
    format : str
        Format whose grid is used; see :func:`packer`.
    quantizer : str
        Method that chooses codes; ``"rtn"`` is the format's own reference rule.
    quantizer_options : mapping of str to str, optional
        Options of the quantizer.
    importance : Tensor, optional
        Floats, ``(K,)``, none negative: what a squared error in each column costs, such as the mean square of what is
        multiplied with it (an importance matrix). Formats with a rule of their own for it follow that.

    Returns
    -------
    QuantizedTensor
        On the device of `tensor`.

    Raises
    ------
    ShapeError
        If the format cannot hold this shape, or `importance` is not one number per column.
    NonFiniteError
        If a weight is NaN or infinite.
    ConfigError
        If the format cannot be written, or stores plain numbers, or the tensor holds no floats; if the quantizer works
        on whole models only.

    Examples
    --------
    >>> import torch, qformats
    >>> quantized = qformats.quantize(torch.eye(32), "gguf:q8_0")
    >>> quantized.codes.shape, quantized.scale.dtype, quantized.zero_point
    (torch.Size([32, 32]), torch.float16, 128)
    """
    import torch

    from qformats.kernels.dense import cast

    _require_values(tensor)
    tensor = tensor.detach()
    chosen = _quantizing(format)
    chosen.require(tensor.shape)
    how = registry().quantizer(quantizer, quantizer_options)
    if how.prepares:
        able = [name for name in registry().quantizer_names() if not registry().quantizer(name).prepares]
        hint = "It chooses codes by what a model computes: use qformats.export or qformats.load_model"
        found = Described(f"{quantizer}, which needs a whole model")
        raise ConfigError("quantizer of a tensor", found, " or ".join(able), hint)
    weight = cast(tensor, "f32") if tensor.dtype == torch.float64 else tensor
    if importance is not None:
        importance = importance.detach().to(weight.device)
    quantized = how.quantize_checked(weight, chosen, importance)
    zeros = _vanished(weight, quantized)
    if zeros:
        told = (
            f"{zeros:,} of {len(weight):,} rows became zeros: their weights are too small for {chosen.name}"
        )
        warnings.warn(told, UserWarning, stacklevel=2)
    return quantized


def _require_values(tensor: object) -> None:
    """Refuse what is no tensor of numbers to round."""
    import torch

    expected = "a floating-point torch tensor"
    if not isinstance(tensor, torch.Tensor):
        convert = hasattr(tensor, "__array__") or isinstance(tensor, list | tuple)
        hint = "torch.as_tensor(weight) makes one of it" if convert else None
        raise ConfigError("weight", told(tensor), expected, hint)
    if tensor.is_meta:
        found = Described("a tensor on the meta device, which has a shape and no values")
        raise ConfigError("weight", found, "one on the CPU or a GPU", "load its values first")
    if tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.").removeprefix("_")
        found = Described(f"a tensor of the layout {kind}")
        raise ConfigError("weight", found, "a dense one", "tensor.to_dense() makes one of it")
    if tensor.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        found = Described(f"a tensor of {tensor.dtype}")
        allowed = f"{expected}: float32, float16, bfloat16 or float64"
        hint = "tensor.float() makes one of it" if tensor.is_floating_point() else None
        raise ConfigError("weight", found, allowed, hint)


def _vanished(weight: Tensor, quantized: QuantizedTensor) -> int:
    """Count rows that became zeros; decoded only where a scale says that there may be some."""
    if not bool((quantized.scale == 0).any()):
        return 0
    return int(((quantized.dequantize() == 0).all(1) & (weight != 0).any(1)).sum())


def _quantizing(format: str) -> Packer:
    chosen = registry().writable(format)
    if chosen.typical is not chosen:
        found = Described(f"{chosen.name}, a choice of formats for the tensors of a model")
        raise ConfigError("format of a tensor", found, f"one format, such as {chosen.typical.name}")
    if chosen.grid is None:
        found = Described(f"{chosen.name}, which stores plain numbers")
        raise ConfigError("format", found, "a quantized format")
    return chosen


def pack(quantized: QuantizedTensor, format: str) -> PackedTensor:
    """Bytes of a canonical tensor in one format.

    Raises
    ------
    ConfigError
        If its codes or parameters do not lie on the format's grid, saying which do not.

    Examples
    --------
    >>> import torch, qformats
    >>> packed = qformats.pack(qformats.quantize(torch.eye(32), "gguf:q8_0"), "gguf:q8_0")
    >>> {name: tuple(field.shape) for name, field in packed.fields.items()}
    {'blocks': (32, 34)}
    """
    if not isinstance(quantized, QuantizedTensor):
        raise ConfigError("tensor to pack", told(quantized), "a QuantizedTensor, as returned by quantize")
    chosen = _quantizing(format)
    assert chosen.grid is not None
    try:
        chosen.grid.validate(quantized)
    except (ConfigError, ShapeError) as error:
        error.advise(
            f"this is not a tensor of {chosen.name}: quantize the weight for it, with "
            f"qformats.quantize(weight, {chosen.name!r})"
        )
        raise
    return chosen.pack(quantized)


def unpack(packed: PackedTensor) -> QuantizedTensor:
    """Canonical form of packed bytes, without any rounding.

    Raises
    ------
    ConfigError
        If the format has no canonical form (support level 0).

    Examples
    --------
    >>> import torch, qformats
    >>> packed = qformats.pack(qformats.quantize(torch.eye(32), "gguf:q8_0"), "gguf:q8_0")
    >>> qformats.unpack(packed).codes[0, :3].tolist()
    [255, 128, 128]
    """
    return _packed(packed).unpack()


def dequantize(packed: PackedTensor, *, out: Tensor | None = None) -> Tensor:
    """Value of every element.

    Parameters
    ----------
    packed : PackedTensor
        Not modified.
    out : Tensor, optional
        Where to write them, contiguous, of the weight's shape: float32, or float16 or bfloat16, to which they are
        rounded once. Reuse it for many weights: new memory takes longer to come by than the values.

    Returns
    -------
    Tensor
        `out`, or float32 of the weight's shape.

    Raises
    ------
    ShapeError, ConfigError
        If `out` does not fit.

    Examples
    --------
    >>> import torch, qformats
    >>> packed = qformats.pack(qformats.quantize(torch.eye(32), "gguf:q8_0"), "gguf:q8_0")
    >>> qformats.dequantize(packed)[0, :2].tolist()
    [0.99993896484375, 0.0]
    >>> qformats.dequantize(packed, out=torch.empty(32, 32, dtype=torch.bfloat16))[0, :2].tolist()
    [1.0, 0.0]
    """
    return _packed(packed).dequantize(out)


def _packed(packed: PackedTensor) -> PackedTensor:
    if not isinstance(packed, PackedTensor):
        raise ConfigError("tensor to unpack", told(packed), "a PackedTensor, as returned by pack")
    return packed
