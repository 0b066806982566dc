"""Folders whose experts are stored in MXFP4, as gpt-oss is published: the blocks of GGUF's type, in another order.

On disk a stack of experts is two tensors, ``..._blocks`` ``(E, rows, blocks, 16)`` and ``..._scales`` ``(E, rows,
blocks)``. Byte ``j`` of a block holds elements ``2j`` (low) and ``2j + 1``; in GGUF it holds elements ``j`` and
``j + 16``, after the exponent. So no value changes on the way, and matrices are ``[out, in]`` here, though the model's
plain stacks are ``[in, out]``.

Source: transformers:integrations/mxfp4.py, llama.cpp:conversion/gpt_oss.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats import Checkpoint, Loader, PackedTensor, StoredTensor
from qformats.errors import CheckpointError
from qformats.folder import FolderCheckpoint, read_json
from qformats.interfaces import dense
from qformats_gguf.family import GGUF

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mxfp4Folder"]

_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK, _BYTES = 32, 16
_ALTERNATING = "gate_up_proj"
"""The stack whose rows are those of two matrices in turn."""


class Mxfp4Folder(Loader):
    """Reads folders of models whose experts are in MXFP4; written are other formats."""

    name = "mxfp4"
    summary = "folder with experts in MXFP4, as gpt-oss is published"

    def detect(self, path: Path) -> bool:
        """Whether config.json declares it."""
        if not path.is_dir() or not (path / "config.json").is_file():
            return False
        try:
            declared = read_json(path / "config.json", path).get("quantization_config")
        except CheckpointError:
            # The loader of other folders says what is wrong.
            return False
        return isinstance(declared, Mapping) and declared.get("quant_method") == "mxfp4"

    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open a folder, from headers alone."""
        return _Mxfp4Checkpoint(path)


class _Mxfp4Checkpoint(FolderCheckpoint):
    """Stacks under their names in the model, with the matrices that they consist of as pieces."""

    def __init__(self, path: Path) -> None:
        family = GGUF()
        super().__init__(path, quantized=(family, family.parse("mxfp4")))
        tensors = dict(self.tensors)
        for name in self.tensors:
            if name.endswith(_BLOCKS):
                base = name.removesuffix(_BLOCKS)
                tensors[base] = _stack(base, tensors.pop(name), tensors.pop(base + _SCALES, None))
        self.tensors = tensors

    @property
    def config(self) -> dict[str, Any]:
        """config.json, of the plain model."""
        return {key: value for key, value in super().config.items() if key != "quantization_config"}


def _stack(name: str, blocks: StoredTensor, scales: StoredTensor | None) -> StoredTensor:
    shape = blocks.shape
    fits = scales is not None and len(shape) == 4 and shape[3] == _BYTES and scales.shape == shape[:3]
    if scales is None or not fits or blocks.format != "dense:u8" or scales.format != "dense:u8":
        found = f"{blocks.format} {shape}, and scales {scales.shape if scales else 'missing'}"
        expected = "bytes (experts, rows, blocks, 16), and scales (experts, rows, blocks)"
        raise CheckpointError(blocks.file, found, expected, tensor=blocks.name)
    experts, rows, groups = shape[:3]
    columns = groups * _BLOCK
    parts = 2 if name.endswith(_ALTERNATING) else 1
    pieces = tuple(
        _piece(name, blocks, scales, (experts, rows // parts, columns), part, parts) for part in range(parts)
    )
    # It holds all of these values, and it is what the rest of such models is stored in.
    plain = dense("bf16")

    def load(start: int, stop: int) -> PackedTensor:
        values = _repacked(blocks, scales, start, stop, 0, 1, columns).dequantize().bfloat16()
        values = values.transpose(1, 2).contiguous()
        return PackedTensor(plain, tuple(values.shape), {"weight": values})

    return replace(
        blocks,
        name=name,
        shape=(experts, columns, rows),
        packer=plain,
        nbytes=blocks.nbytes + scales.nbytes,
        load=load,
        origin=pieces[0].packer,
        names=blocks.names | scales.names,
        pieces=pieces,
    )


def _piece(
    name: str, blocks: StoredTensor, scales: StoredTensor, shape: tuple[int, int, int], part: int, parts: int
) -> StoredTensor:
    """Every so manieth row of a stack, in GGUF's order of bytes."""

    def load(start: int, stop: int) -> PackedTensor:
        return _repacked(blocks, scales, start, stop, part, parts, shape[2])

    nbytes = (blocks.nbytes + scales.nbytes) // parts
    packer, names = GGUF().parse("mxfp4"), blocks.names | scales.names
    return replace(blocks, name=name, shape=shape, packer=packer, nbytes=nbytes, load=load, names=names)


def _repacked(
    blocks: StoredTensor, scales: StoredTensor, start: int, stop: int, part: int, parts: int, columns: int
) -> PackedTensor:
    import torch

    stored, exponents = (_bytes(tensor, start, stop)[:, part::parts] for tensor in (blocks, scales))
    # Elements in order, each in a byte; then the first half of a block low, and the second high.
    elements = torch.stack([stored & 15, stored >> 4], -1).flatten(-2)
    packed = elements[..., :_BYTES] | elements[..., _BYTES:] << 4
    joined = torch.cat([exponents.unsqueeze(-1), packed], -1).flatten(-2)
    shape = (joined.shape[0], joined.shape[1], columns)
    return PackedTensor(GGUF().parse("mxfp4"), shape, {"blocks": joined})


def _bytes(tensor: StoredTensor, start: int, stop: int) -> Tensor:
    (values,) = tensor.read(start, stop).fields.values()
    return values
