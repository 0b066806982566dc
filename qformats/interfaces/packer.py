"""Packers: which bytes hold a tensor; and the packed tensor, which knows its packer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from qformats.errors import ConfigError, Described, NotExactError, ShapeError
from qformats.exact import Answer, foresee, represent
from qformats.interfaces.spec import FormatSpec, solve
from qformats.numbers import FLOATS, SIZES, Grid, QuantizedTensor, dtype_name, torch_dtype
from qformats.work.arguments import told
from qformats.work.guard import Guarded
from qformats.work.shown import Shown, bits, dims, nbytes

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["PackedTensor", "Packer", "RowProducts"]

RowProducts = Callable[["NDArray[float32]", "NDArray[float32]", int, int], None]
"""Products of rows with a vector, see :meth:`Packer.row_products`."""


class Packer(Shown, Guarded):
    """One format, ``family:variant``: which bytes hold a tensor, under which fields.

    A subclass sets :attr:`spec`, and :attr:`grid` unless the format is only readable, on the class or on each
    instance; it implements :meth:`unpack` (or only :meth:`dequantize`: support level 0), and :meth:`pack` if weights
    can be written. Everything else has a default that follows from these.

    Weights are ``[out_features, in_features]``, ``(N, K)`` below.

    Examples
    --------
    A byte per weight, with one scale per row:

    >>> from qformats import AffineGrid, FieldSpec, FormatSpec, PackedTensor, Packer, QuantizedTensor
    >>> class Byte(Packer):
    ...     fields = (FieldSpec("codes", ("N", "K"), "u8"), FieldSpec("scale", ("N",), "f16"))
    ...     spec = FormatSpec("example", "byte", "8 bits, a scale per row", fields, bits=8, block_size=0)
    ...     grid = AffineGrid(8, block_size=0)
    ...
    ...     def pack(self, quantized):
    ...         fields = {"codes": quantized.codes, "scale": quantized.scale.half().flatten()}
    ...         return PackedTensor(self, quantized.shape, fields)
    ...
    ...     def unpack(self, packed):
    ...         fields = self.checked(packed).fields
    ...         scale = fields["scale"].unsqueeze(1)
    ...         return QuantizedTensor(fields["codes"], scale, (1, packed.shape[1]), zero_point=128)
    >>> import torch
    >>> packed = Byte().encode_reference(torch.tensor([[0.5, -1.0, 0.25, 1.0]]))
    >>> packed.nbytes, packed.fields["codes"].tolist()
    (6, [[192, 1, 160, 255]])
    """

    guarded = (
        *(
            "veto",
            "stored",
            "row_step",
            "span",
            "fixed",
            "made_from",
            "row_packer",
            "weight_shape",
            "foresee",
            "scales",
        ),
        *("represent", "pack", "unpack", "dequantize", "dequantize_into", "row_products", "encode_reference"),
        *("quantize_reference", "from_stored", "sharing", "keeping"),
    )

    role = "format"
    container: ClassVar[str] = "huggingface"
    """Name of the loader that writes this format unless another is requested."""

    spec: FormatSpec
    """Descriptor: stored fields, sizes, support level."""
    grid: Grid | None = None
    """Which numbers can be represented; ``None`` for dense and for read-only formats."""
    dense_dtype: str | None = None
    """Set by formats that store plain numbers (``"f16"``): weights are cast into them, not quantized."""
    on_device: bool = False
    """Whether :meth:`pack`, :meth:`unpack` and :meth:`scales` compute where the tensors they are given are; if not,
    they are given tensors on a CPU."""
    default_quantizer: str = "rtn"
    """Quantizer of a model in this format unless another is requested; ``"rtn"`` is the format's own rule."""

    joint: str = ""
    """Field of one number per tensor that programs take from one of the matrices which they join: :meth:`sharing` is
    then asked for the same number for all of them."""

    def sharing(self, largest: float) -> Packer:
        """Choose the number of :attr:`joint` for tensors whose largest magnitude is `largest`: another packer."""
        return self

    def keeping(self, parts: Iterable[QuantizedTensor]) -> Packer:
        """Choose the number of :attr:`joint` with which all of these stay unchanged: another packer.

        It is this one if there is no such number.
        """
        return self

    def _shown_facts(self) -> dict[str, str]:
        # One that sets its descriptor in __init__ has none before.
        return self.spec._shown_facts() if hasattr(self, "spec") else {"name": "without a descriptor"}

    def _shown_rows(self) -> list[tuple[str, ...]]:
        return self.spec._shown_rows() if hasattr(self, "spec") else []

    @property
    def name(self) -> str:
        """Full name, ``family:variant``."""
        return self.spec.name

    @property
    def family(self) -> str:
        """First half of the name."""
        return self.spec.family

    @property
    def typical(self) -> Packer:
        """Format of most tensors of a model: this one, unless the name stands for a choice of several."""
        return self

    @property
    def quantizes(self) -> bool:
        """Whether it stores codes and not plain numbers."""
        return self.dense_dtype is None

    @property
    def writable(self) -> bool:
        """Whether weights can be written in this format."""
        return self.grid is not None or self.dense_dtype in ("f32", "f16", "bf16")

    @property
    def readable(self) -> bool:
        """Whether what is stored in this format can be decoded; copying is always possible."""
        return True

    # Shapes.

    def veto(self, shape: Sequence[int]) -> str | None:
        """Why a tensor of this shape cannot be stored here, or ``None`` if it can.

        The answer reads as a clause of its own: ``"576 columns are not a multiple of 256"``.
        """
        if self.quantizes and len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        block = self.spec.block_size
        if block > 1 and shape[-1] % block:
            return f"rows of {shape[-1]} do not divide into blocks of {block}"
        return None

    def require(self, shape: Sequence[int], tensor: str = "weight") -> None:
        """Refuse a shape that this format cannot store.

        Raises
        ------
        ShapeError
            Saying why: what :meth:`veto` answers.
        """
        problem = self.veto(shape)
        if problem:
            raise ShapeError(tensor, tuple(shape), f"one that {self.name} can hold ({problem})")

    def stored(self, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every stored field of a tensor of this shape."""
        rows, columns = int(shape[0]), int(shape[1])
        return {f.name: (f.resolve(rows, columns), f.dtype) for f in self.spec.fields}

    def nbytes(self, shape: Sequence[int]) -> int:
        """Exact stored bytes of a tensor of this shape."""
        return sum(math.prod(dims) * SIZES[dtype] for dims, dtype in self.stored(shape).values())

    def checked(self, packed: PackedTensor) -> PackedTensor:
        """Refuse a packed tensor whose fields are not those of its shape; otherwise return it.

        Raises
        ------
        ShapeError
            If the format cannot store the shape, or a field is missing or of another shape or dtype.
        """
        self.require(packed.shape)
        return self.intact(packed)

    def intact(self, packed: PackedTensor) -> PackedTensor:
        """Refuse a packed tensor whose fields are not those of its shape, whatever :meth:`veto` says of the shape.

        It is for formats that read more shapes than they write; all others call :meth:`checked`.

        Raises
        ------
        ShapeError
            If a field is missing or of another shape or dtype.
        """
        for name, (shape, dtype) in self.stored(packed.shape).items():
            held = packed.fields.get(name)
            if held is None or tuple(held.shape) != shape or held.dtype != torch_dtype(dtype):
                expected = f"{shape} of {dtype} for a weight of {tuple(packed.shape)}"
                if held is None:
                    raise ShapeError(name, None, expected)
                raise ShapeError(name, f"{tuple(held.shape)} of {_spelled(held)}", expected)
        return packed

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
                found = Described(f"{dtype} of shape {shape}")
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
                raise ConfigError(spec.name, Described(f"shape {stored[spec.name][0]}"), expected)
        return found_rows, found_columns

    # Rows.

    def row_step(self, shape: Sequence[int]) -> int:
        """How finely a tensor can be cut into ranges of rows.

        Ranges whose ends are multiples of the answer (or the last row) can be packed separately, and lie in every
        field as a range of bytes. 0 stands for the whole tensor only. By default every row is a range if each
        field's first dimension is ``N``.
        """
        return int(all(field.shape[:1] == ("N",) for field in self.spec.fields))

    def by_matrix(self, shape: Sequence[int]) -> bool:
        """Whether this is a stack of matrices each of which is packed by itself, with numbers for all of its rows."""
        return len(shape) > 2 and self.row_step(shape) == 1 and not self.row_step(shape[1:])

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

    def made_from(self, packed: PackedTensor) -> str:
        """Dtype of the weight before it was quantized, for formats that store it: ``"f32"``, ``"f16"``, ``"bf16"``."""
        return "f32"

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """Format of the same values whose rows can be reordered; ``None`` if blocks straddle them.

        It is this one unless something is stored for several rows together.
        """
        if self.row_step(shape) == 1:
            return self
        within = self.grid is not None and not (self.grid.block_size and shape[1] % self.grid.block_size)
        return self if within and self.spec.level else None

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Stored scales of a packed tensor, and minima if there are any; nothing is decoded.

        They tell exports what to refuse or to report. Codes decode to finite values if all of these numbers are finite,
        and to zeros in blocks where all of them are 0.

        Returns
        -------
        sequence of Tensor
            Floats, all of one shape. By default the float fields of the descriptor that have the shape of the first.
        """
        floats = [
            packed.fields[f.name] for f in self.spec.fields if f.dtype in FLOATS and f.name in packed.fields
        ]
        return [each for each in floats if each.shape == floats[0].shape]

    # What stays exact.

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Tell whether :meth:`represent` takes what `source` stores, and why not, from descriptors alone.

        Parameters
        ----------
        source : Packer
            Format that the tensor comes from.
        shape : sequence of int
            ``(N, K)``.
        """
        if not source.spec.level or self.grid is None:
            other = self if self.grid is None else source
            return Answer.NEVER, f"{other.name} has no canonical form"
        problem = self.veto(shape)
        if problem:
            return Answer.NEVER, problem
        if source.grid is None:
            return Answer.DATA, ""
        return foresee(source.grid, self.grid, (int(shape[0]), int(shape[1])))

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
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
        return represent(quantized, self.grid)

    # Bytes.

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

    def dequantize_into(self, packed: PackedTensor, out: Tensor) -> None:
        """Write the value of every element into memory that is there already; formats override this to be faster.

        Parameters
        ----------
        packed : PackedTensor
            Not modified.
        out : Tensor
            float32, or float16 or bfloat16, to which values are rounded once; contiguous, of the weight's shape, on the
            device of the fields. Overwritten.
        """
        out.copy_(self.dequantize(packed))

    def row_products(self, packed: PackedTensor) -> RowProducts | None:
        """Prepare products with single vectors on a CPU, for formats that have compiled code for them.

        Layers call the result once per token, so whatever depends on the weight alone is settled here.

        Parameters
        ----------
        packed : PackedTensor
            ``(N, K)`` on a CPU; its fields may be referred to, and are not modified.

        Returns
        -------
        callable or None
            ``(x, out, start, stop)`` writes ``W[start:stop] @ x`` into ``out[start:stop]``, values and sums in float32;
            `x` is ``(K,)`` and `out` ``(N,)``, both float32 and contiguous. Threads call it at the same time, for other
            rows: it should release the GIL. None: values are decoded for each product, by :meth:`dequantize_into`.
        """
        return None

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

    def quantize_reference(self, dense: Tensor) -> QuantizedTensor:
        """Codes and parameters by the format's own reference rule.

        Parameters
        ----------
        dense : Tensor
            float32, float16 or bfloat16, ``(N, K)``. Not modified.

        Returns
        -------
        QuantizedTensor
            The codes and parameters of ``grid.quantize``, in the dtypes that :meth:`unpack` gives. Where a format
            encodes in one step on a processor, that is decoded: codes without a detour through bytes are a reason to
            override this.

        Raises
        ------
        NonFiniteError
            If a value is NaN or infinite, or becomes so in this format.
        """
        from qformats.kernels.dense import require_finite

        if self.grid is None:
            raise ConfigError("format", self.name, "a quantized format")
        if dense.ndim != 2:
            raise ShapeError("weight", tuple(dense.shape), "two dimensions (out_features, in_features)")
        # The grid's torch code reads a weight a dozen times; a kernel does it once.
        if dense.device.type == "cpu" and type(self).encode_reference is not Packer.encode_reference:
            return self.unpack(self.encode_reference(dense))
        require_finite(dense)
        return self.grid.quantize(dense)

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Packed tensor of fields as stored in a folder.

        A packer overrides it to check what shapes cannot tell, and to convert variants of storage into its own fields.
        """
        return PackedTensor(self, shape, fields)


@dataclass(frozen=True, eq=False, repr=False)
class PackedTensor(Shown):
    """Which bytes hold a weight in one format.

    Attributes
    ----------
    packer : Packer
        The format.
    shape : tuple of int
        Shape of the weight: ``(N, K)``, or any shape for dense formats.
    fields : mapping of str to Tensor
        Stored tensors by local name, shapes and dtypes as the format's descriptor says.

    Examples
    --------
    >>> import torch, qformats
    >>> packed = qformats.pack(qformats.quantize(torch.ones(2, 64), "gguf:q8_0"), "gguf:q8_0")
    >>> packed.format, packed.shape, packed.nbytes
    ('gguf:q8_0', (2, 64), 136)
    >>> packed.dequantize().shape
    torch.Size([2, 64])
    """

    packer: Packer
    shape: tuple[int, ...]
    fields: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def format(self) -> str:
        """Name of the format, ``family:variant``."""
        return self.packer.name

    @property
    def nbytes(self) -> int:
        """Stored bytes, all fields together."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.fields.values())

    def _shown_facts(self) -> dict[str, str]:
        weights = math.prod(self.shape)
        return {
            "format": self.format,
            "shape": dims(self.shape),
            "bytes": nbytes(self.nbytes),
            "bits": bits(self.nbytes, weights),
            "fields": "; ".join(
                f"{name} {_spelled(part)} {dims(part.shape)}" for name, part in self.fields.items()
            ),
        }

    def unpack(self) -> QuantizedTensor:
        """Canonical form, without any rounding; see :meth:`Packer.unpack`."""
        return self.packer.unpack(self)

    def dequantize(self, out: Tensor | None = None) -> Tensor:
        """Value of every element, the shape of the weight.

        Parameters
        ----------
        out : Tensor, optional
            Where to write them instead of to new memory, which takes longer to come by than the values: contiguous,
            float32, or float16 or bfloat16, to which they are rounded once.

        Returns
        -------
        Tensor
            `out`, or float32.

        Raises
        ------
        ShapeError
            If `out` has another shape or is not contiguous.
        ConfigError
            If it has another dtype or lies on another device.
        """
        if out is None:
            return self.packer.dequantize(self)
        if not hasattr(out, "is_contiguous"):
            raise ConfigError("out", told(out), "a torch tensor")
        if out.shape != self.shape or not out.is_contiguous():
            found = f"{tuple(out.shape)}" + ("" if out.is_contiguous() else ", not contiguous")
            raise ShapeError("out", found, f"{self.shape}, contiguous")
        if out.dtype not in map(torch_dtype, ("f32", "f16", "bf16")):
            raise ConfigError("dtype of out", _spelled(out), "f32, f16 or bf16")
        device = next(iter(self.fields.values())).device
        if out.device != device:
            raise ConfigError("device of out", str(out.device), f"{device}, where the packed tensor is")
        self.packer.dequantize_into(self, out)
        return out


def _spelled(tensor: Tensor) -> str:
    """Short name of a tensor's dtype; torch's own if there is none."""
    try:
        return dtype_name(tensor.dtype)
    except ConfigError:
        return str(tensor.dtype).removeprefix("torch.")
