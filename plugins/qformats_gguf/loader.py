"""GGUF files: reading them, and laying out new ones."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats import Checkpoint, Loader, PackedTensor, Packer, StoredTensor
from qformats.errors import CheckpointError, ConfigError, Described, QFormatsError
from qformats.folder import AdapterCheckpoint
from qformats.interfaces import (
    Assignment,
    ColumnSums,
    Draft,
    Importance,
    Layout,
    OutputFile,
    Placement,
    dense,
    same_values,
    size,
    switch,
)
from qformats_gguf import policy
from qformats_gguf.nvfp4 import FACTOR, factor_name
from qformats_gguf.options import OPTIONS, ignore_unsupported

if TYPE_CHECKING:
    import numpy as np

    from qformats_gguf.architectures import Architecture, TensorMapping
    from qformats_gguf.header import TensorInfo
    from qformats_gguf.metadata import Metadata

__all__ = ["GGUFLoader"]


class GGUFLoader(Loader):
    """Reads GGUF version 2 and 3, single or split, and writes version 3."""

    name = "gguf"
    summary = "GGUF file, single or split"
    suffix = ".gguf"
    takes_adapters = True
    options = OPTIONS

    def detect(self, path: Path) -> bool:
        """Whether the file begins with GGUF's magic, or is named like one."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF" or path.suffix == ".gguf"

    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open a file, or all files of a split model, from headers alone."""
        from qformats_gguf.checkpoint import GGUFCheckpoint

        return GGUFCheckpoint(path, options)

    def shapes(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]] | None:
        """Those that the architecture's row says."""
        from qformats_gguf.architectures import Architecture

        try:
            architecture = Architecture.from_config(config)
        except QFormatsError:
            # Whoever is asked next says what is wrong with it, or knows it.
            return None
        return architecture.folder_shapes()

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """Tensors under their GGUF names; between GGUF files, tensors and names stay as they are."""
        from qformats_gguf.checkpoint import GGUFCheckpoint
        from qformats_gguf.rearrange import to_gguf

        if isinstance(source, AdapterCheckpoint):
            from qformats_gguf.adapters import adapter_drafts

            return adapter_drafts(source, options)
        if switch(options, "mmproj", False):
            from qformats_gguf.projector import projector_drafts

            return projector_drafts(source)
        if isinstance(source, GGUFCheckpoint):
            tied = "output.weight" not in source.stored
            return [_native_draft(name, tensor, tied) for name, tensor in source.stored.items()]
        architecture = _architecture(source, options)
        architecture.require(list(source.tensors))
        named: dict[str, StoredTensor] = {}
        drafts = []
        for name, tensor in source.tensors.items():
            mapping = architecture.map_tensor(name)
            if mapping is None:
                _require_copy(source, name, architecture.home_of(name))
                drafts.append(Draft(name, tensor, left_out=architecture.why_left_out(name)))
                continue
            architecture.check_shape(mapping, tensor.shape, name)
            named[mapping.canonical] = tensor
        stored: dict[str, list[tuple[StoredTensor, TensorMapping]]] = {}
        for mapping in architecture.expected_tensors():
            stored.setdefault(mapping.gguf, []).append((named[mapping.canonical], mapping))
        if architecture.row.output_required:
            # A tied model: llama.cpp loads none without this tensor in this architecture.
            stored.setdefault("output.weight", stored["token_embd.weight"])
        tied = "output.weight" not in stored
        for name, parts in stored.items():
            tensor, plain = to_gguf(parts), parts[0][1].force_f32
            role = policy.role(name)
            why = policy.keep(name, len(tensor.shape))
            if plain and why is None:
                why = "kept in full precision by llama.cpp"
            keep = "gguf:f32" if why else None
            drafts.append(Draft(name, tensor, role, keep, why or "", tied=tied and role is not None))
        for name, values in architecture.extra_tensors().items():
            drafts.append(
                Draft(name, _constant(name, values, source), None, "gguf:f32", "computed from the config")
            )
        return drafts

    def mixes(
        self, drafts: Sequence[Draft], packer: Packer, source: Checkpoint
    ) -> Mapping[str, tuple[str, str]]:
        """llama.cpp's choice: more bits for the output layer, and in mixes for some matrices of some layers."""
        from qformats_gguf import mixes

        if not packer.quantizes:
            return {}
        mix = packer.spec.variant
        weighed = source.importance is not None
        if mix in mixes.MIXES and mixes.MIXES[mix].weighted and not weighed:
            found = Described(f"{packer.name} without an importance matrix")
            raise ConfigError(
                "type", found, "q2_k, or another mix: llama.cpp makes this one from importances only"
            )
        shapes = {draft.name: draft.source.shape for draft in drafts if draft.keep is None}
        every = {draft.name: draft.source.shape for draft in drafts}
        tied = any(draft.tied for draft in drafts)
        chosen = mixes.choose(
            mix, shapes, tied, mixes.facts(_named_architecture(source), every, importance=weighed)
        )
        why = "as llama.cpp chooses (--pure switches this off)"
        return {name: (f"gguf:{kind}", f"{place}, {why}") for name, (kind, place) in chosen.items()}

    def alternatives(self, draft: Draft, packer: Packer) -> tuple[str, ...]:
        """K-quants and iq4_xs; types with blocks of 32 for rows that do not divide into blocks of 256."""
        from qformats_gguf.mixes import alternatives

        return tuple(f"gguf:{kind}" for kind in alternatives(draft.source.shape))

    def room(self, nbytes: int) -> int:
        """Tensors begin at multiples of 32."""
        from qformats_gguf.header import ALIGNMENT

        return -(-nbytes // ALIGNMENT) * ALIGNMENT

    def fallback(self, draft: Draft, packer: Packer) -> tuple[str, ...]:
        """Smaller blocks, or f16, if rows do not divide into blocks."""
        return policy.fallback(packer)

    def joined(self, assignments: Sequence[Assignment], source: Checkpoint) -> list[Assignment]:
        """With factors of the activations of matrices in nvfp4, where the model has them."""
        from qformats_gguf.input_scales import input_scales

        return [*assignments, *input_scales(assignments, source)]

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """One file, or several of a limited size."""
        from qformats_gguf.header import TensorInfo, serialize, shard_metadata, shard_name, split
        from qformats_gguf.metadata import boolean, string
        from qformats_gguf.types import by_name

        run_with = 'llama-cli -m {target} -p "Once upon a time"'
        if isinstance(source, AdapterCheckpoint):
            from qformats_gguf.adapters import require_type

            require_type(default)
            run_with = 'llama-cli -m BASE.gguf --lora {target} -p "Once upon a time"'
        elif switch(options, "mmproj", False):
            run_with = 'llama-mtmd-cli -m MODEL.gguf --mmproj {target} --image IMAGE -p "What is this?"'
        metadata = _metadata(source, default, options)
        arch = metadata.get("general.architecture", string(""))
        if metadata.get(f"{arch.data}.attention.causal") == boolean(False):
            run_with = 'llama-embedding -m {target} -p "Once upon a time"'
        infos, fields = [], {}
        for number, a in enumerate(assignments):
            infos.append(TensorInfo(a.draft.name, a.draft.source.shape, by_name(a.packer.spec.variant)))
            fields[a.draft.name] = number, a.packer.spec.fields[0].name
            factors = _factors(a, source)
            if factors is not None:
                infos.append(factors)
                fields[factors.name] = number, FACTOR
        _check_vocabulary(metadata, infos, source)
        limited = options.get("max-shard-size")
        groups = split(infos, max_bytes=size(options, "max-shard-size", "")) if limited else [infos]
        files = []
        for number, group in enumerate(groups):
            part = shard_metadata(metadata, number, len(groups), len(infos))
            header = serialize(part, group)
            placements = tuple(
                Placement(*fields[info.name], at, info.nbytes)
                for info, at in zip(group, header.offsets, strict=True)
            )
            prefix = target.name.removesuffix(self.suffix)
            name = target.name if len(groups) == 1 else shard_name(prefix, number, len(groups))
            files.append(OutputFile(name, header.total_size, header.data, placements))
        return Layout(tuple(files), folder=False, run_with=run_with, notes=_not_loaded(fields))

    def read_importance(self, path: Path) -> Importance | None:
        """llama.cpp's importance matrices, in both forms."""
        from qformats_gguf.imatrix import read_imatrix

        return read_imatrix(path)

    def name_importance(self, importance: Importance, source: Checkpoint) -> dict[str, ColumnSums]:
        """Entries by canonical name, and by the GGUF names of a GGUF file."""
        from qformats_gguf.imatrix import named

        return named(importance, source)

    def importance_file(self, importance: Importance, source: Checkpoint | None) -> bytes:
        """The GGUF form."""
        from qformats_gguf.imatrix import file_content

        return file_content(importance, source)


def _architecture(source: Checkpoint, options: Mapping[str, str]) -> Architecture:
    from qformats_gguf.architectures import Architecture

    architecture = Architecture.from_config(
        source.config,
        names=source.tensors.keys(),
        override=options.get("arch"),
        source=str(source.path / "config.json" if source.path.is_dir() else source.path),
        force=ignore_unsupported(options),
    )
    for problem in architecture.ignored:
        warnings.warn(f"{architecture.source}: {problem}", UserWarning, stacklevel=2)
    return architecture


def _require_copy(source: Checkpoint, name: str, home: str | None) -> None:
    """Refuse to leave out a tied tensor that has numbers of its own."""
    twin = source.tensors.get(home or "")
    if twin is not None and not same_values(source.tensors[name], twin):
        raise CheckpointError(
            source.tensors[name].file,
            f"differs from {home}, although the configuration ties them",
            "tie_word_embeddings false in the configuration",
            tensor=name,
        )


def _native_draft(name: str, tensor: StoredTensor, tied: bool) -> Draft:
    why = policy.keep(name, len(tensor.shape))
    role = policy.role(name)
    return Draft(
        name, tensor, role, tensor.format if why else None, why or "", tied=tied and role is not None
    )


def _constant(name: str, values: np.ndarray, source: Checkpoint) -> StoredTensor:
    """A tensor that exists in no file of the source."""

    def load(start: int, stop: int) -> PackedTensor:
        import torch

        part = torch.from_numpy(values[start:stop])
        return PackedTensor(dense("f32"), tuple(part.shape), {"weight": part})

    return StoredTensor(name, values.shape, dense("f32"), values.nbytes, source.files[0], load)


def _not_loaded(names: Collection[str]) -> tuple[str, ...]:
    """What llama.cpp does not load: it multiplies products by factors, and rows of an embedding are looked up."""
    found = [name for name in names if name.endswith(f"_embd.{FACTOR}")]
    return (f"llama.cpp does not load {found[0]}: give that matrix another type (q8_0)",) if found else ()


def _factors(assignment: Assignment, source: Checkpoint) -> TensorInfo | None:
    """The tensor of factors beside an nvfp4 weight; None for other types, and where a file has none itself."""
    from qformats_gguf.checkpoint import GGUFCheckpoint
    from qformats_gguf.header import TensorInfo
    from qformats_gguf.types import by_name

    draft, packer = assignment.draft, assignment.packer
    fields = packer.stored(draft.source.shape)
    if FACTOR not in fields:
        return None
    name, own = factor_name(draft.name), draft.source.stored_format == packer.name
    if own and isinstance(source, GGUFCheckpoint) and name not in draft.source.names:
        return None
    return TensorInfo(name, fields[FACTOR][0], by_name("f32"))


def _check_vocabulary(metadata: Metadata, infos: Sequence[TensorInfo], source: Checkpoint) -> None:
    """Refuse a tokenizer without one token for each row of the embedding: llama.cpp would refuse the file."""
    from qformats_gguf.metadata import Keys

    tokens = Keys(metadata, str(source.path)).strings("tokenizer.ggml.tokens", None)
    embedding = next((info for info in infos if info.name == "token_embd.weight"), None)
    if tokens is not None and embedding is not None and len(tokens) != embedding.shape[0]:
        raise CheckpointError(
            source.path,
            f"{embedding.shape[0]} rows",
            f"{len(tokens)}, one for each token of the tokenizer",
            tensor="token_embd.weight",
            hint="the tokenizer belongs to another model, or vocab_size in config.json is wrong",
        )


def _named_architecture(source: Checkpoint) -> str:
    """``general.architecture`` of a file made from a model, as far as the choice of types depends on it."""
    from qformats_gguf.checkpoint import GGUFCheckpoint
    from qformats_gguf.metadata import Keys

    if isinstance(source, GGUFCheckpoint):
        return Keys(source.native, str(source.path)).text("general.architecture", "")
    from qformats_gguf.architectures import supported_models

    kinds = (arch for arch, types in supported_models().items() if source.architecture in types)
    return next(kinds, source.architecture)


def _card(source: Checkpoint) -> Mapping[str, Any]:
    """Model card of a source; one that cannot be read costs no more than what it says."""
    try:
        return source.card
    except CheckpointError as error:
        warnings.warn(f"{error} The file does not say what it says", UserWarning, stacklevel=2)
        return {}


def _metadata(source: Checkpoint, default: Packer, options: Mapping[str, str]) -> Metadata:
    from qformats_gguf import pooling, sampling, tokenizer
    from qformats_gguf.authorship import authorship
    from qformats_gguf.checkpoint import GGUFCheckpoint
    from qformats_gguf.metadata import u32
    from qformats_gguf.mixes import MIXES
    from qformats_gguf.model_name import with_safe_name
    from qformats_gguf.types import by_name

    if isinstance(source, GGUFCheckpoint):
        metadata = dict(source.native)
    elif isinstance(source, AdapterCheckpoint):
        from qformats_gguf.adapters import adapter_metadata

        metadata = adapter_metadata(source, options)
    elif switch(options, "mmproj", False):
        from qformats_gguf.projector import projector_metadata

        metadata = projector_metadata(source)
    else:
        architecture = _architecture(source, options)
        # Of what the file holds: not of a vision model beside it, nor of a copy of the embedding.
        held = (
            tensor for name, tensor in source.tensors.items() if architecture.map_tensor(name) is not None
        )
        parameters = sum(prod(tensor.shape) for tensor in held)
        made = architecture.metadata(name=source.name, parameters=parameters)
        about = authorship(_card(source), source.config, source.name, parameters)
        first = {key: made[key] for key in ("general.architecture", "general.type")}
        metadata = first | about | {key: value for key, value in made.items() if key not in about}
        files = source.tokenizer_files()
        if not files:
            raise CheckpointError(source.path, "no tokenizer files", "tokenizer.json or tokenizer.model")
        # Where llama.cpp's converter has them: before what a card says.
        metadata = first | sampling.to_metadata(files, str(source.path)) | metadata
        metadata |= pooling.to_metadata(architecture.arch + ".", files, str(source.path))
        metadata |= tokenizer.to_gguf(files, source.config, pre=options.get("pre"), source=str(source.path))
        metadata = with_safe_name(metadata, str(source.path))
    variant = default.spec.variant
    number = MIXES[variant].file_type if variant in MIXES else by_name(variant).file_type
    if number is None:
        metadata.pop("general.file_type", None)
    else:
        metadata["general.file_type"] = u32(number)
    if source.importance is not None:
        from qformats_gguf.imatrix import provenance

        metadata |= provenance(source.importance)
    return metadata
