"""FP8 weights of a folder: plain ones, and those in blocks with a scale each, as DeepSeek and Qwen3 publish them.

A weight ``NAME`` in F8_E4M3 or F8_E5M2 has its scales in ``NAME_scale_inv``, one for each block of (by default)
128 x 128 elements, and its values are ``weight * scale`` in float32. Source: ``weight_dequant`` in
deepseek-ai/DeepSeek-V3:inference/kernel.py, and transformers:src/transformers/integrations/finegrained_fp8.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError
from qformats.folder.shards import INSTEAD_OF_FEW_BITS, Shard
from qformats.interfaces.dense import dense
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import FLOATS8, SIZES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Float8", "find_float8", "is_float8"]

_METHOD = "fp8"
"""``quant_method`` of such folders."""
_BLOCK = (128, 128)
_SCALES = "_scale_inv"
_SCALE_DTYPES = ("f32", "bf16", "f16")
_OTHER_SCALES = ("_scale", "_scales", "_scale_2", "_block_scale")
"""Endings of a weight's name for which other programs store scales."""
_OF_MODULE = ("scale", "scale_weight", "scale_inv", "weight_scale")
"""Names beside a module's weight under which they do."""
_OF_ACTIVATIONS = (".activation_scale", ".input_scale", ".k_scale", ".v_scale")

Entry = tuple[tuple[int, ...], str, Shard]
"""Shape, dtype and file of a stored tensor."""


@dataclass(frozen=True)
class Float8:
    """FP8 weights among the tensors of a folder.

    Attributes
    ----------
    scales : dict of str to str
        Name of the scales of each weight in blocks.
    left_out : dict of str to str
        Tensors that say something about FP8 arithmetic and nothing about the weights, and why they are left out.
    block : tuple of int
        Rows and columns of a block.
    """

    scales: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    block: tuple[int, int] = _BLOCK

    def tensor(self, name: str, entries: Mapping[str, Entry], order: int) -> StoredTensor:
        """One FP8 weight: as bfloat16, which holds every FP8 number, or, with scales, as float32."""
        shape, dtype, shard = entries[name]
        packer = dense("f32" if name in self.scales else "bf16")
        nbytes = math.prod(shape) * SIZES[dtype]
        names = frozenset[str]()
        grid: tuple[str, Shard] | None = None
        if name in self.scales:
            scale_shape, scale_dtype, scale_shard = entries[self.scales[name]]
            nbytes += math.prod(scale_shape) * SIZES[scale_dtype]
            grid, names = (self.scales[name], scale_shard), frozenset([self.scales[name]])

        def load(start: int, stop: int) -> PackedTensor:
            import torch

            stored = shard.tensor(name)
            part = stored[start:stop] if shape else stored
            if grid is None:
                values = part.to(torch.bfloat16)
            else:
                values = _scaled(part, grid[1].tensor(grid[0]), start, self.block)
            return PackedTensor(packer, tuple(values.shape), {"weight": values})

        origin = dense(dtype)
        return StoredTensor(
            name, shape, packer, nbytes, shard.path, load, offset=order, origin=origin, names=names
        )


def is_float8(declared: object) -> bool:
    """Whether a ``quantization_config`` declares FP8 weights in blocks."""
    return isinstance(declared, Mapping) and declared.get("quant_method") == _METHOD


def find_float8(entries: Mapping[str, Entry], config: Mapping[str, Any], folder: Path) -> Float8:
    """Find the FP8 weights of a folder and their scales.

    Parameters
    ----------
    entries : mapping of str to Entry
        Everything that is stored.
    config : mapping
        config.json.
    folder : Path
        For messages.

    Raises
    ------
    CheckpointError
        If scales are missing, have another shape, or are stored in a way that is not known here.
    """
    declared = config.get("quantization_config")
    weights = [name for name, (_, dtype, _) in entries.items() if dtype in FLOATS8]
    blocks = _block_of(declared, folder)
    found = Float8(block=blocks or _BLOCK)
    for name in weights:
        scales = f"{name}{_SCALES}"
        if scales in entries:
            _check(name, entries, found.block, whole=blocks is None)
            found.scales[name] = scales
            continue
        other = _other_scales(name, entries)
        if other is not None or is_float8(declared):
            told = f"FP8 numbers without {name.rpartition('.')[2]}{_SCALES}"
            told += (
                f" and with {other}" if other else ", although quantization_config declares them in blocks"
            )
            raise CheckpointError(
                entries[name][2].path,
                told,
                "scales for its blocks, or plain numbers",
                tensor=name,
                hint=INSTEAD_OF_FEW_BITS,
            )
    for name, (_, _, shard) in entries.items():
        weight = name.removesuffix(_SCALES)
        if weight != name and weight in entries and weight not in found.scales:
            told = f"scales of blocks for {entries[weight][1]} numbers"
            raise CheckpointError(shard.path, told, "for FP8 numbers", tensor=name, hint=INSTEAD_OF_FEW_BITS)
        if weights and name.endswith(_OF_ACTIVATIONS):
            found.left_out[name] = "a scale of FP8 activations, which weights do without"
    return found


def _block_of(declared: object, folder: Path) -> tuple[int, int] | None:
    """Rows and columns of a block as config.json declares them; None if it does not."""
    size = declared.get("weight_block_size") if isinstance(declared, Mapping) else None
    if size is None:
        return None
    if (
        not isinstance(size, list)
        or len(size) != 2
        or not all(type(each) is int and 0 < each < 1 << 31 for each in size)
    ):
        expected = "two whole numbers, such as [128, 128]"
        raise CheckpointError(folder / "config.json", f"weight_block_size {size!r}", expected)
    return size[0], size[1]


def _check(name: str, entries: Mapping[str, Entry], block: tuple[int, int], *, whole: bool) -> None:
    """Refuse scales that do not fit; a single one is for the whole tensor where no blocks are declared."""
    shape, _, _ = entries[name]
    found, dtype, shard = entries[f"{name}{_SCALES}"]
    if dtype not in _SCALE_DTYPES:
        expected = "scales in " + ", ".join(_SCALE_DTYPES)
        raise CheckpointError(
            shard.path, f"holds {dtype}", expected, tensor=f"{name}{_SCALES}", hint=INSTEAD_OF_FEW_BITS
        )
    if whole and math.prod(found) == 1:
        return
    wanted: tuple[int, ...] = ()
    if len(shape) >= 2:
        wanted = (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
    if found != wanted:
        expected = f"{wanted}, for blocks of {block[0]} x {block[1]} in {shape}"
        raise CheckpointError(
            shard.path, f"shape {found}", expected, tensor=f"{name}{_SCALES}", hint=INSTEAD_OF_FEW_BITS
        )


def _other_scales(name: str, entries: Mapping[str, Entry]) -> str | None:
    """Name of something that looks like scales of another kind."""
    module = name.rpartition(".")[0]
    candidates = [f"{name}{ending}" for ending in _OTHER_SCALES]
    candidates += [f"{module}.{each}" if module else each for each in _OF_MODULE]
    return next((each for each in candidates if each in entries), None)


def _scaled(part: Tensor, scales: Tensor, start: int, block: tuple[int, int]) -> Tensor:
    """Values of rows from `start`, float32."""
    import torch

    values, scales = part.to(torch.float32), scales.to(torch.float32)
    if scales.numel() == 1:
        return values * scales.reshape(())
    if values.ndim > 2:
        # Rows are whole matrices here, each with blocks of its own.
        scales = scales[start : start + values.shape[0]].repeat_interleave(block[0], -2)
        scales = scales[..., : values.shape[-2], :]
    else:
        rows = torch.arange(start, start + values.shape[0]) // block[0]
        scales = scales[rows]
    return values * scales.repeat_interleave(block[1], -1)[..., : values.shape[-1]]
