"""A model split over ranks of tensor parallelism, as one checkpoint of whole tensors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qformats import Checkpoint, PackedTensor, StoredTensor
from qformats.errors import CheckpointError, ConfigError, ShapeError
from qformats.folder import read_json
from qformats.interfaces import Values, concat_rows, dense
from qformats.work.files import refuse_link_out, refuse_pointer
from qformats_glm.generations import TOKENS
from qformats_glm.packers import GLMPacker
from qformats_glm.ranks.archive import RankFile
from qformats_glm.ranks.columns import join_columns
from qformats_glm.ranks.rules import Kind, Sharding, merged_rows, positive
from qformats_glm.tokenizers import ICE_TEXT, completed

__all__ = ["MODEL_CONFIG", "RankCheckpoint", "find_ranks", "is_rank", "rank_file"]

LATEST = "latest"
MODEL_CONFIG = "model_config.json"
"""What SwissArmyTransformer says of the model, where it wrote the files."""
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ZERO = re.compile(r"z3_rank_\d+_model_states\.pt|zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_HIDDEN = re.compile(r"(?:layernorm\.weight|(?:attention\.dense|dense_4h_to_h)\.bias)$")
"""Vectors of one element a hidden feature; every rank has all of them."""
_LONGEST = 255
_FETCH = "fetch the files of all ranks"


def rank_file(rank: int) -> str:
    """Name of a rank's file."""
    return f"mp_rank_{rank:02d}_model_states.pt"


def is_rank(path: Path) -> bool:
    """Whether a file is named like that of a rank, readable here or not."""
    return bool(_RANK.fullmatch(path.name) or _ZERO.fullmatch(path.name))


def find_ranks(path: Path) -> tuple[Path, str | None]:
    """Folder with the ranks' files, and the iteration that ``latest`` names.

    Raises
    ------
    CheckpointError
        If ``latest`` names no folder beside it, or `path` is the file of one rank.
    """
    if path.is_file():
        raise CheckpointError(path, "is one rank of a model", "the folder with the files of all ranks")
    latest = path / LATEST
    if not latest.is_file():
        return path, None
    refuse_link_out(latest, path)
    with latest.open("rb") as file:
        text = file.read(_LONGEST + 1).decode("utf-8", "replace").strip()
    # A name with a path in it could point anywhere on the disk.
    if not text or len(text) > _LONGEST or Path(text).name != text or text == ".." or "\0" in text:
        raise CheckpointError(latest, f"names {text[:80]!r}", "the name of the folder beside it")
    folder = path / text
    if not folder.is_dir():
        raise CheckpointError(
            latest,
            f"names {text!r}, but there is no such folder here",
            "the name of the folder with the ranks",
        )
    return folder, text


class RankCheckpoint(Checkpoint):
    """A GLM-130B or SwissArmyTransformer folder; see :class:`~qformats.Checkpoint`.

    Tensors are whole ones under the model's own names; ``weight_scale`` belongs to its weight. Only the scales of
    row-parallel weights are read when the model is opened.

    Attributes
    ----------
    ranks : int
        Number of ranks.
    iteration : str or None
        Name of the folder that ``latest`` names.
    sharding : Sharding
        Variant of the rules.
    model_config : dict
        Content of ``model_config.json``; empty if there is none.

    Raises
    ------
    CheckpointError
        If a rank is missing, a file is damaged, or ranks contradict each other.
    ConfigError
        If an option contradicts the files.
    """

    container = "sat"

    def __init__(self, path: Path, options: Mapping[str, str]) -> None:
        self.path = path
        self._tokenizer: dict[str, bytes] | None = None
        folder, self.iteration = find_ranks(path)
        paths = _rank_paths(folder)
        for file in (path / MODEL_CONFIG, *paths):
            refuse_link_out(file, path)
        told = path / MODEL_CONFIG
        self.model_config = read_json(told, path) if told.is_file() else {}
        self._check_count(folder, len(paths))
        self._ranks = [RankFile(file) for file in paths]
        self._check_agreement()
        self._bits = positive(options, "bits")
        if self._bits not in (None, 4, 8):
            raise ConfigError("bits", self._bits, "4 or 8")
        self._hidden = self._find_hidden()
        self.sharding = Sharding.of(options, self._find_heads(options), self._ranks[0].entries)
        self.tensors = self._merged()
        try:
            self.sharding.check_ranks(self.ranks)
        except ConfigError as error:
            found = f"the files of {self.ranks} ranks"
            raise CheckpointError(folder, found, error.allowed, hint=_FETCH) from error

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self._ranks)

    @property
    def stored_names(self) -> Collection[str]:
        """Names in the files of the ranks, which are the same in each."""
        return self._ranks[0].entries

    def _told(self, key: str) -> int | None:
        """A number that :data:`MODEL_CONFIG` says."""
        return Values(self.model_config, str(self.path / MODEL_CONFIG)).integer(key, None, minimum=1)

    def _check_count(self, folder: Path, found: int) -> None:
        told = self._told("model_parallel_size")
        if told is not None and told > found:
            expected = f"{told}, as {MODEL_CONFIG} says"
            raise CheckpointError(folder, f"the files of {found} ranks", expected, hint=_FETCH)

    def _check_agreement(self) -> None:
        """Compare every rank with the first: tensors are divided into equal parts."""
        first = self._ranks[0]
        for rank in self._ranks[1:]:
            differing = sorted(first.entries.keys() ^ rank.entries.keys())
            if differing:
                has, lacks = (rank, first) if differing[0] in rank.entries else (first, rank)
                found = f"is in {has.path.name} but not in {lacks.path.name}"
                raise CheckpointError(
                    lacks.path, found, "the same tensors in every rank", tensor=differing[0]
                )
            for name, entry in rank.entries.items():
                other = first.entries[name]
                if (entry.shape, entry.dtype) != (other.shape, other.dtype):
                    raise CheckpointError(
                        rank.path,
                        f"{entry.dtype} of shape {entry.shape}",
                        f"{other.dtype} of shape {other.shape}, as in {first.path.name}",
                        tensor=name,
                    )

    def _find_hidden(self) -> int | None:
        for name, entry in self._ranks[0].entries.items():
            if _HIDDEN.search(name) and len(entry.shape) == 1:
                return entry.shape[0]
        return None

    def _find_heads(self, options: Mapping[str, str]) -> int | None:
        told = self._told("num_attention_heads")
        if told is not None:
            return told
        if options.get("glu", "yes") != "yes" or options.get("qkv", "interleaved") != "interleaved":
            # Other models rotate only a part of a head.
            return None
        for name, entry in self._ranks[0].entries.items():
            if name.endswith("inv_freq") and len(entry.shape) == 1 and entry.shape[0] and self._hidden:
                # Two features of a head share a frequency.
                heads, rest = divmod(self._hidden, 2 * entry.shape[0])
                return heads if not rest else None
        return None

    def _merged(self) -> dict[str, StoredTensor]:
        entries = self._ranks[0].entries
        divided: dict[str, list[StoredTensor]] = {}
        for name in entries:
            if name.endswith(".weight_scale"):
                if name.removesuffix("_scale") not in entries:
                    raise CheckpointError(self._ranks[0].path, "scales without their weight", tensor=name)
                continue
            kind = self.sharding.kind(name)
            divided[name] = [self._part(name, rank, kind) for rank in self._ranks]
        try:
            self.sharding.check_attention({name: self._whole(name, parts) for name, parts in divided.items()})
        except ShapeError as error:
            raise CheckpointError(self._ranks[0].path, str(error)) from error
        tensors = {}
        for name, parts in divided.items():
            try:
                tensors[name] = self._merge(name, self.sharding.kind(name), parts)
            except (ShapeError, ConfigError) as error:
                raise CheckpointError(parts[0].file, str(error), tensor=name) from error
            self._check_width(tensors[name], parts[0].file)
        return tensors

    def _whole(self, name: str, parts: list[StoredTensor]) -> tuple[int, ...]:
        """Shape of a whole tensor."""
        shape, kind = list(parts[0].shape), self.sharding.kind(name)
        if kind is not Kind.REPLICATED:
            shape[1 if kind is Kind.COLUMNS else 0] *= len(parts)
        return tuple(shape)

    def _merge(self, name: str, kind: Kind, parts: list[StoredTensor]) -> StoredTensor:
        if kind is Kind.REPLICATED or len(parts) == 1:
            return parts[0]
        if kind is Kind.COLUMNS:
            return join_columns(name, parts)
        rows = sum(part.rows for part in parts)
        runs = merged_rows(self.sharding, name, rows, len(parts))
        return concat_rows(name, [parts[rank].slice_rows(first, last) for rank, first, last in runs])

    def _part(self, name: str, rank: RankFile, kind: Kind) -> StoredTensor:
        """What one rank holds of a tensor."""
        entry = rank.entries[name]
        scale = rank.entries.get(f"{name}_scale")
        if kind is not Kind.REPLICATED and not entry.shape:
            raise CheckpointError(rank.path, "a single number", "a vector or a matrix", tensor=name)
        if kind is Kind.COLUMNS and len(entry.shape) != 2:
            raise CheckpointError(rank.path, f"shape {entry.shape}", "a matrix", tensor=name)
        if scale is not None:
            return self._packed(name, rank)
        if entry.dtype == "i8":
            found = f"packed codes without {name}_scale"
            raise CheckpointError(rank.path, found, "a scale for every row", tensor=name)
        packer = dense(entry.dtype)

        def load(start: int, stop: int) -> PackedTensor:
            values = rank.read(name, start, stop)
            return PackedTensor(packer, tuple(values.shape), {"weight": values})

        return StoredTensor(name, entry.shape, packer, entry.nbytes, rank.path, load, offset=entry.offset)

    def _packed(self, name: str, rank: RankFile) -> StoredTensor:
        entry, scale = rank.entries[name], rank.entries[f"{name}_scale"]
        if entry.dtype != "i8" or len(entry.shape) != 2:
            found = f"{entry.dtype} of shape {entry.shape} beside {name}_scale"
            raise CheckpointError(rank.path, found, "packed codes, int8 in two dimensions", tensor=name)
        if scale.shape != entry.shape[:1] or scale.dtype not in ("f16", "bf16", "f32"):
            raise CheckpointError(
                rank.path,
                f"{scale.dtype} of shape {scale.shape}",
                f"one float scale for each of the {entry.shape[0]} rows",
                tensor=f"{name}_scale",
            )
        own = GLMPacker(self._width(name, entry.shape[1], rank), scale.dtype)
        shape = (entry.shape[0], entry.shape[1] * 8 // own.bits)

        def load(start: int, stop: int) -> PackedTensor:
            fields = {
                field: rank.read(f"{name.removesuffix('weight')}{field}", start, stop)
                for field in ("weight", "weight_scale")
            }
            try:
                return own.from_stored(fields, (stop - start, shape[1]))
            except ConfigError as error:
                raise CheckpointError(rank.path, str(error), tensor=name) from error

        nbytes, names = entry.nbytes + scale.nbytes, frozenset([f"{name}_scale"])
        return StoredTensor(name, shape, own, nbytes, rank.path, load, offset=entry.offset, names=names)

    def _columns(self, name: str) -> int | None:
        """Columns that the whole weight must have; ``None`` if nothing tells."""
        if name.endswith("dense_4h_to_h.weight"):
            up = self._ranks[0].entries.get(name.replace("dense_4h_to_h", "dense_h_to_4h"))
            if up is not None and up.shape:
                return up.shape[0] * self.ranks // (2 if self.sharding.glu else 1)
            return None
        return self._hidden

    def _width(self, name: str, stored: int, rank: RankFile) -> int:
        """Bits of a code: nothing says them but the number of bytes in a row."""
        columns = self._columns(name)
        if columns is None:
            if self._bits is None:
                found = "packed codes of unknown width, since no bias or norm tells the hidden size"
                raise CheckpointError(rank.path, found, tensor=name, hint="give -O bits=4 or -O bits=8")
            return self._bits
        told = stored * 8 * (self.ranks if self.sharding.kind(name) is Kind.COLUMNS else 1)
        bits = told // columns if columns else 0
        if bits not in (4, 8) or told % columns:
            found = f"{told // 8} bytes per row in all ranks together"
            expected = f"{columns // 2} (int4) or {columns} (int8) for {columns} columns"
            raise CheckpointError(rank.path, found, expected, tensor=name, hint=self._suspicion())
        if self._bits not in (None, bits):
            raise ConfigError("bits", self._bits, f"{bits}, which {rank.path}: {name} has")
        return bits

    def _check_width(self, tensor: StoredTensor, file: Path) -> None:
        if (
            len(tensor.shape) != 2
            or tensor.packer.quantizes
            or self.sharding.kind(tensor.name) is Kind.REPLICATED
        ):
            return
        columns = self._columns(tensor.name)
        if columns is not None and tensor.shape[1] != columns:
            found = f"{tensor.shape[1]} columns in all ranks together"
            raise CheckpointError(file, found, str(columns), tensor=tensor.name, hint=self._suspicion())

    def _suspicion(self) -> str:
        glu = (
            "the model has no gate (-O glu=no)" if self.sharding.glu else "the model has a gate (-O glu=yes)"
        )
        return f"{self.ranks} ranks were found: some may be missing, or {glu}"

    @property
    def architecture(self) -> str:
        """``glm-130b``, or ``sat`` for the variants of its layout."""
        return "glm-130b" if self.sharding.glu and not self.sharding.contiguous else "sat"

    @property
    def config(self) -> dict[str, Any]:
        """What the tensors and ``model_config.json`` tell."""
        found: dict[str, Any] = {"model_type": self.architecture}
        layers = {int(m[1]) for name in self.tensors if (m := re.search(r"\.layers\.(\d{1,6})\.", name))}
        if layers:
            found["num_layers"] = max(layers) + 1
        for name, tensor in self.tensors.items():
            if name.endswith("word_embeddings.weight"):
                found["vocab_size"] = tensor.shape[0]
            if name.endswith("dense_4h_to_h.weight"):
                found["inner_hidden_size"] = tensor.shape[1]
        if self._hidden is not None:
            found["hidden_size"] = self._hidden
        if self.sharding.heads is not None:
            found["num_attention_heads"] = self.sharding.heads
        told = {key: value for key, value in self.model_config.items() if key != "model_parallel_size"}
        usual = {"max_sequence_length": TOKENS} if self.architecture == "glm-130b" else {}
        return usual | told | found

    def tokenizer_files(self) -> dict[str, bytes]:
        """Those of GLM-130B, if its ``ice_text.model`` lies in the folder: there is none by default."""
        if self._tokenizer is None:
            file = self.path / ICE_TEXT
            if file.is_file():
                refuse_link_out(file, self.path)
                refuse_pointer(file)
                self._tokenizer = completed({ICE_TEXT: file.read_bytes()}, self.config, self.path, {})
            else:
                self._tokenizer = {}
        return dict(self._tokenizer)

    @property
    def files(self) -> list[Path]:
        """The ranks' files, and what lies beside them."""
        beside = [self.path / LATEST, self.path / MODEL_CONFIG, self.path / ICE_TEXT]
        return [*(file for file in beside if file.is_file()), *(rank.path for rank in self._ranks)]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Ranks, iteration and configuration."""
        return {"ranks": self.ranks, "iteration": self.iteration, **self.config}


def _rank_paths(folder: Path) -> list[Path]:
    """Files of all ranks, in order."""
    names = sorted(entry.name for entry in folder.iterdir())
    zero = [name for name in names if _ZERO.fullmatch(name)]
    if zero:
        hint = "gather them into mp_rank files first, as DeepSpeed's zero_to_fp32.py does"
        found = "weights divided by ZeRO-3, with a piece of each tensor in every rank"
        raise CheckpointError(folder / zero[0], found, "mp_rank_XX_model_states.pt", hint=hint)
    ranks: dict[int, Path] = {}
    for name in names:
        matched = _RANK.fullmatch(name)
        if matched:
            number = int(matched[1])
            if number in ranks:
                found = f"rank {number} twice, also as {name}"
                raise CheckpointError(ranks[number], found, "one file per rank")
            ranks[number] = folder / name
    if not ranks:
        raise CheckpointError(folder, "no ranks", "mp_rank_00_model_states.pt and so on")
    missing = [number for number in range(len(ranks)) if number not in ranks]
    if missing:
        last = max(ranks)
        raise CheckpointError(
            folder / rank_file(missing[0]), f"is missing, although rank {last} is there", hint=_FETCH
        )
    return [ranks[number] for number in range(len(ranks))]
