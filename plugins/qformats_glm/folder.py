"""Loader ``chatglm``: folders as the ChatGLM repositories have them, read without their code and written for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qformats import Checkpoint, Loader, Packer, StoredTensor
from qformats.errors import ConfigError, UnsupportedModelError
from qformats.folder import lay_out_folder, read_json
from qformats.interfaces import Assignment, Draft, Layout, Option, ReplacedTensors, size
from qformats.work.files import parse_json
from qformats_glm.checkpoint import ChatGLMCheckpoint, outline
from qformats_glm.generations import Generation, chatglm2_sizes, generation, is_ours
from qformats_glm.native import from_native, stored_config
from qformats_glm.packers import FAMILY, GLMPacker

__all__ = ["ChatGLMFolder"]

_LONGEST_CONFIG = 1 << 20
_SPELLED = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class ChatGLMFolder(Loader):
    """Reads and writes folders of the ChatGLM repositories."""

    name = "chatglm"
    summary = "folder of a ChatGLM repository (config.json with model_type chatglm)"
    options = (Option("max-shard-size", "largest weight file when writing, such as 2GB (default 5GB)"),)
    families = ("glm",)

    def accepts(self, packer: Packer) -> bool:
        """Formats that ChatGLM's code reads: its own two widths, and plain numbers when asked for."""
        return packer.family == FAMILY or packer.family == "dense"

    def detect(self, path: Path) -> bool:
        """Whether config.json names a ChatGLM model."""
        file = path / "config.json"
        try:
            if not file.is_file() or file.stat().st_size > _LONGEST_CONFIG:
                return False
            config = parse_json(file.read_bytes())
        except (OSError, ValueError):
            # Whoever opens the folder says what is wrong with its configuration.
            return False
        return isinstance(config, dict) and config.get("model_type") == "chatglm"

    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open a folder: config and headers only."""
        return ChatGLMCheckpoint.open(path, read_json(path / "config.json", path))

    def outline(self, config: Mapping[str, Any], path: Path) -> Checkpoint | None:
        """Names and shapes of a ChatGLM or GLM-130B model."""
        return outline(config, path) if is_ours(config) else None

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """Tensors under the names of ChatGLM's code; its four linear layers may be quantized, the rest stays."""
        own, stored, _ = _as_stored(source)
        linear = {weight.name for weight in own.weights if weight.linear}
        return [_draft(name, tensor, own, name in linear) for name, tensor in stored.items()]

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """Shards of safetensors, config.json with ``quantization_bit``, tokenizer, and the repository's code."""
        own, _, config = _as_stored(source)
        linear = {weight.name for weight in own.weights if weight.linear}
        bits = default.bits if isinstance(default, GLMPacker) else 0
        for assignment in assignments:
            name, packed = assignment.draft.name, assignment.packer.quantizes
            if packed != (bool(bits) and name in linear):
                expected = f"glm:int{bits}" if name in linear and bits else "plain numbers"
                hint = "ChatGLM's code expects the four linear layers of every block, and nothing else, in one format"
                raise ConfigError(f"type of {name}", assignment.packer.name, expected, hint)
        config = {
            k: v for k, v in config.items() if k not in ("quantization_bit", "quantization_config", "dtype")
        }
        config["torch_dtype"] = _SPELLED.get(_main_dtype(assignments), "float16")
        if bits:
            config["quantization_bit"] = bits
        else:
            config.pop("quantization_embeddings", None)
        tokenizer, code, origin = None, {}, _origin(source)
        if origin is not None:
            # The repository's code reads its own files, not those made for Transformers.
            tokenizer, code = origin.stored_tokenizer_files(), origin.code_files()
        limit = size(options, "max-shard-size", "5GB")
        layout = lay_out_folder(
            source, assignments, default, limit, config=config, tokenizer=tokenizer, extra_files=code
        )
        # Nothing here runs it: the code of the repository does.
        return dataclasses.replace(layout, run_with="")


def _as_stored(source: Checkpoint) -> tuple[Generation, dict[str, StoredTensor], dict[str, Any]]:
    """Tensors and configuration as ChatGLM's code has them."""
    origin = _origin(source)
    if origin is source and origin is not None:
        return origin.generation, origin.stored, dict(origin.stored_config)
    if origin is not None and origin.architecture != "glm":
        # The class has the names that are on disk.
        return origin.generation, dict(source.tensors), dict(origin.stored_config)
    if origin is not None and not chatglm2_sizes(origin.stored_config, source.path).interleaved:
        sizes = chatglm2_sizes(origin.stored_config, source.path)
        stored = from_native(source.tensors, sizes, source.path)
        return origin.generation, stored, dict(origin.stored_config)
    if source.config.get("model_type") != "glm":
        supported = ["chatglm", "glm"]
        raise UnsupportedModelError(f"{source.path}: model_type", source.config.get("model_type"), supported)
    config = stored_config(source.config, source.path)
    sizes = chatglm2_sizes(config, source.path)
    return generation(config, source.path), from_native(source.tensors, sizes, source.path), config


def _origin(source: Checkpoint) -> ChatGLMCheckpoint | None:
    """The ChatGLM folder that a model is, with some tensors replaced or none; None if it is something else."""
    while isinstance(source, ReplacedTensors):
        source = source.source
    return source if isinstance(source, ChatGLMCheckpoint) else None


def _draft(name: str, tensor: StoredTensor, own: Generation, linear: bool) -> Draft:
    role = {own.token_embedding: "token_embedding", own.output: "output"}.get(name)
    tied = role == "token_embedding" and not own.output
    if linear:
        return Draft(name, tensor, role, tied=tied, linear=True)
    dtype = tensor.packer.dense_dtype
    why = role.replace("_", " ") if role else "not a linear weight"
    # The frequencies are not weights; nothing reads them, and they stay unchanged.
    along = not name.endswith("inv_freq")
    return Draft(name, tensor, role, f"dense:{dtype or 'f32'}", why, tied=tied, cast_along=along)


def _main_dtype(assignments: Sequence[Assignment]) -> str:
    """Dtype of most plain numbers."""
    weights: dict[str, int] = {}
    for assignment in assignments:
        dtype = assignment.packer.dense_dtype
        if dtype in _SPELLED:
            weights[dtype] = weights.get(dtype, 0) + assignment.draft.source.numel
    return max(weights, key=lambda dtype: weights[dtype], default="f16")
