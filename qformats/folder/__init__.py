"""The Hugging Face folder: ``config.json``, weights in safetensors or ``.bin`` shards, tokenizer files.

One loader serves every format that lives in such folders: packers declare their stored fields and their
``quantization_config``, and never read or write safetensors themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qformats.api import packer
from qformats.checkpoint import Checkpoint
from qformats.errors import ConfigError
from qformats.folder.conv1d import is_conv1d
from qformats.folder.model import FolderCheckpoint
from qformats.folder.write import lay_out_folder
from qformats.interfaces import Assignment, Draft, Layout, Loader, Option, Packer

__all__ = ["FolderCheckpoint", "HuggingFaceFolder", "lay_out_folder", "parse_size"]


class HuggingFaceFolder(Loader):
    """Reads and writes Hugging Face folders."""

    name = "huggingface"
    summary = "folder with config.json and safetensors (or .bin) weights"
    generic = True
    options = (Option("max-shard-size", "largest weight file when writing, such as 2GB (default 5GB)"),)

    def detect(self, path: Path) -> bool:
        """Whether the folder holds a config.json."""
        return path.is_dir() and (path / "config.json").is_file()

    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open a folder: config and headers only."""
        return FolderCheckpoint(path)

    def outline(self, config: Mapping[str, Any], path: Path) -> Checkpoint | None:
        """Names and shapes of Transformers' own class for this configuration."""
        from qformats.folder.outline import outline

        return outline(config, path)

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """Every tensor under its canonical name; linear weights may be quantized, the rest keep their numbers."""
        drafts = []
        model_type = str(source.config.get("model_type", ""))
        tied = "lm_head.weight" not in source.tensors
        for name, tensor in source.tensors.items():
            role = _role(name)
            keep, why = None, ""
            if len(tensor.shape) != 2 or _NOT_LINEAR.search(name) or not name.endswith(".weight"):
                dtype = packer(tensor.format).dense_dtype
                keep = f"dense:{dtype or 'f32'}"
                why = role.replace("_", " ") if role else "not a linear weight"
            matrix = len(tensor.shape) == 2 and name.endswith(".weight")
            drafts.append(
                Draft(
                    name,
                    tensor,
                    role,
                    keep,
                    why,
                    tied=tied and role == "token_embedding",
                    dense_transposed=len(tensor.shape) == 2 and is_conv1d(model_type, name),
                    cast_along=True,
                    linear=matrix and not _NO_LAYER.search(name),
                )
            )
        return drafts

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """Shards of safetensors, their index, config.json and tokenizer files."""
        limit = parse_size("max-shard-size", options.get("max-shard-size", "5GB"))
        return lay_out_folder(source, assignments, default, limit)


_TABLES = r"shared|wte|wpe|embed_\w+|\w*embeddings?|tok_embeddings|\w*norm\w*|ln_\w+"
_NO_LAYER = re.compile(rf"(?:^|\.)(?:{_TABLES})\.weight$")
"""Matrices that are not weights of a linear layer."""
_NOT_LINEAR = re.compile(rf"(?:^|\.)(?:{_TABLES}|lm_head|score|router|gate)\.weight$")
"""These, and the linear layers that every quantizer leaves out: heads and routers."""


def _role(name: str) -> str | None:
    if name == "lm_head.weight":
        return "output"
    if name.rsplit(".", 2)[-2:] in (["embed_tokens", "weight"], ["wte", "weight"]):
        return "token_embedding"
    return None


def parse_size(option: str, text: str) -> int:
    """Bytes of a size such as ``500MB`` or ``2G`` (powers of 1000).

    Raises
    ------
    ConfigError
        If the text is no size.
    """
    number = text.strip().upper().removesuffix("B")
    factor = 1
    for letter, power in (("K", 1), ("M", 2), ("G", 3), ("T", 4)):
        if number.endswith(letter):
            number, factor = number[:-1], 1000**power
    try:
        size = int(float(number) * factor)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise ConfigError(option, text, "a size such as 500MB or 2GB")
    return size
