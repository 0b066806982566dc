"""Folders whose experts are stored in MXFP4, as gpt-oss is published: the blocks of GGUF's type, in another order.

On disk a stack of experts is two tensors, ``..._blocks`` ``(E, rows, blocks, 16)`` and ``..._scales`` ``(E, rows,
blocks)``. Byte ``j`` of a block holds elements ``2j`` (low) and ``2j + 1``; in GGUF it holds elements ``j`` and
``j + 16``, after the exponent. So no value changes on the way, and matrices are ``[out, in]`` here, though the model's
plain stacks are ``[in, out]``.

Source: transformers:integrations/mxfp4.py, llama.cpp:conversion/gpt_oss.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats import Checkpoint, Loader, PackedTensor, Packer, StoredTensor
from qformats.errors import CheckpointError
from qformats.folder import FolderCheckpoint, HuggingFaceFolder, Share, lay_out_folder, read_json, shares
from qformats.interfaces import Assignment, Draft, Layout, size
from qformats_gguf.family import GGUF
from qformats_gguf.mxfp4_stacks import BLOCKS, SCALES, stacks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mxfp4Folder"]

_BLOCKS, _SCALES = BLOCKS, SCALES
_BLOCK, _BYTES = 32, 16
_PLAIN = ("model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head")
"""Modules that are not in MXFP4, as the published models name them."""


class Mxfp4Folder(Loader):
    """Reads folders of models whose experts are in MXFP4, and writes them: experts as they are, the rest plain."""

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

    def accepts(self, packer: Packer) -> bool:
        """Plain numbers, beside which experts stay in MXFP4."""
        return packer.dense_dtype in ("bf16", "f16", "f32")

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """As in a plain folder."""
        return HuggingFaceFolder().draft(source, options)

    def joined(self, assignments: Sequence[Assignment], source: Checkpoint) -> list[Assignment]:
        """Experts in two stacks of bytes for each of the model's, everything else as in a plain folder.

        Raises
        ------
        ConfigError
            If experts are in another format, or the model has none that are stacked as those of gpt-oss.
        """
        return stacks(assignments, source)

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """A plain folder whose configuration says ``mxfp4``."""
        left = ("quantization_config", "torch_dtype", "dtype")
        config = {key: value for key, value in source.config.items() if key not in left}
        config["dtype"] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[str(default.dense_dtype)]
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": list(_PLAIN)}
        return lay_out_folder(source, assignments, default, size({}, "max-shard-size", "5GB"), config=config)


class _Mxfp4Checkpoint(FolderCheckpoint):
    """Matrices of experts under their names, one by one."""

    def __init__(self, path: Path) -> None:
        family = GGUF()
        super().__init__(path, quantized=(family, family.parse("mxfp4")))
        tensors: dict[str, StoredTensor] = {}
        for name, tensor in self.tensors.items():
            base = name.removesuffix(_BLOCKS)
            if base != name:
                for matrix in _matrices(base, tensor, self.tensors.get(base + _SCALES), self.config):
                    tensors[matrix.name] = matrix
            elif not name.endswith(_SCALES):
                tensors[name] = tensor
        self.tensors = tensors

    @property
    def config(self) -> dict[str, Any]:
        """config.json, of the plain model."""
        return {key: value for key, value in super().config.items() if key != "quantization_config"}


def _matrices(
    name: str, blocks: StoredTensor, scales: StoredTensor | None, config: Mapping[str, Any]
) -> list[StoredTensor]:
    shape = blocks.shape
    fits = scales is not None and len(shape) == 4 and shape[3] == _BYTES and scales.shape == shape[:3]
    if scales is None or not fits or blocks.format != "dense:u8" or scales.format != "dense:u8":
        found = f"{blocks.format} {shape}, and scales {scales.shape if scales else 'missing'}"
        expected = "bytes (experts, rows, blocks, 16), and scales (experts, rows, blocks)"
        raise CheckpointError(blocks.file, found, expected, tensor=blocks.name)
    experts, rows, groups = shape[:3]
    found_shares = shares(name, experts, config)
    if not found_shares:
        expected = "experts of gpt-oss, whose order is known"
        raise CheckpointError(blocks.file, "is a stack of an unknown order", expected, tensor=blocks.name)
    return [_matrix(blocks, scales, share, rows, groups) for share in found_shares]


def _matrix(blocks: StoredTensor, scales: StoredTensor, share: Share, rows: int, groups: int) -> StoredTensor:
    """Every so manieth row of an expert in a stack, in GGUF's order of bytes."""
    shape = (rows // share.parts, groups * _BLOCK)

    def load(start: int, stop: int) -> PackedTensor:
        # Blocks are [out, in], though the model's plain stacks are not.
        stored, exponents = (
            replace(share, turned=False).of(_bytes(tensor, share.expert))[start:stop]
            for tensor in (blocks, scales)
        )
        return _repacked(stored, exponents, (stop - start, shape[1]))

    packer, names = GGUF().parse("mxfp4"), blocks.names | scales.names
    nbytes = (blocks.nbytes + scales.nbytes) // blocks.rows // share.parts
    return replace(
        blocks, name=share.name, shape=shape, packer=packer, nbytes=nbytes, load=load, step=1, names=names
    )


def _repacked(stored: Tensor, exponents: Tensor, shape: tuple[int, int]) -> PackedTensor:
    import torch

    # Elements in order, each in a byte; then the first half of a block low, and the second high.
    elements = torch.stack([stored & 15, stored >> 4], -1).flatten(-2)
    packed = elements[..., :_BYTES] | elements[..., _BYTES:] << 4
    joined = torch.cat([exponents.unsqueeze(-1), packed], -1).flatten(-2)
    return PackedTensor(GGUF().parse("mxfp4"), shape, {"blocks": joined})


def _bytes(tensor: StoredTensor, expert: int) -> Tensor:
    (values,) = tensor.read(expert, expert + 1).fields.values()
    return values[0]
