"""A GGUF model as a checkpoint: canonical names, rows in Transformers' order, config and tokenizer rebuilt."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qformats import Checkpoint, PackedTensor, StoredTensor
from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.interfaces import Scheme
from qformats.work.files import map_file
from qformats_gguf import pooling, tokenizer
from qformats_gguf.architectures import Architecture, TensorMapping
from qformats_gguf.architectures.longrope import TENSORS
from qformats_gguf.architectures.rows import ROWS
from qformats_gguf.input_scales import INPUT_FACTOR, steps
from qformats_gguf.metadata import Keys, Metadata, ValueType
from qformats_gguf.nvfp4 import FACTOR, factor_name
from qformats_gguf.options import ignore_unsupported
from qformats_gguf.reader import StoredTensor as Entry
from qformats_gguf.rearrange import assembled, from_gguf
from qformats_gguf.shards import open_model

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GGUFCheckpoint"]

_VOCABULARY = (
    "Its tokenizer can be used: qformats.load_tokenizer loads it, --format dense writes it into a folder"
)
_CARD = {
    "license": "general.license",
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "language": "general.languages",
    "tags": "general.tags",
}
"""What a model card says, by the keys that convert_hf_to_gguf.py takes from one."""
_HUB = "https://huggingface.co/"
_BASE_MODELS = 16
"""Most models that a merged one is said to be based on."""
_LOOK = 1 << 16
"""Bytes that are compared at a time: two tensors that differ nearly always do so at once."""
_FURTHER = (
    "part of a layer that predicts further tokens, which the model's class in Transformers does not have"
)
_ACTIVATIONS = "a factor of quantized activations, which weights do without"
_STILL = (
    "What needs no architecture works: inspect, inspect --plan, compare without --text, export to a GGUF type"
)


class GGUFCheckpoint(Checkpoint):
    """A GGUF file or split model; see :class:`~qformats.Checkpoint`.

    An architecture that is not in the table can still be read: its tensors keep their GGUF names and row
    order, and only `config` says that it cannot be expressed.

    Attributes
    ----------
    native : Metadata
        The file's own metadata, without ``split.*``.
    stored : dict of str to StoredTensor
        Tensors by GGUF name, as stored.
    parts : dict of str to list of str
        Canonical names of what each of them consists of, by GGUF name.
    """

    container = "gguf"

    def __init__(self, path: Path, options: Mapping[str, str]) -> None:
        self.path = path
        self._options = options
        self._maps: dict[Path, Tensor] = {}
        self._tokenizer: dict[str, bytes] | None = None
        with open_model(path) as model:
            self.native: Metadata = model.metadata
            self.version = model.files[0].version
            self._files = [file.path for file in model.files]
            entries = {name: (tensor, model.file_of(name).path) for name, tensor in model.tensors.items()}
        factors = _factors(entries)
        self.stored = {
            name: _stored(name, entry, file, self._map, entries.get(factors.get(name, "")))
            for name, (entry, file) in entries.items()
            if name not in factors.values()
        }
        self._copies = _copies(entries) if _copied(self.native) else {}
        self._unsupported: UnsupportedModelError | CheckpointError | None = None
        self._architecture: Architecture | None = None
        try:
            self._architecture = self._resolve()
        except UnsupportedModelError as error:
            self._unsupported = UnsupportedModelError(error.what, error.found, error.supported, _hint(error))
        except CheckpointError as error:
            if self.stored:
                raise
            self._unsupported = error
        self.left_out: dict[str, str] = {}
        self.parts: dict[str, list[str]] = {name: [name] for name in self.stored}
        self.tensors = self._canonical()
        self.steps = steps(self.stored, self.parts)
        if self.steps:
            self.schemes = (Scheme("input", "nvfp4", dynamic=False),)

    def _map(self, file: Path) -> Tensor:
        """Bytes of a file, mapped when the first tensor is read: looking at a model needs no torch."""
        if file not in self._maps:
            self._maps[file] = map_file(file)
        return self._maps[file]

    def _resolve(self) -> Architecture:
        if not self.stored:
            # llama.cpp keeps vocabularies as files without tensors; their metadata can be inspected.
            raise CheckpointError(
                self.path, "holds no tensors (a vocabulary only?)", "a model with weights", hint=_VOCABULARY
            )
        factors = [name for name in ("rope_freqs.weight", *TENSORS) if name in self.stored]
        extra = {name: self.stored[name].dequantize().numpy() for name in factors}
        return Architecture.from_metadata(
            self.native,
            [name for name in self.stored if name not in self._copies and not name.endswith(INPUT_FACTOR)],
            extra_tensors=extra,
            source=str(self.path),
            force=ignore_unsupported(self._options),
        )

    def _canonical(self) -> dict[str, StoredTensor]:
        architecture = self._architecture
        if architecture is None:
            return dict(self.stored)
        self.left_out |= self._copies
        stored = {name: tensor for name, tensor in self.stored.items() if name not in self._copies}
        architecture.require([name for name in stored if not name.endswith(INPUT_FACTOR)])
        tensors = {}
        pieces: dict[str, list[tuple[StoredTensor, TensorMapping]]] = {}
        self.parts = {}
        for name, tensor in stored.items():
            if architecture.is_extra(name):
                self.left_out[name] = "part of the configuration: factors of the rotary scaling"
                continue
            if name.endswith(INPUT_FACTOR):
                self.left_out[name] = _ACTIVATIONS
                continue
            if architecture.is_further(name):
                self.left_out[name] = _FURTHER
                continue
            mappings = architecture.unmap_tensors(name)
            self.parts[name] = [mapping.canonical for mapping in mappings]
            first, shape = mappings[0], mappings[0].stored_shape
            rows = sum(mapping.stored_shape[0] for mapping in mappings)
            if first.stack:
                # Of each expert, its rows in all of the stacks that are joined here.
                rows = sum(mapping.shape[0] for mapping in mappings[:: first.stack])
                shape = (first.stack, rows, *shape[2:])
            else:
                shape = (rows, *shape[1:])
            architecture.check_shape(replace(first, shape=shape), tensor.shape, name)
            if first.shared:
                pieces.setdefault(first.canonical, []).append((tensor, first))
                continue
            for part in from_gguf(tensor, mappings):
                if part.name in tensors:
                    raise CheckpointError(self.path, "is stored twice", "each weight once", tensor=name)
                tensors[part.name] = part
        order = {mapping.gguf: number for number, mapping in enumerate(architecture.expected_tensors())}
        for name, found in pieces.items():
            tensors[name] = assembled(sorted(found, key=lambda each: order[each[1].gguf]))
        return tensors

    def reading_through(self, wrap: Callable[[StoredTensor], StoredTensor]) -> Checkpoint:
        """Tensors as stored are wrapped; the canonical ones are made from them."""
        other = copy.copy(self)
        other.stored = {name: wrap(tensor) for name, tensor in self.stored.items()}
        other.left_out = dict(self.left_out)
        other.tensors = other._canonical()
        return other

    @property
    def card(self) -> Mapping[str, Any]:
        """License, languages, tags and base models of ``general.*``."""
        keys = Keys(self.native, str(self.path))
        found: dict[str, Any] = {}
        for name, key in _CARD.items():
            value = keys.get(key)
            if value:
                found[name] = value
        links = (keys.get(f"general.base_model.{n}.repo_url") for n in range(_BASE_MODELS))
        bases = [link.removeprefix(_HUB) for link in links if isinstance(link, str) and link.startswith(_HUB)]
        if bases:
            found["base_model"] = bases
        return found

    @property
    def stored_names(self) -> Collection[str]:
        """GGUF names."""
        return self.stored

    @property
    def in_own_names(self) -> Mapping[str, StoredTensor]:
        """Tensors by GGUF name, as stored."""
        return self.stored

    @property
    def architecture(self) -> str:
        """``general.architecture``."""
        return Keys(self.native, str(self.path)).text("general.architecture", "unknown")

    @property
    def config(self) -> dict[str, Any]:
        """Configuration for Transformers.

        Raises
        ------
        UnsupportedModelError
            If no row of the architecture table describes the file.
        CheckpointError
            If the file holds no tensors.
        """
        if self._architecture is None:
            assert self._unsupported is not None
            raise self._unsupported
        return {key: value for key, value in self._architecture.config.items() if not key.startswith("_")}

    def tokenizer_files(self) -> dict[str, bytes]:
        """Tokenizer rebuilt from the metadata."""
        if "tokenizer.ggml.model" not in self.native:
            return {}
        if self._tokenizer is None:
            # Asked several times on the way to a running model; a large vocabulary takes a second.
            context = f"{self.architecture}.context_length"
            self._tokenizer = tokenizer.from_gguf(
                self.native,
                source=str(self.path),
                max_length=Keys(self.native, str(self.path)).integer(context, None, minimum=1),
                pre=self._options.get("pre"),
            ) | pooling.from_metadata(self.native, str(self.path))
        return dict(self._tokenizer)

    @property
    def files(self) -> list[Path]:
        """All parts of the model."""
        return self._files

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's own metadata."""
        shown: dict[str, Any] = {"GGUF.version": self.version}
        for key, value in self.native.items():
            if value.type is ValueType.ARRAY:
                shown[key] = [_readable(item) for item in value.data]
            elif value.type is ValueType.F32:
                shown[key] = _readable(np.float32(value.data))
            else:
                shown[key] = value.data
        return shown


def _copied(metadata: Metadata) -> bool:
    """Whether files of this architecture have an output layer even if the model ties it to the embedding."""
    arch = metadata.get("general.architecture")
    if arch is None or arch.type is not ValueType.STRING:
        return False
    return any(row.output_required for row in ROWS.values() if row.arch == arch.data)


def _factors(entries: Mapping[str, tuple[Entry, Path]]) -> dict[str, str]:
    """Names of the tensors of factors of nvfp4 weights, by the names of these.

    Raises
    ------
    CheckpointError
        If one does not hold a float32 for each matrix.
    """
    found = {}
    for name, (entry, _) in entries.items():
        beside = factor_name(name)
        if entry.type is None or entry.type.name != "nvfp4" or beside == name or beside not in entries:
            continue
        factors, file = entries[beside]
        wanted = math.prod(entry.shape[:-2])
        if factors.type is None or factors.type.name != "f32" or math.prod(factors.shape) != wanted:
            told = f"{factors.type.name if factors.type else 'an unknown type'} of shape {factors.shape}"
            raise CheckpointError(file, told, f"f32, one for each matrix ({wanted})", tensor=beside)
        found[name] = beside
    return found


def _copies(entries: Mapping[str, tuple[Entry, Path]]) -> dict[str, str]:
    """The output layer, if its bytes are those of the token embedding, and why it is left out."""
    found = [entries.get(name) for name in ("token_embd.weight", "output.weight")]
    if None in found:
        return {}
    (one, first), (other, second) = (each for each in found if each is not None)
    if (one.type_id, one.shape) != (other.type_id, other.shape):
        return {}
    with first.open("rb") as a, second.open("rb") as b:
        a.seek(one.offset)
        b.seek(other.offset)
        for start in range(0, one.nbytes, _LOOK):
            size = min(_LOOK, one.nbytes - start)
            if a.read(size) != b.read(size):
                return {}
    return {"output.weight": "a copy of token_embd.weight: the model ties them"}


def _hint(error: UnsupportedModelError) -> str:
    """What an error advises, and what can still be done with the file."""
    return ". ".join(filter(None, (error.hint, _STILL)))


def _readable(item: Any) -> Any:
    """Plain number of a numpy one; for a float32 the shortest that means it: 1e-05, not 9.999999747378752e-06."""
    if isinstance(item, np.float32):
        return float(str(item))
    return item.item() if isinstance(item, np.generic) else item


def _stored(
    name: str,
    entry: Entry,
    file: Path,
    data_of: Callable[[Path], Tensor],
    beside: tuple[Entry, Path] | None = None,
) -> StoredTensor:
    """A tensor as stored, read by rows from the mapped file; `beside` holds its factors, if it has any there."""
    from qformats_gguf.packers import UnknownTypePacker, packer_of

    packer = packer_of(entry.type) if entry.type else UnknownTypePacker(entry.type_id)
    # Blocks of a vector hold many of its elements, which are its rows.
    whole = len(entry.shape) < 2 and packer.spec.block_size > 1
    rows = entry.shape[0] if entry.shape and not whole else 1

    def load(start: int, stop: int) -> PackedTensor:
        if isinstance(packer, UnknownTypePacker):
            raise packer.refusal(file, name)
        import torch

        from qformats.numbers import torch_dtype

        if entry.type is None:
            expected = "a type that this version knows"
            raise CheckpointError(file, f"has the unknown type {entry.type_id}", expected, tensor=name)
        data = data_of(file)
        width = entry.nbytes // rows
        first, last = (0, 1) if whole else (start, stop)
        part = data[entry.offset + first * width : entry.offset + last * width]
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        (field, (stored_shape, dtype)), *_ = packer.stored(shape).items()
        wanted = torch_dtype(dtype)
        if part.data_ptr() % wanted.itemsize:
            # An odd alignment is legal in GGUF; torch cannot view such bytes as wider numbers.
            part = part.clone()
        values = part if wanted == torch.uint8 else part.view(wanted)
        fields = {field: values.reshape(stored_shape)}
        if FACTOR in packer.stored(shape):
            fields[FACTOR] = factors(start, stop)
        return PackedTensor(packer, shape, fields)

    def factors(start: int, stop: int) -> Tensor:
        import torch

        matrices = math.prod(entry.shape[:-2])
        if beside is None:
            values = torch.ones(matrices)
        else:
            data = data_of(beside[1])[beside[0].offset : beside[0].offset + beside[0].nbytes]
            values = data.clone().view(torch.float32)
        return values if len(entry.shape) < 3 else values.view(entry.shape[0], -1)[start:stop].reshape(-1)

    step = 0 if whole or not packer.row_step(entry.shape or (1,)) else 1
    nbytes = entry.nbytes + (beside[0].nbytes if beside is not None else 0)
    names = frozenset() if beside is None else frozenset([factor_name(name)])
    return StoredTensor(
        name, entry.shape, packer, nbytes, file, load, offset=entry.offset, step=step, names=names
    )
