"""A Hugging Face folder as a checkpoint."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError, ConfigError, UnknownFormatError, UnsupportedModelError
from qformats.folder.adapter import adapter_beside
from qformats.folder.chat import ignored_template
from qformats.folder.conv1d import is_conv1d
from qformats.folder.experts import as_listed, matrices_of
from qformats.folder.float8 import find_float8, is_float8
from qformats.folder.foreign import refuse_foreign
from qformats.folder.json_object import read_json
from qformats.folder.outline import outline
from qformats.folder.plain import plain_tensor
from qformats.folder.resolve import find_weights
from qformats.folder.sentence_modules import sentence_files, sentence_note
from qformats.folder.shards import BinShard, SafetensorsShard, Shard
from qformats.folder.stacked import apart
from qformats.folder.tied import Ties, settle_ties
from qformats.folder.wrappers import unwrapped
from qformats.interfaces.activations import Step
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.family import Family, ModuleFields
from qformats.interfaces.packer import PackedTensor, Packer
from qformats.interfaces.rows import cut
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import FLOATS, FLOATS8
from qformats.registry import registry
from qformats.work.files import refuse_link_out
from qformats.work.repeated import Repeated

__all__ = ["FolderCheckpoint"]

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "tokenizer.model",
    "ice_text.model",
    "sentencepiece.bpe.model",
    "qwen.tiktoken",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
_SHOWN = 3
Entry = tuple[tuple[int, ...], str, Shard]
"""Shape, dtype and file of one stored tensor."""


@dataclass(frozen=True)
class _Module:
    """A module whose weight is packed, and the files that hold its fields."""

    name: str
    packer: Packer
    shape: tuple[int, int]
    shards: Mapping[str, Shard]
    file: Path


class FolderCheckpoint(Checkpoint):
    """A Hugging Face folder; see :class:`~qformats.interfaces.checkpoint.Checkpoint`.

    Parameters
    ----------
    path : Path
        The folder.
    quantized : (Family, Packer), optional
        Quantized format of the folder, if config.json has no ``quantization_config`` that gives it.
    declared : mapping, optional
        Entries that the ``quantization_config`` lacks, or has wrong.

    Attributes
    ----------
    spare : dict of str to StoredTensor
        Biases of zeros beside packed weights, which are not among `tensors`.

    Raises
    ------
    CheckpointError
        If a file is missing, truncated or corrupt.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder import FolderCheckpoint
    >>> FolderCheckpoint(qformats.open("demo").path).architecture
    'llama'
    """

    container = "huggingface"

    def __init__(
        self,
        path: Path,
        quantized: tuple[Family, Packer] | None = None,
        declared: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self._config = read_json(path / "config.json", path)
        self._quantized, self._corrected = quantized, declared or {}
        self._beside: Path | None = None
        self.left_out: dict[str, str] = {}
        self.spare: dict[str, StoredTensor] = {}
        self.steps: dict[Step, StoredTensor] = {}
        weights = find_weights(path, self._config)
        self._shards: list[Shard] = [
            SafetensorsShard(file) if file.suffix == ".safetensors" else BinShard(file)
            for file in weights.files
        ]
        self.notes = (
            *weights.notes,
            *adapter_beside(path),
            *ignored_template(path),
            *sentence_note(path),
        )
        entries = self._entries(weights.index)
        self._stored = list(entries)
        settled = settle_ties(self._unwrapped(self._canonical(entries)), self._config)
        self._config = settled.config
        tensors, told = apart(settled.tensors, settled.config)
        listed = as_listed(tensors, settled.config)
        self.spare = as_listed(self.spare, settled.config)
        every = (part for tensor in listed.values() for part in matrices_of(tensor, settled.config))
        self.tensors = {tensor.name: tensor for tensor in every}
        self.left_out |= settled.left_out
        self.notes += (*settled.notes, *told)

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
        beside = [self._beside] if self._beside else []
        return [
            self.path / "config.json",
            *beside,
            *(shard.path for shard in self._shards),
            *self._tokenizer_paths(),
        ]

    @property
    def stored_names(self) -> Collection[str]:
        """Names in the weight files."""
        return self._stored

    def _tokenizer_paths(self) -> list[Path]:
        """Those that are there; looked at each time, since what a name leads to may change."""
        found = [file for pattern in _TOKENIZER_FILES for file in sorted(self.path.glob(pattern))]
        found += sentence_files(self.path)
        for file in found:
            refuse_link_out(file, self.path)
        return [file for file in found if file.is_file()]

    def tokenizer_files(self) -> dict[str, bytes]:
        """Tokenizer and generation files, by path relative to the folder."""
        return {file.relative_to(self.path).as_posix(): file.read_bytes() for file in self._tokenizer_paths()}

    def _entries(self, index: dict[str, str] | None) -> dict[str, Entry]:
        """Every tensor of the files; an index has no say in that, in Transformers either."""
        entries: dict[str, Entry] = {}
        repeated = []
        for shard in self._shards:
            for name, shape, dtype in shard.entries():
                if name in entries:
                    repeated.append(name)
                entries[name] = (shape, dtype, shard)
        if not entries:
            raise CheckpointError(self._shards[0].path, "has no tensors", "the weights of a model")
        if repeated:
            told = "is in several files" if len(set(repeated)) == 1 else "are in several files"
            self.notes += (f"{_listed(repeated)} {told}: the last one is read, as in Transformers",)
        if index is not None:
            self._compare_with_index(index, entries)
        return entries

    def _compare_with_index(self, index: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
        ties = Ties(self._config)
        for name, file in index.items():
            if name not in entries and not ties.excuse(name, entries):
                found = "is not in this file, although the index says so"
                raise CheckpointError(self.path / file, found, tensor=name)
        omitted = [name for name in entries if name not in index]
        if omitted:
            told = (
                "is in the files and not in their index: it is"
                if len(omitted) == 1
                else ("are in the files and not in their index: they are")
            )
            self.notes += (f"{_listed(omitted)} {told} read, as in Transformers",)

    def _canonical(self, entries: dict[str, Entry]) -> dict[str, StoredTensor]:
        if not (self._quantized or self._names_method()):
            refuse_foreign(self.path, {name: entry[:2] for name, entry in entries.items()})
        quantized = self._quantized or self._declared() or self._undeclared(entries)
        packed = self._packed_modules(entries, *quantized) if quantized else {}
        if quantized:
            self._note_activations(entries, quantized[0], packed)
        plain = {name: entry for name, entry in entries.items() if name not in packed}
        floats = find_float8(plain, self._config, self.path)
        self.left_out |= floats.left_out
        consumed = {*self.left_out, *floats.scales.values()}
        tensors: dict[str, StoredTensor] = {}
        for order, (name, entry) in enumerate(entries.items()):
            if name in consumed:
                continue
            module = packed.get(name)
            if name in self.spare:
                continue
            if module is None:
                own = entry[1] in FLOATS8
                tensor = floats.tensor(name, entries, order) if own else self._dense(name, entry, order)
                turned = len(tensor.shape) == 2 and is_conv1d(self.architecture, name)
                tensors[name] = tensor.transposed() if turned else tensor
            elif f"{module.name}.weight" not in tensors:
                tensor = self._packed(module, order)
                tensors[tensor.name] = tensor
        return tensors

    def _note_activations(
        self, entries: Mapping[str, Entry], family: Family, packed: Mapping[str, _Module]
    ) -> None:
        """What is declared of activations, and the numbers for them; an output may have no place for these."""
        declared, self.declared_by = self.declaration, family.name
        self.schemes = family.schemes(declared)
        formats = {module.name: module.packer for module in packed.values()}
        for order, (name, entry) in enumerate(entries.items()):
            module, _, field = name.rpartition(".")
            if name in packed or field not in family.asides:
                continue
            self.left_out[name] = family.asides[field]
            step = family.step(name, formats.get(module), declared)
            if step is not None:
                self.steps[step] = self._dense(name, entry, order)

    def _unwrapped(self, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
        """Tensors, spare ones too, without what wrappers have added to their names."""
        modules = dict.fromkeys(f"{step.module}." for step in self.steps)
        bare, removed = unwrapped([*tensors, *self.spare, *modules], self._config)
        if not removed:
            return dict(tensors)
        self.steps = {
            replace(step, module=bare[f"{step.module}."].removesuffix(".")): tensor
            for step, tensor in self.steps.items()
        }
        told = " and ".join(removed)
        self.notes += (f"{told} in the names of tensors was removed, which a wrapper has added",)
        self.spare = {bare[name]: tensor.renamed(bare[name]) for name, tensor in self.spare.items()}
        return {bare[name]: tensor.renamed(bare[name]) for name, tensor in tensors.items()}

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors of the model's class; none where config.json does not tell."""
        try:
            tensors = outline(self._config, self.path / "config.json").tensors
        except (CheckpointError, UnsupportedModelError):
            # Such a model is read all the same, if its tensors tell what they are.
            return {}
        return {name: tensor.shape for name, tensor in tensors.items()}

    def _expected(self, module: str) -> tuple[int, int] | None:
        shape = self._shapes.get(f"{module}.weight", ())
        return (shape[0], shape[1]) if len(shape) == 2 else None

    def _packed_modules(
        self, entries: dict[str, Entry], family: Family, packer: Packer
    ) -> dict[str, _Module]:
        """Module of every stored tensor that belongs to a packed weight, by the tensor's name."""
        found: dict[str, _Module] = {}
        repeated = Repeated()
        for fields, parts in _modules(entries, family, packer, self._expected):
            name, file = fields.name, next(iter(parts.values()))[2].path
            try:
                with repeated.of(name):
                    located = family.locate(packer, fields)
            except ConfigError as error:
                raise CheckpointError(file, str(error), tensor=f"{name}.weight") from error
            if located is not None:
                own, shape = located
                if "weight" not in parts and f"{name}.weight" in entries:
                    found_both = f"is stored both as plain numbers and in {own.name}"
                    hint = "remove the one that does not belong to this model"
                    raise CheckpointError(file, found_both, "one of them", tensor=f"{name}.weight", hint=hint)
                apart = family.separate(own, fields)
                if "bias" in parts and "bias" not in apart:
                    # Zeros, which tools give to every layer; only the model's class knows whether it has one.
                    full = f"{name}.bias"
                    self.spare[full] = self._dense(full, parts["bias"], 0)
                parts = {f: entry for f, entry in parts.items() if f not in apart and f != "bias"}
                module = _Module(name, own, shape, {f: parts[f][2] for f in parts}, file)
                found |= dict.fromkeys((f"{name}.{field}" for field in parts), module)
        repeated.tell()
        return found

    def _names_method(self) -> bool:
        """Whether config.json names a method; a plugin or an error says what it is."""
        declared = self._config.get("quantization_config")
        return isinstance(declared, dict) and bool(declared.get("quant_method"))

    def _declared(self) -> tuple[Family, Packer] | None:
        """Format of a quantized folder, found by what its config.json declares."""
        file, declared = self.path / "config.json", self._config.get("quantization_config")
        for family in registry().families() if declared is None else ():
            for name in family.config_files:
                if declared is None and (self.path / name).is_file():
                    self._beside = file = self.path / name
                    declared = read_json(file, self.path)
        own = self._under_other_keys()
        if own is not None:
            return own
        if declared is None and not self._corrected:
            return None
        if not isinstance(declared, dict | None):
            raise CheckpointError(file, f"quantization_config {declared!r}", "an object")
        self.declaration = declared = {**(declared or {}), **self._corrected}
        if declared.get("quant_method") == "qformats":
            try:
                packer = registry().packer(str(declared.get("format")))
                return registry().family(packer), packer
            except UnknownFormatError as error:
                raise CheckpointError(self.path / "config.json", f"quantization_config: {error}") from error
        families = registry().families()
        for family in families:
            try:
                detected = family.detect(declared)
            except (ConfigError, UnknownFormatError) as error:
                raise CheckpointError(file, f"quantization_config: {error}") from error
            if detected is not None:
                return family, detected
        if is_float8(declared):
            # Decoded as it is read, where no plugin keeps it packed.
            return None
        readable = sorted({family.name for family in families if family.reads_folders})
        method = declared.get("quant_method")
        about = next(filter(None, (family.about(str(method).lower()) for family in families)), "")
        raise CheckpointError(
            file,
            f"quantization method {method!r}" + (f": {about}" if about else ""),
            "none, or one that an installed plugin reads: " + ", ".join(readable)
            if readable
            else "none, since no installed plugin reads quantized folders",
            hint="install a plugin for this method, or use the unquantized model",
        )

    def _under_other_keys(self) -> tuple[Family, Packer] | None:
        """Format that a key of config.json declares which only one family knows."""
        for family in registry().families():
            for key in family.config_keys:
                declared = self._config.get(key)
                if not isinstance(declared, dict):
                    continue
                try:
                    self.declaration = {**declared, **self._corrected}
                    detected = family.detect(self.declaration)
                except ConfigError as error:
                    raise CheckpointError(self.path / "config.json", f"{key}: {error}") from error
                if detected is not None:
                    return family, detected
        return None

    def _undeclared(self, entries: dict[str, Entry]) -> tuple[Family, Packer] | None:
        """Format of a quantized folder that declares nothing, by what its tensors are called and hold."""
        if all(dtype in FLOATS for _, dtype, _ in entries.values()):
            return None
        for family in registry().families():
            variant = family.parse(family.default_variant)
            for fields, _ in _modules(entries, family, variant, self._expected):
                implied = family.undeclared(fields)
                detected = None if implied is None else family.detect(implied)
                if detected is not None:
                    warnings.warn(
                        f"{self.path} declares no quantization; its tensors are read as those of {family.name}, "
                        f"which they look like. -O quantization-config={json.dumps(implied)!r} says so, or otherwise",
                        UserWarning,
                        stacklevel=2,
                    )
                    return family, detected
        return None

    def _dense(self, name: str, entry: Entry, order: int) -> StoredTensor:
        return plain_tensor(name, *entry, order)

    def _packed(self, module: _Module, order: int) -> StoredTensor:
        packer, shape, name = module.packer, module.shape, f"{module.name}.weight"

        def load(start: int, stop: int) -> PackedTensor:
            fields = {field: shard.tensor(f"{module.name}.{field}") for field, shard in module.shards.items()}
            try:
                whole = packer.from_stored(fields, shape)
            except ConfigError as error:
                raise CheckpointError(module.file, str(error), tensor=name) from error
            return cut(whole, start, stop)

        nbytes, step = packer.nbytes(shape), packer.row_step(shape)
        names = frozenset(f"{module.name}.{field}" for field in module.shards)
        return StoredTensor(
            name, shape, packer, nbytes, module.file, load, offset=order, step=step, names=names
        )


def _modules(
    entries: dict[str, Entry],
    family: Family,
    packer: Packer,
    expected: Callable[[str], tuple[int, int] | None],
) -> Iterator[tuple[ModuleFields, dict[str, Entry]]]:
    """Modules with fields of a family's formats, and where these are stored."""
    grouped: dict[str, dict[str, Entry]] = {}
    endings = sorted(family.suffixes(packer), key=len, reverse=True)
    for name, entry in entries.items():
        field = next((ending for ending in endings if name.endswith(f".{ending}")), None)
        if field is not None:
            grouped.setdefault(name.removesuffix(f".{field}"), {})[field] = entry
    for name, parts in grouped.items():

        def read(field: str, name: str = name, parts: dict[str, Entry] = parts) -> bytes:
            return parts[field][2].content(f"{name}.{field}")

        stored = {field: (shape, dtype) for field, (shape, dtype, _) in parts.items()}
        yield ModuleFields(name, stored, read, partial(expected, name)), parts


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
