"""Which bytes hold a weight: 4-bit codes with their scales and tables, or rows of 8-bit codes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qformats import FieldSpec, FormatSpec, KernelSpec, PackedTensor, Packer, QuantizedTensor
from qformats.errors import ConfigError, Described, NotExactError
from qformats.interfaces import Answer, foresee
from qformats.numbers import SIZES, dtype_name, empty, quotient, torch_dtype
from qformats_bitsandbytes.grids import (
    FourBitGrid,
    NestedGrid,
    NestedParams,
    RowAbsMaxGrid,
    beyond_half,
    row_maxima,
)
from qformats_bitsandbytes.nested import Nested, NestedTensor, carried_by, double_quantize, reproduce
from qformats_bitsandbytes.quant_state import KEY, LENGTH, NESTED_BLOCK, QuantState
from qformats_bitsandbytes.variant import FAMILY, four_bit_variant

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FourBitPacker", "Int8Packer"]

SOURCE = "bitsandbytes:bitsandbytes/functional.py"
_FP4_CODES = (11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3)
"""Stored codes of FP4's values, ascending."""
_FP4_PLACES = tuple(_FP4_CODES.index(code) if code != 8 else 7 for code in range(16))
"""Inverse; code 8 is a second zero."""
_SQNR_DB = {"nf4": 20.5, "fp4": 18.0}


def _decoded(packer: Packer, packed: PackedTensor) -> Tensor:
    """Values in new memory: by the compiled kernel on a CPU, else by way of the canonical form."""
    import torch

    if packer.checked(packed).fields["weight"].device.type != "cpu":
        return packer.unpack(packed).dequantize()
    out = empty(packed.shape, torch.float32)
    packer.dequantize_into(packed, out)
    return out


class _BnBPacker(Packer):
    """What both kinds of packers share."""

    def veto(self, shape: Sequence[int]) -> str | None:
        """Two dimensions only: Transformers leaves stacked experts of such folders plain."""
        if len(shape) == 3:
            return "it has 3 dimensions, and Transformers does not load stacked experts from bitsandbytes folders"
        if len(shape) != 2:
            return f"its number of dimensions is {len(shape)} instead of 2"
        return None if shape[0] and shape[1] else "it has no elements"

    def _dense(self, dense: Tensor) -> Tensor:
        """A weight to encode, checked and contiguous, float64 as float32."""
        import torch

        self.require(dense.shape)
        return (dense.float() if dense.dtype == torch.float64 else dense).contiguous()


class FourBitPacker(_BnBPacker):
    """NF4 and FP4.

    Parameters
    ----------
    kind : str
        ``nf4`` or ``fp4``.
    nested : bool
        Whether scales are quantized too (double quantization).
    block_size : int
        Elements of the flattened weight that share a scale.
    storage : str
        Short name of the dtype that packed bytes are stored as: ``u8``, ``bf16``, ``f16`` or ``f32``.
    """

    grid: FourBitGrid

    def __init__(self, kind: str, nested: bool = False, block_size: int = 64, storage: str = "u8") -> None:
        self.kind, self.nested, self.block_size, self.storage = kind, nested, block_size, storage
        # Numbers that scales are made of stay on the CPU.
        self.on_device = not nested
        self.grid = (NestedGrid if nested else FourBitGrid).of(kind, block_size)
        codes = FieldSpec("weight", (f"N * K / {2 * SIZES[storage]}", "1"), storage, "packed codes")
        blocks = f"N * K / {block_size}"
        scale = FieldSpec("weight.absmax", (blocks,), "f32", "weight units")
        more: tuple[FieldSpec, ...] = ()
        if nested:
            scale = FieldSpec("weight.absmax", (blocks,), "u8", "codes of scales")
            more = (
                FieldSpec(
                    "weight.nested_absmax", (f"N * K / {block_size * NESTED_BLOCK}",), "f32", "weight units"
                ),
                FieldSpec("weight.nested_quant_map", ("256",), "f32", "values of scale codes"),
            )
        self.spec = FormatSpec(
            FAMILY,
            four_bit_variant(kind, nested, block_size, storage),
            f"{kind.upper()} table, one scale per {block_size}" + (", 8-bit scales" if nested else ""),
            (
                codes,
                scale,
                FieldSpec("weight.quant_map", ("16",), "f32", "values of codes"),
                *more,
                FieldSpec(KEY + kind, (str(LENGTH),), "u8", "JSON"),
            ),
            bits=4,
            block_size=block_size,
            source=SOURCE,
            sqnr_floor_db=_SQNR_DB[kind] if block_size == 64 else None,
            kernel=KernelSpec(4, "table", block_size, "f32"),
        )

    def veto(self, shape: Sequence[int]) -> str | None:
        """Two dimensions, and no bytes left over where they are stored as wider numbers."""
        problem = super().veto(shape)
        size = SIZES[self.storage]
        if problem or size == 1:
            return problem
        nbytes = -(-math.prod(shape) // 2)
        return f"{nbytes} packed bytes are not a whole number of {self.storage}" if nbytes % size else None

    def row_step(self, shape: Sequence[int]) -> int:
        """Rows after which a block ends; scales that are quantized themselves need the whole tensor."""
        return 0 if self.nested else self.block_size // math.gcd(int(shape[1]), self.block_size)

    def row_packer(self, shape: Sequence[int]) -> Packer | None:
        """The variant with plain scales, if blocks lie along rows."""
        if int(shape[1]) % self.block_size:
            return None
        return FourBitPacker(self.kind, False, self.block_size, self.storage) if self.nested else self

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Whether :meth:`represent` accepts what `source` stores; see :meth:`~qformats.Packer.foresee`."""
        if self.nested and source.name != self.name:
            plain = FourBitPacker(self.kind, False, self.block_size, self.storage)
            return _at_best(plain.foresee(source, shape), "double quantization must keep the scales")
        return super().foresee(source, shape)

    def fixed(self, shape: Sequence[int], dtype: str) -> dict[str, Tensor]:
        """Tables, and the description unless it holds the offset of quantized scales."""
        import torch

        from qformats_bitsandbytes import tables

        fields = {"weight.quant_map": self._table()}
        if self.nested:
            fields["weight.nested_quant_map"] = torch.tensor(tables.DYNAMIC, dtype=torch.float32)
        else:
            fields[KEY + self.kind] = self._state(shape, dtype)
        return fields

    def _table(self) -> Tensor:
        import torch

        from qformats_bitsandbytes import tables

        return torch.tensor(tables.NF4 if self.kind == "nf4" else tables.FP4, dtype=torch.float32)

    def _state(self, shape: Sequence[int], dtype: str, offset: float | None = None) -> Tensor:
        import torch

        kept = dtype if dtype in ("f16", "bf16") else "f32"
        state = QuantState(self.kind, self.block_size, kept, (int(shape[0]), int(shape[1])), offset)
        return torch.frombuffer(bytearray(state.to_bytes()), dtype=torch.uint8)

    def made_from(self, packed: PackedTensor) -> str:
        """Dtype that the description tells."""
        state = packed.fields[KEY + self.kind].cpu().numpy().tobytes()
        return QuantState.parse(state, self.kind).dtype

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Check tables and scales, and pad the description to its length."""
        import torch

        key = KEY + self.kind
        kept = dict(fields)
        state = QuantState.parse(fields[key].numpy().tobytes(), self.kind)
        kept[key] = torch.frombuffer(bytearray(state.to_bytes()), dtype=torch.uint8)
        if bool((fields["weight.quant_map"] != self._table()).any()):
            found = fields["weight.quant_map"].tolist()
            raise ConfigError(
                "weight.quant_map", found, f"the table of {self.kind}, which readers use instead"
            )
        for name in ("weight.absmax", "weight.nested_absmax", "weight.nested_quant_map"):
            if name in fields and not bool(fields[name].isfinite().all()):
                bad = int((~fields[name].isfinite()).sum())
                raise ConfigError(name, Described(f"{bad} values that are NaN or infinite"), "finite scales")
        return PackedTensor(self, shape, kept)

    def _assemble(
        self, shape: Sequence[int], dtype: str, codes: Tensor, scale: Tensor, nested: Nested | None
    ) -> PackedTensor:
        """Fields of packed codes, uint8 ``(ceil(n / 2),)``, and scales, ``(blocks,)``."""
        device = codes.device
        fields = {"weight": codes.view(torch_dtype(self.storage)).unsqueeze(1)}
        fields["weight.absmax"] = scale if nested is None else nested.codes
        fields["weight.quant_map"] = self._table().to(device)
        if nested is not None:
            fields["weight.nested_absmax"] = nested.absmax
            fields["weight.nested_quant_map"] = nested.table
        offset = None if nested is None else nested.offset
        fields[KEY + self.kind] = self._state(shape, dtype, offset).to(device)
        return PackedTensor(self, (int(shape[0]), int(shape[1])), fields)

    def represent(self, quantized: QuantizedTensor) -> QuantizedTensor:
        """A tensor of the same values, if quantizing its scales changes none of them."""
        if not self.nested:
            return super().represent(quantized)
        plain = FourBitPacker(self.kind, False, self.block_size, self.storage).represent(quantized)
        nested = reproduce(plain.scale.flatten(), carried_by(quantized))
        if nested is None:
            raise NotExactError("double quantization would change the scales")
        return self.grid.quantized(plain.codes, NestedParams(plain.scale, nested=nested))

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and scales; both are stored unchanged.

        Raises
        ------
        ConfigError
            If double quantization would change the scales.
        """
        scale = quantized.scale.float().flatten().contiguous()
        nested = reproduce(scale, carried_by(quantized)) if self.nested else None
        if self.nested and nested is None:
            raise ConfigError(
                "scale", Described("values that double quantization changes"), "values that it keeps"
            )
        return self._assemble(quantized.shape, "f32", self._join(quantized.codes), scale, nested)

    def _join(self, codes: Tensor) -> Tensor:
        """Packed bytes of places in the grid's codebook."""
        if self.kind == "nf4":
            return _join(codes, 7)
        return _join(_looked_up(_FP4_CODES, codes), 0)

    def _split(self, packed: Tensor, count: int) -> Tensor:
        """Inverse of :meth:`_join`."""
        codes = _split(packed, count)
        return codes if self.kind == "nf4" else _looked_up(_FP4_PLACES, codes)

    def _scales(self, packed: PackedTensor) -> tuple[Tensor, Nested | None]:
        """Scales, ``(blocks,)``, and where they came from."""
        fields = packed.fields
        if not self.nested:
            return fields["weight.absmax"], None
        state = QuantState.parse(fields[KEY + self.kind].cpu().numpy().tobytes(), self.kind)
        if state.offset is None:
            raise ConfigError(KEY + self.kind, Described("no nested_offset"), "one, since scales are nested")
        nested = Nested(
            fields["weight.absmax"],
            fields["weight.nested_absmax"],
            fields["weight.nested_quant_map"],
            state.offset,
        )
        return nested.decode(), nested

    def scales(self, packed: PackedTensor) -> Sequence[Tensor]:
        """Scales of the blocks, decoded if they are quantized themselves."""
        return [self._scales(packed)[0]]

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes as stored, scales decoded to float32; quantized scales ride along."""
        import torch

        self.checked(packed)
        rows, columns = int(packed.shape[0]), int(packed.shape[1])
        scale, nested = self._scales(packed)
        codes = self._split(packed.fields["weight"].contiguous().view(torch.uint8).flatten(), rows * columns)
        codes = codes.view(rows, columns)
        block = self.grid.block_of(codes)
        if block[0]:
            scale = scale.view(rows, -1)
        table = self.grid.table(codes)
        if nested is not None:
            return NestedTensor(codes, scale, block, codebook=table, nested=nested)
        return QuantizedTensor(codes, scale, block, codebook=table)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32, by the compiled kernel on a CPU."""
        return _decoded(self, packed)

    def dequantize_into(self, packed: PackedTensor, out: Tensor) -> None:
        """Values in memory that is there already, by the compiled kernel on a CPU."""
        import torch

        if self.checked(packed).fields["weight"].device.type != "cpu":
            super().dequantize_into(packed, out)
            return
        from qformats.kernels.dense import as_numpy
        from qformats_bitsandbytes import kernels

        codes = packed.fields["weight"].contiguous().view(torch.uint8).flatten()
        scale, _ = self._scales(packed)
        kernels.dequantize_4bit(
            self.kind, codes.numpy(), scale.contiguous().numpy(), as_numpy(out.view(-1)), self.block_size
        )

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """Quantize and pack in one pass on a CPU; see :meth:`~qformats.Packer.encode_reference`."""
        import torch

        from qformats.kernels.dense import as_numpy, require_finite

        weight = self._dense(dense)
        dtype = dtype_name(weight.dtype)
        if weight.device.type != "cpu":
            require_finite(weight)
            return self._encode_by_grid(weight)
        from qformats_bitsandbytes import kernels

        flat = weight.view(-1)
        codes = empty((-(-flat.numel() // 2),), torch.uint8)
        scale = torch.empty(-(-flat.numel() // self.block_size), dtype=torch.float32)
        if kernels.quantize_4bit(self.kind, as_numpy(flat), codes.numpy(), scale.numpy(), self.block_size):
            require_finite(weight)
        nested = double_quantize(scale) if self.nested else None
        return self._assemble(weight.shape, dtype, codes, scale, nested)

    def _encode_by_grid(self, weight: Tensor) -> PackedTensor:
        """Quantize and pack with torch, where there is no compiled kernel; the same bytes."""
        quantized = self.grid.quantize(weight)
        codes, scale = self._join(quantized.codes), quantized.scale.flatten()
        return self._assemble(weight.shape, dtype_name(weight.dtype), codes, scale, carried_by(quantized))


def _at_best(answer: tuple[Answer, str], condition: str) -> tuple[Answer, str]:
    """The answer, with "always" lowered to "needs the data"."""
    return (Answer.DATA, condition) if answer[0] is Answer.ALWAYS else answer


def _looked_up(table: Sequence[int], codes: Tensor) -> Tensor:
    import torch

    values = torch.tensor(table, dtype=torch.uint8, device=codes.device)
    return values[codes.long()]


class Int8Packer(_BnBPacker):
    """LLM.int8(): 8-bit codes and the largest magnitude of each row."""

    grid: RowAbsMaxGrid
    on_device = True

    def __init__(self) -> None:
        self.grid = RowAbsMaxGrid(8, 0, scale_dtype="f32", low=1)
        self.spec = FormatSpec(
            FAMILY,
            "int8",
            "8 bits, one scale per row (LLM.int8)",
            (
                FieldSpec("weight", ("N", "K"), "i8", "codes"),
                FieldSpec("SCB", ("N",), "f32", "weight units, 127 steps"),
                FieldSpec("weight_format", (), "u8", "0: rows"),
            ),
            bits=8,
            block_size=0,
            source=SOURCE,
            sqnr_floor_db=41.0,
            kernel=KernelSpec(8, "affine", 0, "f32"),
        )

    def row_step(self, shape: Sequence[int]) -> int:
        """Every row is separate."""
        return 1

    def foresee(self, source: Packer, shape: Sequence[int]) -> tuple[Answer, str]:
        """Whether :meth:`represent` accepts what `source` stores; see :meth:`~qformats.Packer.foresee`."""
        if source.grid is None or not source.spec.level or self.veto(shape):
            return super().foresee(source, shape)
        answer = foresee(source.grid, self.grid.plain(), (int(shape[0]), int(shape[1])))
        if source.grid.scale_dtype == "f16":
            # 127 times such a number has 18 bits: exact, and so is the division that gives it back.
            return answer
        return _at_best(answer, "scales must be 127ths of float32 numbers")

    def fixed(self, shape: Sequence[int], dtype: str) -> dict[str, Tensor]:
        """The mark of the only layout."""
        import torch

        return {"weight_format": torch.zeros((), dtype=torch.uint8)}

    def from_stored(self, fields: Mapping[str, Tensor], shape: tuple[int, int]) -> PackedTensor:
        """Check the scales; old files lack the mark of the layout."""
        bad = int((~fields["SCB"].isfinite()).sum())
        if bad:
            raise ConfigError("SCB", Described(f"{bad} values that are NaN or infinite"), "finite scales")
        return PackedTensor(self, shape, {**fields, **self.fixed(shape, "f32")})

    def _assemble(self, codes: Tensor, maxima: Tensor) -> PackedTensor:
        shape = (int(codes.shape[0]), int(codes.shape[1]))
        mark = {name: value.to(codes.device) for name, value in self.fixed(shape, "f32").items()}
        return PackedTensor(self, shape, {"weight": codes, "SCB": maxima, **mark})

    def pack(self, quantized: QuantizedTensor) -> PackedTensor:
        """Bytes of codes and row maxima."""
        import torch

        codes = (quantized.codes.to(torch.int16) - 128).to(torch.int8)
        return self._assemble(codes, row_maxima(quantized.scale.flatten()))

    def unpack(self, packed: PackedTensor) -> QuantizedTensor:
        """Codes counted from 0, and scales: row maxima divided by 127 once."""
        import torch

        self.checked(packed)
        codes = (packed.fields["weight"].to(torch.int16) + 128).to(torch.uint8)
        scale = quotient(packed.fields["SCB"], 127.0).unsqueeze(1)
        return QuantizedTensor(codes, scale, (1, int(packed.shape[1])), zero_point=self.grid.center)

    def dequantize(self, packed: PackedTensor) -> Tensor:
        """Values as float32, by the compiled kernel on a CPU."""
        return _decoded(self, packed)

    def dequantize_into(self, packed: PackedTensor, out: Tensor) -> None:
        """Values in memory that is there already, by the compiled kernel on a CPU."""
        if self.checked(packed).fields["weight"].device.type != "cpu":
            super().dequantize_into(packed, out)
            return
        from qformats.kernels.dense import as_numpy
        from qformats_bitsandbytes import kernels

        scale = quotient(packed.fields["SCB"], 127.0)
        kernels.dequantize_int8(packed.fields["weight"].contiguous().numpy(), scale.numpy(), as_numpy(out))

    def encode_reference(self, dense: Tensor) -> PackedTensor:
        """Quantize and pack in one pass on a CPU; see :meth:`~qformats.Packer.encode_reference`."""
        import torch

        from qformats.kernels.dense import as_numpy, require_finite

        weight = self._dense(dense)
        if weight.device.type != "cpu":
            require_finite(weight)
            return self.pack(self.grid.quantize(weight))
        from qformats_bitsandbytes import kernels

        codes = empty(weight.shape, torch.int8)
        maxima = torch.empty(weight.shape[0], dtype=torch.float32)
        outcome = kernels.quantize_int8(as_numpy(weight), codes.numpy(), maxima.numpy())
        if outcome.nonfinite:
            require_finite(weight)
        if outcome.overflow:
            raise beyond_half(outcome.overflow, weight)
        return self._assemble(codes, maxima)


def _join(codes: Tensor, spare: int) -> Tensor:
    """Two codes in each byte, the first one high, uint8 ``(ceil(n / 2),)``; `spare` fills the last one."""
    import torch

    flat = codes.reshape(-1).contiguous()
    if flat.device.type == "cpu" and flat.dtype == torch.uint8:
        from qformats_bitsandbytes import kernels

        packed = empty((-(-flat.numel() // 2),), torch.uint8)
        kernels.pack_codes(flat.numpy(), packed.numpy(), spare)
        return packed
    flat = torch.nn.functional.pad(flat.to(torch.uint8), (0, flat.numel() % 2), value=spare)
    return flat[::2] << 4 | flat[1::2]


def _split(packed: Tensor, count: int) -> Tensor:
    """Codes of packed bytes, uint8 ``(count,)``."""
    import torch

    if packed.device.type == "cpu":
        from qformats_bitsandbytes import kernels

        codes = empty((count,), torch.uint8)
        kernels.unpack_codes(packed.numpy(), codes.numpy())
        return codes
    return torch.stack([packed >> 4, packed & 15], -1).flatten()[:count]
