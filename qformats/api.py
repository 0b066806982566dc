"""The Python interface: round trips on tensors, and models on disk."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.checkpoint import Checkpoint
from qformats.errors import ConfigError, ShapeError
from qformats.interfaces import Packer
from qformats.registry import registry
from qformats.spec import FormatSpec
from qformats.tensors import PackedTensor, QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.exporting import ExportReport
    from qformats.exporting.progress import Progress

__all__ = ["dequantize", "export", "formats", "open", "pack", "packer", "quantize", "unpack"]


def formats() -> list[FormatSpec]:
    """Descriptors of every installed format, read-only ones included."""
    return [packer.spec for packer in registry().formats()]


def packer(format: str) -> Packer:
    """Packer of a format.

    Parameters
    ----------
    format : str
        ``family:variant``, or a family for its default variant.

    Raises
    ------
    UnknownFormatError
        If nothing installed answers to the name.
    """
    return registry().packer(format)


def quantize(tensor: Tensor, format: str, *, quantizer: str = "rtn") -> QuantizedTensor:
    """Choose codes and parameters for a weight.

    Parameters
    ----------
    tensor : Tensor
        float32, float16 or bfloat16, ``(N, K)`` = (out_features, in_features); a parameter is detached. Formats whose
        upstream rounds in the dtype of the source do so. float64 is rounded to float32 first. Not modified.
    format : str
        ``family:variant`` whose grid is used.
    quantizer : str
        How codes are chosen; ``"rtn"`` is the format's own reference rule.

    Returns
    -------
    QuantizedTensor
        On the device of `tensor`.

    Raises
    ------
    ShapeError
        If the format cannot hold this shape.
    NonFiniteError
        If a weight is NaN or infinite.
    ConfigError
        If the format cannot be written, or stores plain numbers, or the tensor holds no floats.
    """
    import torch

    from qformats.kernels.dense import require_finite

    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise ConfigError("weight", str(found), "a torch tensor of floats")
    tensor = tensor.detach()
    chosen = _quantizing(format)
    problem = chosen.veto(tensor.shape)
    if problem:
        raise ShapeError("weight", tuple(tensor.shape), f"a shape that {chosen.name} can hold ({problem})")
    require_finite(tensor)
    weight = tensor.float() if tensor.dtype == torch.float64 else tensor
    return registry().quantizer(quantizer).quantize(weight, chosen)


def _quantizing(format: str) -> Packer:
    chosen = packer(format)
    if chosen.grid is None:
        writable = [p.name for p in registry().formats() if p.grid is not None]
        raise ConfigError("format", chosen.name, "a format that quantizes: " + ", ".join(writable))
    return chosen


def pack(quantized: QuantizedTensor, format: str) -> PackedTensor:
    """Bytes of a canonical tensor in one format.

    Raises
    ------
    ConfigError
        If its codes or parameters do not lie on the format's grid, saying which do not.
    """
    if not isinstance(quantized, QuantizedTensor):
        raise ConfigError(
            "tensor to pack", type(quantized).__name__, "a QuantizedTensor, as quantize gives it"
        )
    chosen = _quantizing(format)
    assert chosen.grid is not None
    chosen.grid.validate(quantized)
    return chosen.pack(quantized)


def unpack(packed: PackedTensor) -> QuantizedTensor:
    """Canonical form of packed bytes, without any rounding.

    Raises
    ------
    ConfigError
        If the format has no canonical form (support level 0).
    """
    return packer(_packed(packed).format).unpack(packed)


def dequantize(packed: PackedTensor) -> Tensor:
    """Value of every element.

    Returns
    -------
    Tensor
        float32, the shape of the weight.
    """
    return packer(_packed(packed).format).dequantize(packed)


def _packed(packed: PackedTensor) -> PackedTensor:
    if not isinstance(packed, PackedTensor):
        raise ConfigError("tensor to unpack", type(packed).__name__, "a PackedTensor, as pack gives it")
    return packed


def open(model: str | PathLike[str], *, options: Mapping[str, str] | None = None) -> Checkpoint:
    """Open a model: headers only, weights stay on disk.

    Parameters
    ----------
    model : str or path
        A file or folder, ``"demo"`` for the model that comes with qformats, or a hub id such as
        ``"organisation/model"``, which is downloaded.
    options : mapping of str to str, optional
        What the loader should know better than the files say, such as ``{"arch": "llama"}``.

    Raises
    ------
    ModelNotFoundError
        If nothing is there, or no loader recognises it.
    CheckpointError
        If a file is missing, truncated or corrupt.
    """
    from qformats.sources import open_model

    return open_model(model, options or {})


def export(
    model: str | PathLike[str] | Checkpoint,
    target: str | PathLike[str],
    *,
    format: str,
    quantizer: str = "rtn",
    quantizer_options: Mapping[str, str] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    output_type: str | None = None,
    token_embedding_type: str | None = None,
    pure: bool = False,
    container: str | None = None,
    require_exact: bool = False,
    force: bool = False,
    workers: int | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model in another format.

    Nothing appears under the target's name before all of it is written, checked and synced.

    Parameters
    ----------
    model : str, path or Checkpoint
        See :func:`open`.
    target : str or path
        File or folder to make.
    format : str
        ``family:variant``, or a family for its default variant.
    quantizer : str
        How codes are chosen; ``"rtn"`` is each format's own reference rule.
    quantizer_options : mapping of str to str, optional
        Options of the quantizer.
    tensor_types : mapping of str to str, optional
        Regular expression to variant; the first one found in a tensor's name wins.
    output_type, token_embedding_type : str, optional
        Variants of the output layer and of the token embedding.
    pure : bool
        Use one variant for every tensor that is quantized, without the container's own mix.
    container : str, optional
        Loader that writes the output, where it is not the format's usual one.
    require_exact : bool
        Refuse, before anything is written, if a value of the source would change.
    force : bool
        Replace an existing target.
    workers : int, optional
        Threads; all cores by default.
    options : mapping of str to str, optional
        Options of the loaders involved.
    progress : Progress, optional
        Is told how far the work is.

    Returns
    -------
    ExportReport
        What was written, tensor by tensor.

    Raises
    ------
    QFormatsError
        Whatever is wrong with the input or the target; then nothing is left behind.
    """
    from qformats.exporting import Recipe, run
    from qformats.sources import check_options

    check_options(options or {})
    source = model if isinstance(model, Checkpoint) else open(model, options=options)
    recipe = Recipe(
        format,
        quantizer=quantizer,
        tensor_types=tuple((tensor_types or {}).items()),
        output_type=output_type,
        token_embedding_type=token_embedding_type,
        pure=pure,
        container=container,
        quantizer_options=tuple((quantizer_options or {}).items()),
    )
    return run(
        source,
        Path(target).expanduser(),
        recipe,
        force=force,
        workers=workers,
        require_exact=require_exact,
        options=options or {},
        progress=progress,
    )
