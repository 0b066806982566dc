"""Rank folders: GLM-130B and SwissArmyTransformer checkpoints, one file per rank of tensor parallelism."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qformats import Checkpoint, Loader, Packer, StoredTensor
from qformats.errors import ConfigError
from qformats.interfaces import (
    Assignment,
    Draft,
    Layout,
    Option,
    OutputFile,
    Placement,
    ReplacedTensors,
    concat_rows,
)

if TYPE_CHECKING:
    from qformats_glm.ranks.checkpoint import RankCheckpoint
    from qformats_glm.ranks.rules import Sharding

__all__ = ["RankFolder"]

_MOST_RANKS = 1024
_FIRST = "1"
"""Iteration of a model that comes from elsewhere: SwissArmyTransformer refuses 0."""
_LINEAR = re.compile(
    r"(?:^|\.)(?:query_key_value|dense|dense_h_to_4h|dense_4h_to_h|mlp\.gate_proj\.\d+)\.weight$"
)


class RankFolder(Loader):
    """Reads and writes ``<dir>/latest`` and ``<dir>/<iteration>/mp_rank_XX_model_states.pt``."""

    name = "sat"
    summary = "folder of GLM-130B or SwissArmyTransformer, one file per tensor-parallel rank"
    families = ("glm",)
    options = (
        Option("tensor-parallel", "ranks to write (default: as many as the source has, or 1)"),
        Option("glu", "no: the MLP has no gate, as in ChatGLM-6B (default: yes)"),
        Option("qkv", "contiguous: all queries, then keys, then values (default: interleaved by head)"),
        Option("heads", "attention heads, if the files do not tell them"),
        Option("groups", "key and value heads, if there are fewer (with qkv=contiguous)"),
        Option("bits", "4 or 8: width of quantized weights, if the shapes do not tell it"),
    )

    def accepts(self, packer: Packer) -> bool:
        """Packed weights with one scale per row, and plain numbers."""
        return super().accepts(packer) or packer.dense_dtype in ("f16", "bf16", "f32")

    def detect(self, path: Path) -> bool:
        """Whether there are files of ranks here, or in folders beside ``latest``."""
        from qformats_glm.ranks.checkpoint import is_rank

        if path.is_file():
            return is_rank(path)
        # A folder with a config.json is a model of Transformers, with what its training left beside it.
        if not path.is_dir() or (path / "config.json").is_file():
            return False
        pattern = "*_model_states.pt"
        nested = path.glob(f"*/{pattern}") if (path / "latest").is_file() else ()
        return any(is_rank(file) for files in (path.glob(pattern), nested) for file in files)

    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open all ranks; of the weights only scales of row-parallel layers are read."""
        from qformats_glm.ranks.checkpoint import RankCheckpoint

        return RankCheckpoint(path, options)

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """Every tensor once a rank, cut as that rank holds it."""
        from qformats_glm.ranks.columns import cut_columns
        from qformats_glm.ranks.rules import Kind

        sharding, ranks = _sharding(source, options), _ranks(source, options)
        drafts = []
        for rank in range(ranks):
            for name, tensor in source.tensors.items():
                kind = sharding.kind(name)
                if kind is Kind.REPLICATED or ranks == 1:
                    part = tensor
                elif kind is Kind.COLUMNS:
                    part = cut_columns(tensor, rank, ranks)
                else:
                    part = _cut_rows(tensor, sharding.rows_of(name, tensor.rows, ranks, rank))
                linear = len(tensor.shape) == 2 and _LINEAR.search(name)
                keep = None if linear else _kept(tensor)
                drafts.append(
                    Draft(f"{_prefix(rank)}{name}", part, None, keep, "" if linear else "not a linear weight")
                )
        return drafts

    def rank(self, draft: Draft) -> int:
        """Rank whose file holds the tensor."""
        return int(draft.name.partition("/")[0].removeprefix("mp_rank_"))

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """One file per rank, ``latest``, and ``model_config.json`` where the source has one."""
        from qformats_glm.ranks.checkpoint import MODEL_CONFIG, rank_file

        ranks = _ranks(source, options)
        origin = _origin(source)
        iteration, config = _FIRST, {}
        if origin is not None:
            iteration, config = origin.iteration or _FIRST, origin.model_config
        files = [OutputFile("latest", len(iteration), iteration.encode())]
        for rank in range(ranks):
            own = [i for i, each in enumerate(assignments) if each.draft.name.startswith(_prefix(rank))]
            files.append(_file(f"{iteration}/{rank_file(rank)}", assignments, own, len(_prefix(rank))))
        if config:
            text = json.dumps(config | {"model_parallel_size": ranks}, indent=4).encode()
            files.append(OutputFile(MODEL_CONFIG, len(text), text))
        return Layout(tuple(files), folder=True)


def _prefix(rank: int) -> str:
    return f"mp_rank_{rank:02d}/"


def _origin(source: Checkpoint) -> RankCheckpoint | None:
    """The files of ranks that a model is, with some tensors replaced or none; None if it is something else."""
    from qformats_glm.ranks.checkpoint import RankCheckpoint

    while isinstance(source, ReplacedTensors):
        source = source.source
    return source if isinstance(source, RankCheckpoint) else None


def _sharding(source: Checkpoint, options: Mapping[str, str]) -> Sharding:
    from qformats_glm.ranks.rules import Sharding

    origin = _origin(source)
    if origin is not None:
        return origin.sharding
    heads = source.config.get("num_attention_heads")
    known = heads if isinstance(heads, int) and heads > 0 else None
    sharding = Sharding.of(options, known, source.tensors)
    sharding.check_attention({name: tensor.shape for name, tensor in source.tensors.items()})
    return sharding


def _ranks(source: Checkpoint, options: Mapping[str, str]) -> int:
    """Ranks to write.

    Raises
    ------
    ConfigError
        If the attention heads cannot be spread over so many.
    """
    from qformats_glm.ranks.rules import positive

    origin = _origin(source)
    before = 1 if origin is None else origin.ranks
    ranks = positive(options, "tensor-parallel") or before
    if ranks > _MOST_RANKS:
        raise ConfigError("tensor-parallel", ranks, f"at most {_MOST_RANKS}")
    sharding = _sharding(source, options)
    sharding.check_ranks(ranks)
    if sharding.heads is None and before % ranks:
        # Joining neighbours never divides a head; dividing might.
        raise ConfigError(
            "heads", None, "the number of attention heads (-O heads=N), which must be a multiple of the ranks"
        )
    return ranks


def _cut_rows(tensor: StoredTensor, ranges: Sequence[tuple[int, int]]) -> StoredTensor:
    parts = [tensor.slice_rows(start, stop) for start, stop in ranges]
    return parts[0] if len(parts) == 1 else concat_rows(tensor.name, parts)


def _kept(tensor: StoredTensor) -> str:
    return f"dense:{tensor.packer.dense_dtype or 'f16'}"


def _file(name: str, assignments: Sequence[Assignment], own: Sequence[int], cut: int) -> OutputFile:
    """One rank's file."""
    from qformats_glm.ranks.torchfile import Record, lay_out

    records: list[Record] = []
    places: list[tuple[int, str]] = []
    for index in own:
        draft, packer = assignments[index].draft, assignments[index].packer
        key = draft.name[cut:]
        for field, (shape, dtype) in packer.stored(draft.source.shape).items():
            # A quantized weight's fields have names of their own beside the module; plain numbers keep their name.
            full = key if packer.dense_dtype is not None else f"{key.removesuffix('weight')}{field}"
            records.append(Record(full, tuple(shape), dtype))
            places.append((index, field))
    archive = lay_out(Path(name).stem, records)
    placements = tuple(
        Placement(index, field, archive.offsets[record.name], record.nbytes)
        for (index, field), record in zip(places, records, strict=True)
    )
    return OutputFile(name, archive.size, archive.header, placements, archive.parts)
