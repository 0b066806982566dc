"""Packers: which bytes hold a tensor."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from qformats.dtypes import FLOATS, SIZES
from qformats.errors import ConfigError, NotExactError, UnknownFormatError
from qformats.grids import Grid
from qformats.spec import FormatSpec, solve
from qformats.tensors import PackedTensor, QuantizedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.exact import Answer

__all__ = ["DensePacker", "ModuleFields", "Packer", "unknown_variant"]


@dataclass(frozen=True)
class ModuleFields:
    """What one module of a folder stores.

    Attributes
    ----------
    name : str
        Name of the module.
    stored : mapping of str to (tuple of int, str)
        Shape and dtype of its tensors whose names its format may use, by the name beside the module.
    read : callable
        Raw bytes of one of them; for small ones, such as a description in JSON.
    """

    name: str
    stored: Mapping[str, tuple[tuple[int, ...], str]]
    read: Callable[[str], bytes]


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
    """Name of the loader that writes this family unless another one is asked for."""

    config_files: ClassVar[tuple[str, ...]] = ()
    """Files of a folder that hold its ``quantization_config`` where config.json has none."""

    spec: FormatSpec
    """Descriptor: stored fields, sizes, support level."""
    grid: Grid | None = None
    """Which numbers can be represented; ``None`` for dense and for read-only formats."""
    dense_dtype: str | None = None
    """Set by formats that store plain numbers (``"f16"``): weights are cast into them, not quantized."""

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

    def row_step(self, shape: Sequence[int]) -> int:
        """How finely a tensor can be cut into ranges of rows.

        Ranges whose ends are multiples of the answer (or the last row) can be packed by themselves, and lie in every
        field as a range of bytes. 0 stands for the whole tensor only. By default every row is a range if each
        field's first dimension is ``N``.
        """
        return int(all(field.shape[:1] == ("N",) for field in self.spec.fields))

    def span(self, field: str, shape: Sequence[int], start: int, stop: int) -> tuple[int, int]:
        """First and last byte (exclusive) of a field in which rows ``[start, stop)`` lie."""
        ends = []
        for rows in (start, stop):
            dims, dtype = self.stored((rows, *shape[1:]))[field]
            ends.append(math.prod(dims) * SIZES[dtype])
        return (ends[0] if start else 0), ends[1]

    def fixed(self, shape: Sequence[int], dtype: str) -> dict[str, Tensor]:
        """Fields that follow from the weight's shape and the source's dtype alone; they are written once, whole.

        Parameters
        ----------
        shape : sequence of int
            ``(N, K)`` of the whole weight.
        dtype : str
            ``"f32"``, ``"f16"`` or ``"bf16"``: what the weight was before it was quantized.
        """
        return {}

    def cut(self, packed: PackedTensor, start: int, stop: int) -> PackedTensor:
        """Rows ``[start, stop)`` of a packed tensor; both as :meth:`row_step` allows.

        Fields that :meth:`fixed` gives stay whole. Nothing is copied.
        """
        rows = packed.shape[0]
        if (start, stop) == (0, rows):
            return packed
        step = self.row_step(packed.shape)
        if not step or start % step or (stop % step and stop != rows):
            allowed = f"multiples of {step}" if step else f"all {rows} rows"
            raise ConfigError(f"rows of {self.name}", (start, stop), allowed)
        shape = (stop - start, *packed.shape[1:])
        stored, whole = self.stored(shape), self.fixed(packed.shape, "f32")
        fields = {}
        for name, value in packed.fields.items():
            if name not in whole:
                first, last = self.span(name, packed.shape, start, stop)
                size = value.element_size()
                value = value.reshape(-1)[first // size : last // size].view(stored[name][0])
            fields[name] = value
        return PackedTensor(packed.format, shape, fields)

    def pick(self, packed: PackedTensor, order: Tensor) -> PackedTensor:
        """Rows of a packed tensor in another order, where each row is a range of its own (:meth:`row_step` is 1).

        Parameters
        ----------
        order : Tensor
            int64, ``(M,)``: new row ``i`` is old row ``order[i]``.
        """
        whole, shape = self.fixed(packed.shape, "f32"), (len(order), *packed.shape[1:])
        stored = self.stored(shape)
        fields = {
            name: value if name in whole else value.reshape(packed.shape[0], -1)[order].view(stored[name][0])
            for name, value in packed.fields.items()
        }
        return PackedTensor(packed.format, shape, fields)

    def join(self, parts: Sequence[PackedTensor]) -> PackedTensor:
        """Packed tensors below each other, where each row is a range of its own."""
        import torch

        first = parts[0]
        whole = self.fixed(first.shape, "f32")
        fields = {
            name: value if name in whole else torch.cat([part.fields[name] for part in parts])
            for name, value in first.fields.items()
        }
        return PackedTensor(first.format, (sum(p.shape[0] for p in parts), *first.shape[1:]), fields)

    def refit(self, part: PackedTensor, shape: Sequence[int]) -> PackedTensor:
        """Rows of a tensor of another shape than they were packed for: with that tensor's fields of :meth:`fixed`."""
        fixed = self.fixed(shape, self.made_from(part)) if self.dense_dtype is None else {}
        return replace(part, fields={**part.fields, **fixed}) if fixed else part

    def made_from(self, packed: PackedTensor) -> str:
        """Dtype of the weight before it was quantized, for formats that store it: ``"f32"``, ``"f16"``, ``"bf16"``."""
        return "f32"

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """Format of the same values in which rows can be put into another order; ``None`` if blocks straddle them.

        It is this one unless something is stored for several rows together.
        """
        if self.row_step(shape) == 1:
            return self
        within = self.grid is not None and not (self.grid.block_size and shape[1] % self.grid.block_size)
        return self if within and self.spec.level else None

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

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Tell whether :meth:`hold` takes what `source` stores, and why not, from descriptors alone.

        Parameters
        ----------
        source : Packer
            Format that the tensor comes from.
        shape : sequence of int
            ``(N, K)``.
        """
        from qformats.exact import Answer, foresee

        if not source.spec.level or self.grid is None:
            other = self if self.grid is None else source
            return Answer.NEVER, f"{other.name} has no canonical form"
        problem = self.veto(shape)
        if problem:
            return Answer.NEVER, problem
        if source.grid is None:
            return Answer.DATA, ""
        return foresee(source.grid, self.grid, (int(shape[0]), int(shape[1])))

    def hold(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Give a canonical tensor of the same values that :meth:`pack` takes, whatever format it comes from.

        Raises
        ------
        NotExactError
            If this format has no such tensor, saying why.
        """
        if self.grid is None:
            raise NotExactError(f"{self.name} has no grid")
        problem = self.veto(quantized.shape)
        if problem:
            raise NotExactError(problem)
        return self.grid.hold(quantized)

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
        from qformats.kernels.dense import require_finite

        if self.grid is None:
            raise ConfigError("format", self.name, "a format that can be written")
        require_finite(dense)
        return self.pack(self.grid.quantize(dense))

    # Hugging Face folders: what config.json declares, and which tensors of a module belong to its weight.

    @classmethod
    def detect(cls, quantization_config: Mapping[str, Any]) -> Packer | None:
        """Packer of a folder whose config.json holds this ``quantization_config``; ``None`` if it is not ours."""
        return None

    def to_config(
        self, *, dense_modules: Sequence[str] = (), packed_modules: Sequence[str] = (), dtype: str = "float32"
    ) -> dict[str, Any]:
        """``quantization_config`` of a folder written in this format.

        Parameters
        ----------
        dense_modules : sequence of str
            Linear modules that are left as plain numbers, such as ``"lm_head"``.
        packed_modules : sequence of str
            Modules that are stored in this format.
        dtype : str
            dtype of the model's plain numbers, as config.json spells it.

        Raises
        ------
        ConfigError
            If readers of such folders could not load one of these modules.
        """
        return {"quant_method": "qformats", "format": self.name}

    def extra_files(self, quantization_config: Mapping[str, Any]) -> dict[str, bytes]:
        """More files of a folder with this ``quantization_config``, by name."""
        return {}

    @property
    def suffixes(self) -> frozenset[str]:
        """Every name beside a module under which its weight may be stored."""
        return frozenset(field.name for field in self.spec.fields)

    def locate(self, module: ModuleFields) -> tuple[Packer, tuple[int, int]] | None:
        """Format and shape ``(N, K)`` of the weight that a module of a folder stores.

        It is asked of the packer that the folder declares, for each module that has one of :attr:`suffixes`.

        Returns
        -------
        tuple or None
            ``None`` for a module of plain numbers.

        Raises
        ------
        ConfigError
            If the fields are incomplete or contradict each other.
        """
        fields = {field.name: field for field in self.spec.fields}
        missing = sorted(fields.keys() - module.stored.keys())
        if not missing:
            return self, self.weight_shape(module.stored)
        for name, (_, dtype) in module.stored.items():
            # A module that was not quantized has a float `weight` of its own; integers alone mean nothing.
            if name in fields and dtype == fields[name].dtype and dtype not in FLOATS:
                present = sorted(fields.keys() & module.stored.keys())
                raise ConfigError(f"fields of {self.name}", present, " and ".join(fields))
        return None

    def separate(self, module: ModuleFields) -> frozenset[str]:
        """Names among :attr:`suffixes` of tensors that are no part of this module's weight, such as its bias."""
        return frozenset()

    def take(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Packed tensor of fields as they lie in a folder.

        A packer overrides it to check what shapes cannot tell, and to bring variants of storage into its own fields.
        """
        return PackedTensor(self.name, shape, fields)


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

    def row_step(self, shape: Sequence[int]) -> int:
        """Every row is by itself."""
        return 1

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


def unknown_variant(family: str, variant: str, known: Sequence[str]) -> UnknownFormatError:
    """Error for :meth:`Packer.parse`."""
    return UnknownFormatError(f"{family}:{variant}", [f"{family}:{name}" for name in known])
