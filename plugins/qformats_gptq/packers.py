"""The packer of ``gptq``: its fields, and how their bytes are to be read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described, NotExactError, ShapeError
from qformats.interfaces import Answer, foresee, represent
from qformats.numbers import empty, torch_dtype
from qformats_gptq.grid import GroupGrid
from qformats_gptq.modules import in_order, normal_order
from qformats_gptq.zeros import CONVENTIONS, VERSIONS, constant_words, pack_zeros, unpack_zeros

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FAMILY", "GPTQPacker", "Reading"]

FAMILY = "gptq"
_SAMPLE = 1 << 20
"""Weights that are looked at to tell how asymmetric zero points are stored: enough for a mean of 8-bit codes."""
_SQNR_DB = {
    (2, True): 5.0,
    (2, False): 5.7,
    (3, True): 12.3,
    (3, False): 13.1,
    (4, True): 18.9,
    (4, False): 19.7,
    (8, True): 43.5,
    (8, False): 44.3,
}
"""Signal-to-noise ratio that groups of 128 reach, by width and symmetry."""


@dataclass(frozen=True)
class Reading:
    """How the zero points of a folder are to be read.

    Attributes
    ----------
    version : str or None
        ``checkpoint_format``; ``None``: as this packer writes them.
    labelled : bool
        Whether the folder says so; otherwise the weights decide.
    zeros : str
        One of :data:`~qformats_gptq.zeros.CONVENTIONS`.
    group_size : int or None
        Columns of a group as declared; 0 for the whole row.
    symmetric : bool or None
        Whether zero points are declared to be all the same.
    inorder : bool
        Whether columns are declared to follow each other.
    overrides : tuple of (str, mapping)
        Modules that are declared to have other widths or groups, by name or pattern.
    """

    version: str | None = None
    labelled: bool = True
    zeros: str = "mask"
    group_size: int | None = None
    symmetric: bool | None = None
    inorder: bool = False
    overrides: tuple[tuple[str, Mapping[str, Any]], ...] = ()


class GPTQPacker(Packer):
    """Codes in words along the input dimension, float16 scales and zero points of groups of columns.

    Parameters
    ----------
    bits : int
        2, 3, 4 or 8.
    group_size : int
        Columns of a group; 0 for the whole row.
    actorder : bool
        Whether columns may belong to groups in any order; ``g_idx`` tells which.
    symmetric : bool
        Whether all zero points are the middle code. Then they are stored as ``checkpoint_format`` ``gptq``, else as
        ``gptq_v2``, since a zero point of 0 has no code in the former.
    scale_dtype : str
        ``"f16"``, or ``"bf16"`` and ``"f32"`` as some files have it.
    """

    grid: GroupGrid
    on_device = True
    default_quantizer = "gptq"

    def __init__(
        self,
        bits: int,
        group_size: int,
        actorder: bool = False,
        symmetric: bool = True,
        scale_dtype: str = "f16",
    ) -> None:
        self.bits, self.group_size, self.actorder = bits, group_size, actorder
        self.symmetric, self.scale_dtype = symmetric, scale_dtype
        self.reading = Reading()
        kind = "symmetric" if symmetric else "zero_point"
        self.grid = GroupGrid(bits, group_size, kind, scale_dtype, reordered=actorder)
        groups = f"K / {group_size}" if group_size else "1"
        flags = ["actorder"] * actorder + ["asym"] * (not symmetric) + [scale_dtype] * (scale_dtype != "f16")
        summary = f"{bits} bits, {'symmetric, one scale' if symmetric else 'one scale and zero point'} per "
        summary += f"{group_size} columns" if group_size else "row"
        self.spec = FormatSpec(
            FAMILY,
            "-".join([f"{bits}bit", f"{group_size or -1}g", *flags]),
            summary + (", columns reordered" if actorder else ""),
            (
                FieldSpec("qweight", (f"K / 32 * {bits}", "N"), "i32", "packed codes"),
                FieldSpec("qzeros", (groups, f"N / 32 * {bits}"), "i32", "packed zero points"),
                FieldSpec("scales", (groups, "N"), scale_dtype, "weight units per step"),
                FieldSpec("g_idx", ("K",), "i32", "group of each column"),
            ),
            bits=bits,
            block_size=group_size,
            source="AutoGPTQ:auto_gptq/nn_modules/qlinear/qlinear_cuda.py",
            sqnr_floor_db=_SQNR_DB.get((bits, symmetric)) if group_size == 128 else None,
            kernel=KernelSpec(bits, "affine", group_size, "f16" if scale_dtype == "f16" else "f32"),
        )

    # What a folder declares.

    def reading_as(self, checkpoint_format: str | None = None, zeros: str = "mask") -> GPTQPacker:
        """The same packer for a folder whose zero points are known to be stored in a certain way.

        Parameters
        ----------
        checkpoint_format : str, optional
            ``"gptq"`` or ``"gptq_v2"``; by default what the folder's weights tell.
        zeros : str
            One of :data:`~qformats_gptq.zeros.CONVENTIONS`.

        Raises
        ------
        ConfigError
            If there is no such way.
        """
        if checkpoint_format is not None and checkpoint_format not in VERSIONS:
            raise ConfigError("checkpoint_format", checkpoint_format, " or ".join(VERSIONS))
        if zeros not in CONVENTIONS:
            raise ConfigError("zeros", zeros, ", ".join(CONVENTIONS))
        own = copy.copy(self)
        own.reading = replace(self.reading, version=checkpoint_format, zeros=zeros)
        return own

    @property
    def version(self) -> str:
        """``checkpoint_format`` in which zero points are stored."""
        return "gptq" if self.symmetric else "gptq_v2"

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Check scales and order, add an order where there is none, and store zero points as this packer does."""
        import torch

        kept = {name: fields[name] for name in ("qweight", "qzeros", "scales")}
        if not bool(kept["scales"].isfinite().all()):
            bad = int((~kept["scales"].isfinite()).sum())
            raise ConfigError("scales", Described(f"{bad} values that are NaN or infinite"), "finite scales")
        columns = shape[1]
        groups = self.grid_shape(shape)[1]
        g_idx = fields.get("g_idx")
        if g_idx is None or not g_idx.numel():
            g_idx = self._order(columns)
        kept["g_idx"] = torch.from_numpy(normal_order(g_idx.numpy(), groups))
        if not self.actorder and not in_order(kept["g_idx"].numpy(), self.group_size):
            raise ConfigError("g_idx", Described("columns in another order"), f"the order of {self.name}")
        version = self.reading.version or self.version
        if self.symmetric:
            stored = torch.from_numpy(self._constant(shape[0], version)).expand(groups, -1)
            if not torch.equal(kept["qzeros"], stored):
                expected = f"{1 << (self.bits - 1)} everywhere"
                raise ConfigError("qzeros", Described("zero points that differ"), expected)
            if version != self.version:
                kept["qzeros"] = torch.from_numpy(self._constant(shape[0], self.version)).repeat(groups, 1)
        elif self.reading.version is not None:
            if not self.reading.labelled:
                version = self._told_by_weights(kept)
            elif self.bits < 8 and self._told_by_weights(kept) != version:
                warnings.warn(
                    f"GPTQ weights are far from zero on average with zero points stored as "
                    f"checkpoint_format {version!r} says; they are still read so (to read them "
                    "otherwise, use the option quantization-config)",
                    UserWarning,
                    stacklevel=2,
                )
            zero = unpack_zeros(kept["qzeros"], self.bits, version, self.reading.zeros)
            kept["qzeros"] = pack_zeros(zero, self.bits, self.version)
        return PackedTensor(self, shape, kept)

    def _constant(self, outputs: int, version: str) -> Any:
        return constant_words(self.bits, outputs, (1 << (self.bits - 1)) - VERSIONS[version])

    def _told_by_weights(self, fields: Mapping[str, Tensor]) -> str:
        """``checkpoint_format`` under which weights are about zero on average."""
        rows = int(fields["scales"].shape[1])
        outputs = min(rows, -(-_SAMPLE // len(fields["g_idx"]) // 32) * 32)
        codes = self._codes(fields["qweight"][:, :outputs].contiguous()).float()
        words = fields["qzeros"][:, : outputs * self.bits // 32]
        stored = unpack_zeros(words, self.bits, "gptq_v2").float()
        columns = fields["g_idx"].long().bincount(minlength=len(stored)).float()
        mean = float(codes.mean()) - float(stored.mean(1) @ columns) / len(fields["g_idx"])
        return "gptq" if mean > 0.5 else "gptq_v2"

    # Shapes.

    def veto(self, shape: Sequence[int]) -> str | None:
        """Whole words in both dimensions; the last group of a row may be short."""
        if len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        for size, what in zip(shape, ("outputs", "columns"), strict=True):
            if size % 32 or not size:
                return f"{size} {what} are not a multiple of 32"
        return None

    def row_step(self, shape: Sequence[int]) -> int:
        """Only the whole tensor: words of zero points hold those of several rows."""
        return 0

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The format itself: groups lie within rows."""
        return self

    def grid_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Rows and groups of a row of a weight of this shape."""
        return int(shape[0]), -(-int(shape[1]) // self.group_size) if self.group_size else 1

    def _order(self, columns: int) -> Tensor:
        """``g_idx`` of columns in order."""
        import torch

        return torch.arange(columns, dtype=torch.int32) // (self.group_size or columns)

    def _short(self, shape: Sequence[int]) -> int:
        """Columns of a last group that is short; 0 if there is none."""
        return int(shape[1]) % self.group_size if self.group_size else 0

    # What stays exact.

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Whether :meth:`represent` accepts what `source` stores; see :meth:`~qformats.Packer.foresee`."""
        if source.grid is None or not source.spec.level or self.veto(shape):
            return super().foresee(source, shape)
        rows, columns, short = int(shape[0]), int(shape[1]), self._short(shape)
        reordered, grid_of_source = False, source.grid
        if isinstance(source, GPTQPacker) and source.actorder:
            # Columns keep their order where groups are of the same size.
            reordered = not (self.actorder and self.group_size == source.group_size)
            grid_of_source = replace(source.grid, reordered=False)
        parts = [(self.grid, columns - short)] if columns > short else []
        parts += [(replace(self.grid, block_size=0), short)] if short else []
        answers = [foresee(grid_of_source, grid, (rows, part), reordered=reordered) for grid, part in parts]
        length = source.grid.block_size
        if short and (source.grid.flat or (length and (columns - short) % length)):
            answers.append((Answer.DATA, f"the last group of {short} columns may span several scales"))
        for worst in (Answer.NEVER, Answer.DATA):
            for answer, reason in answers:
                if answer is worst:
                    return answer, reason
        return Answer.ALWAYS, ""

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """Canonical tensor of the same values; see :meth:`~qformats.Packer.represent`.

        An order of columns is kept if this variant has one and groups are of its size.
        """
        import torch

        problem = self.veto(quantized.shape)
        if problem:
            raise NotExactError(problem)
        g_idx = quantized.g_idx
        if g_idx is None or not self.actorder or quantized.block_size != (1, self.group_size):
            return self._represent(quantized)
        order = g_idx.argsort(stable=True)
        if not torch.equal(g_idx[order], self._order(len(order)).to(g_idx.device)):
            return self._represent(quantized)
        held = self._represent(replace(quantized, codes=quantized.codes[:, order], g_idx=None))
        return replace(held, codes=held.codes[:, order.argsort()], g_idx=g_idx)

    def _represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """The same in groups of columns in order; a short last group is held by itself."""
        import torch

        short, columns = self._short(quantized.shape), quantized.shape[1]
        if not short:
            return represent(quantized, self.grid)
        parts = [
            represent(_columns(quantized, first, last), replace(self.grid, block_size=size))
            for size, first, last in ((self.group_size, 0, columns - short), (0, columns - short, columns))
            if first < last
        ]
        zero = parts[0].zero_point
        if not isinstance(zero, int | float):
            zero = torch.cat([torch.as_tensor(part.zero_point) for part in parts], 1)
        return QuantizedTensor(
            torch.cat([part.codes for part in parts], 1),
            torch.cat([part.scale for part in parts], 1),
            (1, self.group_size),
            zero_point=zero,
        )

    # Bytes.

    def _fields(self, packed: PackedTensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fields of a packed tensor, checked, in the descriptor's order."""
        self.checked(packed)
        words, zeros, scales, g_idx = (packed.fields[field.name] for field in self.spec.fields)
        return words, zeros, scales, g_idx

    def _codes(self, words: Tensor) -> Tensor:
        """Codes of ``qweight``, uint8 ``(N, K)``."""
        import torch

        from qformats.numbers import unpack_bits

        columns, rows = int(words.shape[0]) * 32 // self.bits, int(words.shape[1])
        if words.device.type != "cpu":
            return unpack_bits(words.t().contiguous().view(torch.uint8), self.bits, columns)
        from qformats_gptq import kernels

        codes = empty((rows, columns), torch.uint8)
        kernels.unpack(self.bits, words.contiguous().numpy(), codes.numpy())
        return codes

    def _words(self, codes: Tensor) -> Tensor:
        """``qweight`` of codes ``(N, K)``."""
        import torch

        from qformats.numbers import pack_bits

        rows, columns = codes.shape
        if codes.device.type != "cpu":
            # It looks at the codes, too.
            return pack_bits(codes, self.bits).view(torch.int32).t().contiguous()
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.grid.levels):
            found = f"[{int(codes.min())}, {int(codes.max())}]"
            raise ConfigError("codes", found, f"[0, {self.grid.levels - 1}]")
        from qformats_gptq import kernels

        words = empty((columns * self.bits // 32, rows), torch.int32)
        kernels.pack(self.bits, codes.to(torch.uint8).contiguous().numpy(), words.numpy())
        return words

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and parameters; all are stored unchanged.

        Raises
        ------
        ConfigError
            If groups are not those of this format, or a number has no code.
        ShapeError
            If the weight does not divide into whole words.
        """
        import torch

        shape = quantized.shape
        self.require(shape)
        block = self.grid.block_of(quantized.codes)
        if quantized.block_size != block or quantized.codebook is not None or quantized.minimum is not None:
            raise ConfigError("block_size", quantized.block_size, f"{block}, with equally spaced levels")
        if quantized.g_idx is not None and not self.actorder:
            hint = "Use the variant with -actorder"
            raise ConfigError("g_idx", Described("columns in another order"), "columns in order", hint)
        grid_shape, zero = self.grid_shape(shape), quantized.zero_point
        if tuple(quantized.scale.shape) != grid_shape:
            raise ShapeError("scale", tuple(quantized.scale.shape), f"{grid_shape}, one value per group")
        if self.symmetric:
            middle = 1 << (self.bits - 1)
            if bool((torch.as_tensor(zero) != middle).any()):
                raise ConfigError("zero_point", zero, f"{middle} everywhere")
            zeros = torch.from_numpy(self._constant(shape[0], self.version)).repeat(grid_shape[1], 1)
        else:
            values = torch.as_tensor(zero, dtype=torch.int32).expand(grid_shape)
            zeros = pack_zeros(values.t(), self.bits, self.version)
        g_idx = self._order(shape[1]) if quantized.g_idx is None else quantized.g_idx.to(torch.int32)
        scale = quantized.scale.to(torch_dtype(self.scale_dtype)).t().contiguous()
        device = quantized.codes.device
        fields = {
            "qweight": self._words(quantized.codes),
            "qzeros": zeros.to(device),
            "scales": scale,
            "g_idx": g_idx.to(device),
        }
        return PackedTensor(self, shape, fields)

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """Round by the reference rule and pack; by compiled kernels on a CPU.

        Raises
        ------
        NonFiniteError
            If a weight is not finite, or so large that the scale of its group is beyond the stored dtype.
        ShapeError
            If the weight does not divide into whole words.
        """
        return self.pack(self.quantize_reference(dense))

    def quantize_reference(self, dense: Tensor) -> QuantizedTensor:
        """Codes and parameters by the reference rule, without the words; by a compiled kernel on a CPU."""
        import torch

        self.require(dense.shape)
        known = (torch.float32, torch.float16, torch.bfloat16)
        from qformats.kernels.dense import as_numpy, refuse, require_finite

        if dense.device.type != "cpu" or dense.dtype not in known:
            require_finite(dense)
            return self.grid.quantize(dense)
        from qformats_gptq import kernels

        weight = dense.detach().contiguous()
        rows, groups = self.grid_shape(weight.shape)
        group = self.group_size or int(weight.shape[1])
        codes = empty(weight.shape, torch.uint8)
        scale = torch.empty((rows, groups), dtype=torch_dtype(self.scale_dtype))
        zero = None if self.symmetric else torch.empty((rows, groups), dtype=torch.uint8)
        outputs = (codes.numpy(), as_numpy(scale), None if zero is None else zero.numpy())
        outcome = kernels.quantize(self.bits, as_numpy(weight), group, *outputs)
        refuse(outcome, weight, rows * groups, self.scale_dtype)
        middle = 1 << (self.bits - 1)
        block = self.grid.block_of(codes)
        return QuantizedTensor(codes, scale, block, zero_point=middle if zero is None else zero)

    def _parameters(self, zeros: Tensor, scales: Tensor) -> tuple[Tensor, Tensor | int]:
        """Scales and zero points, ``(N, groups)``; bfloat16 scales become float32."""
        scale = (scales.float() if self.scale_dtype == "bf16" else scales).t().contiguous()
        if self.symmetric:
            return scale, 1 << (self.bits - 1)
        return scale, unpack_zeros(zeros, self.bits, self.version).t().contiguous()

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes and parameters, exactly as stored; columns that are in order have no ``g_idx``."""
        words, zeros, scales, g_idx = self._fields(packed)
        scale, zero = self._parameters(zeros, scales)
        codes = self._codes(words)
        block = self.grid.block_of(codes)
        order = None if self._ordered(g_idx) else g_idx
        return QuantizedTensor(codes, scale, block, zero_point=zero, g_idx=order)

    def _ordered(self, g_idx: Tensor) -> bool:
        return in_order(g_idx.cpu().numpy(), self.group_size)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32, by the compiled kernel on a CPU."""
        import torch

        if not self._has_kernel(packed):
            return self.unpack(packed).dequantize()
        out = empty(packed.shape, torch.float32)
        self.dequantize_into(packed, out)
        return out

    def _has_kernel(self, packed: PackedTensor) -> bool:
        """Whether the compiled kernel decodes this tensor: groups of whole words, columns in order."""
        words, _, _, g_idx = self._fields(packed)
        group = self.group_size or int(packed.shape[1])
        return words.device.type == "cpu" and group % 32 == 0 and self._ordered(g_idx)

    def dequantize_into(self, packed: PackedTensor, out: Tensor) -> None:
        """Values in memory that is there already, by the compiled kernel on a CPU."""
        import torch

        if out.dtype != torch.float32 or not self._has_kernel(packed):
            super().dequantize_into(packed, out)
            return
        from qformats.kernels.dense import as_numpy
        from qformats_gptq import kernels

        words, zeros, scales, _ = self._fields(packed)
        group = self.group_size or int(packed.shape[1])
        scale, zero = self._parameters(zeros, scales)
        scale = scale.float()
        offset = torch.full_like(scale, zero) if isinstance(zero, int) else zero.float()
        arrays = (words.contiguous().numpy(), scale.numpy(), offset.numpy())
        kernels.dequantize(self.bits, *arrays, group, as_numpy(out))


def _columns(quantized: QuantizedTensor, first: int, last: int) -> QuantizedTensor:
    """Columns ``[first, last)`` as a tensor of their own."""
    import torch

    block_rows, block_columns = quantized.block_size
    columns, g_idx = quantized.shape[1], quantized.g_idx
    parameters: dict[str, Any] = {}
    if block_rows == 0:
        if columns % block_columns:
            raise NotExactError("its blocks cross the ends of rows")
        # Blocks of the flattened tensor that end with the rows.
        block_rows, shape = 1, (quantized.shape[0], columns // block_columns)
        for name in ("scale", "zero_point", "minimum"):
            value = getattr(quantized, name)
            if isinstance(value, torch.Tensor):
                parameters[name] = value.view(shape)
    if g_idx is None:
        g_idx = torch.arange(columns, dtype=torch.int32, device=quantized.codes.device) // block_columns
    return replace(
        quantized,
        codes=quantized.codes[:, first:last],
        block_size=(block_rows, block_columns),
        g_idx=g_idx[first:last],
        **parameters,
    )
