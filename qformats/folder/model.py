"""A Hugging Face folder as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qformats.checkpoint import Checkpoint, StoredTensor
from qformats.dtypes import FLOATS, SIZES
from qformats.errors import CheckpointError, ConfigError, UnknownFormatError
from qformats.folder.conv1d import is_conv1d
from qformats.folder.shards import BinShard, SafetensorsShard, Shard, find_shards
from qformats.interfaces import Packer
from qformats.tensors import PackedTensor

__all__ = ["FolderCheckpoint"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_FETCH = "fetch the file again"
_TIED_BY_DEFAULT = ("gpt2",)
"""Models whose config.json omits tie_word_embeddings although they tie them."""

Entry = tuple[tuple[int, ...], str, Shard]
"""Shape, dtype and file of one stored tensor."""


class FolderCheckpoint(Checkpoint):
    """A Hugging Face folder; see :class:`~qformats.checkpoint.Checkpoint`.

    Raises
    ------
    CheckpointError
        If a file is missing, truncated or corrupt.
    """

    container = "huggingface"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._config = _read_json(path / "config.json")
        files, index = find_shards(path)
        self._shards: list[Shard] = [
            SafetensorsShard(file) if file.suffix == ".safetensors" else BinShard(file) for file in files
        ]
        entries = self._entries(index)
        self.tensors = self._canonical(entries)

    @property
    def architecture(self) -> str:
        """``model_type`` of config.json."""
        return str(self._config.get("model_type", "unknown"))

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self._config

    @property
    def files(self) -> list[Path]:
        """config.json, weights and tokenizer files."""
        return [self.path / "config.json", *(shard.path for shard in self._shards), *self._tokenizer_paths()]

    def _tokenizer_paths(self) -> list[Path]:
        found = [file for pattern in _TOKENIZER_FILES for file in sorted(self.path.glob(pattern))]
        return [file for file in found if file.is_file()]

    def tokenizer_files(self) -> dict[str, bytes]:
        """Tokenizer and generation files, by path relative to the folder."""
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in self._tokenizer_paths()}

    def _entries(self, index: dict[str, str] | None) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for shard in self._shards:
            for name, shape, dtype in shard.entries():
                if index is None or index.get(name) == shard.path.name:
                    entries[name] = (shape, dtype, shard)
        for name in index or ():
            if name not in entries:
                file = self.path / (index or {})[name]
                raise CheckpointError(file, "not in this file, although the index says so", tensor=name)
        if not entries:
            raise CheckpointError(self._shards[0].path, "no tensors in it", "the weights of a model")
        return entries

    def _canonical(self, entries: dict[str, Entry]) -> dict[str, StoredTensor]:
        config = self._config
        tied = config.get("tie_word_embeddings", config.get("model_type") in _TIED_BY_DEFAULT)
        if tied and any(name.endswith(("embed_tokens.weight", "wte.weight")) for name in entries):
            for name in [name for name in entries if name.startswith("lm_head.")]:
                del entries[name]
        packer = self._packer()
        modules = _packed_modules(entries, packer) if packer else {}
        tensors: dict[str, StoredTensor] = {}
        for order, (name, entry) in enumerate(entries.items()):
            module, _, field = name.rpartition(".")
            if packer is not None and module in modules and field in modules[module]:
                if f"{module}.weight" not in tensors:
                    tensor = self._packed(packer, module, entries, order)
                    tensors[tensor.name] = tensor
            else:
                tensors[name] = self._dense(name, entry, order)
        return tensors

    def _packer(self) -> Packer | None:
        """Packer of a quantized folder, found by what its config.json declares."""
        declared = self._config.get("quantization_config")
        if declared is None:
            return None
        from qformats.registry import registry

        if not isinstance(declared, dict):
            raise CheckpointError(self.path / "config.json", f"quantization_config {declared!r}", "an object")
        if declared.get("quant_method") == "qformats":
            try:
                return registry().packer(str(declared.get("format")))
            except UnknownFormatError as error:
                raise CheckpointError(self.path / "config.json", f"quantization_config: {error}") from error
        families = registry().families()
        for family in families:
            try:
                packer = family.detect(declared)
            except (ConfigError, UnknownFormatError) as error:
                raise CheckpointError(self.path / "config.json", f"quantization_config: {error}") from error
            if packer is not None:
                return packer
        readable = sorted({f.family for f in families if f.detect.__func__ is not Packer.detect.__func__})  # type: ignore[attr-defined]
        raise CheckpointError(
            self.path / "config.json",
            f"quantization method {declared.get('quant_method')!r}",
            "none, or one that an installed plugin reads: " + ", ".join(readable)
            if readable
            else "none, since no installed plugin reads quantized folders",
            hint="install a plugin for this method, or point at the unquantized model",
        )

    def _dense(self, name: str, entry: Entry, order: int) -> StoredTensor:
        shape, dtype, shard = entry
        count = 1
        for dim in shape:
            count *= dim
        format = f"dense:{dtype}"

        def load(start: int, stop: int) -> PackedTensor:
            values = shard.tensor(name)
            part = values[start:stop] if shape else values
            return PackedTensor(format, tuple(part.shape), {"weight": part})

        stored = StoredTensor(name, shape, format, count * SIZES[dtype], shard.path, load, offset=order)
        if len(shape) == 2 and is_conv1d(self.architecture, name):
            return stored.transposed()
        return stored

    def _packed(self, packer: Packer, module: str, entries: dict[str, Entry], order: int) -> StoredTensor:
        parts = {spec.name: entries[f"{module}.{spec.name}"] for spec in packer.spec.fields}
        file = parts[packer.spec.fields[0].name][2].path
        name = f"{module}.weight"
        try:
            shape = packer.weight_shape({field: (entry[0], entry[1]) for field, entry in parts.items()})
        except ConfigError as error:
            raise CheckpointError(file, str(error), tensor=name) from error
        nbytes = packer.spec.nbytes(*shape)

        def load(start: int, stop: int) -> PackedTensor:
            whole = {field: shard.tensor(f"{module}.{field}") for field, (_, _, shard) in parts.items()}
            if (start, stop) == (0, shape[0]):
                return PackedTensor(packer.name, shape, whole)
            if not packer.sliceable:
                raise ConfigError(
                    "rows", (start, stop), f"all {shape[0]} rows: {packer.name} has no row slices"
                )
            return PackedTensor(
                packer.name,
                (stop - start, shape[1]),
                {key: value[start:stop] for key, value in whole.items()},
            )

        return StoredTensor(
            name, shape, packer.name, nbytes, file, load, offset=order, sliceable=packer.sliceable
        )


def _packed_modules(entries: dict[str, Entry], packer: Packer) -> dict[str, set[str]]:
    """Modules that have every stored field of a format.

    Raises
    ------
    CheckpointError
        If a module has packed codes but not all that belongs to them.
    """
    fields = {spec.name for spec in packer.spec.fields}
    found: dict[str, set[str]] = {}
    for name in entries:
        module, _, field = name.rpartition(".")
        if field in fields:
            found.setdefault(module, set()).add(field)
    for spec in packer.spec.fields:
        for module, present in found.items():
            # A module that was not quantized has a float `weight` of its own; integers alone mean nothing.
            if spec.name in present and present != fields and spec.dtype not in FLOATS:
                _, dtype, shard = entries[f"{module}.{spec.name}"]
                if dtype == spec.dtype:
                    missing = ", ".join(f"{module}.{name}" for name in sorted(fields - present))
                    raise CheckpointError(
                        shard.path,
                        f"packed as {packer.name} without {missing}",
                        "all fields of the format: " + ", ".join(sorted(fields)),
                        tensor=f"{module}.{spec.name}",
                    )
    return {module: present for module, present in found.items() if present == fields}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(path, "is missing", "a Hugging Face folder") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"no JSON ({error})", "the model's configuration", hint=_FETCH) from error
    if not isinstance(parsed, dict):
        raise CheckpointError(path, f"a JSON {type(parsed).__name__}", "an object")
    return parsed
