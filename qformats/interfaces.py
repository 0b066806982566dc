"""The three joints that plugins fill: :class:`Quantizer`, :class:`Packer`, :class:`Loader`.

Their docstrings are the reference. Hooks hand over *classes* (see :mod:`qformats.hookspecs`); nothing runs at
registration, and a plugin module imports torch only inside the methods that compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from qformats.checkpoint import Checkpoint, StoredTensor
from qformats.errors import ConfigError, UnknownFormatError
from qformats.grids import Grid
from qformats.spec import FormatSpec, solve
from qformats.tensors import PackedTensor, QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Assignment",
    "DensePacker",
    "Draft",
    "Layout",
    "Loader",
    "OutputFile",
    "Packer",
    "Placement",
    "Quantizer",
]


class Packer(ABC):
    """One encoding: which bytes hold a tensor, under which fields.

    A class stands for a *family* (``gguf``), an instance for one of its *variants* (``gguf:q4_0``). Subclasses set
    :attr:`family`, :attr:`default_variant` and :attr:`container`, list :meth:`variants`, and give each instance
    :attr:`spec` and, unless the format is only readable, :attr:`grid`.

    Weights are ``[out_features, in_features]``, ``(N, K)`` below.
    """

    family: ClassVar[str]
    """First half of the format's name."""
    default_variant: ClassVar[str]
    """Variant meant by the family's bare name."""
    container: ClassVar[str]
    """Name of the loader whose files hold this family."""

    spec: FormatSpec
    """Descriptor: stored fields, sizes, support level."""
    grid: Grid | None = None
    """Which numbers can be represented; ``None`` for dense and for read-only formats."""
    dense_dtype: str | None = None
    """Set by formats that store plain numbers (``"f16"``): weights are cast into them, not quantized."""
    sliceable: bool = True
    """Whether any range of rows can be packed by itself, and lies in every field as a range of rows."""

    @classmethod
    @abstractmethod
    def variants(cls) -> Sequence[str]:
        """Variants to list; :meth:`parse` may accept more."""

    @classmethod
    @abstractmethod
    def parse(cls, variant: str) -> Packer:
        """Packer of one variant.

        Raises
        ------
        UnknownFormatError
            If the family has no such variant.
        """

    @property
    def name(self) -> str:
        """Full name, ``family:variant``."""
        return self.spec.name

    @property
    def writable(self) -> bool:
        """Whether weights can be written in this format."""
        return self.grid is not None or self.dense_dtype in ("f32", "f16", "bf16")

    @property
    def readable(self) -> bool:
        """Whether what is stored in this format can be decoded; copying is always possible."""
        return True

    def veto(self, shape: Sequence[int]) -> str | None:
        """Why a tensor of this shape cannot be stored here, or ``None`` if it can.

        The answer reads as the end of a sentence: ``"576 columns are no multiple of 256"``.
        """
        if self.dense_dtype is None and len(shape) != 2:
            return f"{len(shape)} dimensions instead of 2"
        block = self.spec.block_size
        if block > 1 and shape[-1] % block:
            return f"rows of {shape[-1]} do not divide into blocks of {block}"
        return None

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every stored field of a tensor of this shape."""
        rows, columns = int(shape[0]), int(shape[1])
        return {f.name: (f.resolve(rows, columns), f.dtype) for f in self.spec.fields}

    def weight_shape(self, stored: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[int, int]:
        """Shape of the weight whose stored fields have these shapes and dtypes.

        The default solves the descriptor for ``(N, K)``; formats where several widths give the same shapes
        override it.

        Raises
        ------
        ConfigError
            If the fields contradict each other or the descriptor.
        """
        rows: list[int] = []
        columns: list[int] = []
        for spec in self.spec.fields:
            shape, dtype = stored[spec.name]
            if dtype != spec.dtype or len(shape) != len(spec.shape):
                found = f"{dtype} of shape {shape}"
                raise ConfigError(spec.name, found, f"{spec.dtype} of shape ({', '.join(spec.shape)})")
            # Dimensions round up, so that each gives an upper bound: a field of one scale per 64 columns says less than
            # a field of codes.
            for dim, symbol in zip(shape, spec.shape, strict=True):
                rows.append(solve(symbol, "N", dim))
                columns.append(solve(symbol, "K", dim))
        found_rows, found_columns = min(filter(None, rows), default=0), min(filter(None, columns), default=0)
        for spec in self.spec.fields:
            if spec.resolve(found_rows, found_columns) != stored[spec.name][0]:
                wanted = spec.resolve(found_rows, found_columns)
                expected = f"{wanted} for a weight of ({found_rows}, {found_columns})"
                raise ConfigError(spec.name, f"shape {stored[spec.name][0]}", expected)
        return found_rows, found_columns

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of a canonical tensor whose codes and parameters lie on this format's grid.

        Raises
        ------
        ConfigError
            If they do not, or the format cannot be written.
        """
        raise ConfigError(
            "format", self.name, "a format that can be written", "It is read-only: choose another"
        )

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Canonical form (level 1 and up).

        Raises
        ------
        ConfigError
            If the format has no canonical form.
        """
        hint = "Use dequantize: this format can be decoded but has no canonical form (support level 0)"
        raise ConfigError("format", self.name, "a format of support level 1 or more", hint)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Value of every element: float32, the tensor's shape."""
        return self.unpack(packed).dequantize()

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """Quantize with the format's own reference rule and pack, in one step.

        Parameters
        ----------
        dense : Tensor
            float32, float16 or bfloat16, ``(N, K)`` (any shape for dense formats). Not modified.

        Returns
        -------
        PackedTensor
            The same bytes as ``pack`` of ``grid.reference``; formats override this to be faster, never to differ.

        Raises
        ------
        NonFiniteError
            If a value is NaN or infinite, or becomes so in this format.
        """
        import torch

        from qformats.kernels.dense import require_finite

        if self.grid is None:
            raise ConfigError("format", self.name, "a format that can be written")
        require_finite(dense)
        return self.pack(self.grid.quantize(dense.to(torch.float32)))

    # Hugging Face folders: `quantization_config` in config.json.

    @classmethod
    def detect(cls, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of a folder whose config.json holds this ``quantization_config``; ``None`` if it is not ours."""
        return None

    def to_config(self) -> dict[str, Any]:
        """``quantization_config`` of a folder written in this format."""
        return {"quant_method": "qformats", "format": self.name}


class DensePacker(Packer):
    """Base of formats that store plain numbers of one dtype.

    Parameters
    ----------
    spec : FormatSpec
        Descriptor with a single field.
    dtype : str
        Short name of the dtype.
    """

    def __init__(self, spec: FormatSpec, dtype: str) -> None:
        self.spec = spec
        self.dense_dtype = dtype

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of the one stored field: the tensor itself."""
        assert self.dense_dtype is not None
        return {self.spec.fields[0].name: (tuple(shape), self.dense_dtype)}

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32."""
        import torch

        (values,) = packed.fields.values()
        return values.to(torch.float32)

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """Cast with one rounding to nearest even.

        Raises
        ------
        NonFiniteError
            If a value is NaN or infinite, or too large for the dtype.
        """
        from qformats.kernels.dense import cast

        assert self.dense_dtype is not None
        values = cast(dense, self.dense_dtype)
        return PackedTensor(self.name, tuple(dense.shape), {self.spec.fields[0].name: values})


class Quantizer(ABC):
    """Chooses the grid point of each weight; works with any grid.

    Subclasses set :attr:`name` and implement :meth:`quantize`.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""

    @abstractmethod
    def quantize(self, weight: Tensor, packer: Packer, importance: Tensor | None = None) -> QuantizedTensor:
        """Codes and parameters for one weight.

        Parameters
        ----------
        weight : Tensor
            float32, ``(N, K)``. Not modified.
        packer : Packer
            Format whose grid the result must lie on.
        importance : Tensor, optional
            float32, ``(K,)``: weight of each column's squared error.
        """

    def encode(self, dense: Tensor, packer: Packer) -> PackedTensor:
        """Quantize and pack; a quantizer overrides it only to be faster."""
        import torch

        from qformats.kernels.dense import require_finite

        require_finite(dense)
        quantized = self.quantize(dense.to(torch.float32), packer)
        if packer.grid is not None:
            packer.grid.validate(quantized)
        return packer.pack(quantized)


@dataclass(frozen=True)
class Draft:
    """One tensor of an output, before a format is chosen for it.

    Attributes
    ----------
    name : str
        Name in the output.
    source : StoredTensor
        Where its rows come from, already permuted or transposed as the output needs it.
    role : str or None
        ``"output"`` or ``"token_embedding"`` for the two tensors that users address by role.
    keep : str or None
        Format of a tensor that is not quantized (norms, biases, ...); ``None`` for those that are.
    why : str
        Reason for `keep`.
    tied : bool
        Whether the token embedding also serves as the output.
    dense_transposed : bool
        Whether the container stores this matrix as ``[in_features, out_features]`` while it is plain numbers.
    cast_along : bool
        Whether a tensor with `keep` takes the dtype of an export to plain numbers all the same.
    """

    name: str
    source: StoredTensor
    role: str | None = None
    keep: str | None = None
    why: str = ""
    tied: bool = False
    dense_transposed: bool = False
    cast_along: bool = False


@dataclass(frozen=True)
class Assignment:
    """A draft with the format it gets, and the reason if it is not the one asked for.

    `kept` marks tensors that the container never quantizes: the usual, not worth a mention.
    """

    draft: Draft
    packer: Packer
    note: str = ""
    kept: bool = False


@dataclass(frozen=True)
class Placement:
    """Where one field of one tensor lies in an output file.

    Attributes
    ----------
    tensor : int
        Index into the assignments.
    field : str
        Local name of the stored field.
    offset, nbytes : int
        Place in the file.
    """

    tensor: int
    field: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class OutputFile:
    """One file of an output: its exact size, the bytes known from the plan, and where tensors go.

    Attributes
    ----------
    name : str
        File name relative to the output folder, or the final name of a single file.
    size : int
        Exact bytes.
    header : bytes
        Content from offset 0 on; the whole content of a file without tensors.
    placements : tuple of Placement
        Fields to fill in.
    """

    name: str
    size: int
    header: bytes = b""
    placements: tuple[Placement, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Every file of an output.

    Attributes
    ----------
    files : tuple of OutputFile
        For a split model the file that readers open first comes first; it is put in place last.
    folder : bool
        Whether the target is a folder that holds the files, or the files lie beside each other under their names.
    run_with : str
        Command line that uses the result, with ``{target}`` for its path.
    """

    files: tuple[OutputFile, ...]
    folder: bool
    run_with: str = ""

    @property
    def nbytes(self) -> int:
        """Exact bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class LoaderOption:
    """An option that a loader understands, for reading or writing."""

    name: str
    help: str


class Loader(ABC):
    """One container: which files hold a model's tensors, under which names; reads and writes.

    Subclasses set :attr:`name` and :attr:`summary`. Reading yields a :class:`~qformats.checkpoint.Checkpoint` with
    canonical names (those that Transformers' model class uses on disk). Writing happens in three pure steps, all from
    headers: :meth:`draft` the output's tensors, let the framework choose a format for each (asking :meth:`mix` and
    :meth:`fallback`), :meth:`lay_out` the files. The framework fills and seals them.
    """

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    options: ClassVar[tuple[LoaderOption, ...]] = ()
    suffix: ClassVar[str] = ""
    """File name suffix of a single-file output; empty if outputs are folders."""

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether `path` looks like this container; reads a few bytes at most."""

    @abstractmethod
    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open a model: headers only, no weights.

        Raises
        ------
        CheckpointError
            If a file is missing, truncated or corrupt.
        """

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """Tensors of an output made from `source`, in output order.

        Raises
        ------
        UnsupportedModelError
            If the container cannot express this model.
        """
        raise ConfigError("container", self.name, "a container that can be written")

    def mix(self, draft: Draft, packer: Packer) -> tuple[str, str] | None:
        """Another format for this tensor than the one asked for, and why; skipped by ``--pure`` and user rules."""
        return None

    def fallback(self, draft: Draft, packer: Packer) -> tuple[str, ...]:
        """Formats to try, in order, where `packer` cannot hold this tensor; empty to refuse."""
        return ()

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """Every file of the output, with exact sizes and offsets."""
        raise ConfigError("container", self.name, "a container that can be written")


def unknown_variant(family: str, variant: str, known: Sequence[str]) -> UnknownFormatError:
    """Error for :meth:`Packer.parse`."""
    return UnknownFormatError(f"{family}:{variant}", [f"{family}:{name}" for name in known])
