"""Size of a model in a format, and the memory to run it; from names and shapes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qformats.errors import CheckpointError, ConfigError, UnsupportedModelError
from qformats.exporting.account import LeftOut, account
from qformats.exporting.programs import require_loadable, require_stacks
from qformats.exporting.recipe import Recipe
from qformats.folder.classes import embedding_class
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.values import Values
from qformats.registry import registry

__all__ = ["RANKS", "RUNTIME", "Footprint", "footprint"]

RANKS = "tensor-parallel"
"""Option of the loaders that divide a model over devices."""

_WIDTH = 2
"""Bytes of a number in the cache, in activations and in a decoded weight: runtimes compute in 16 bits."""
RUNTIME = 732_000_000
"""What CUDA, its libraries and the kernels take beside torch's memory: measured on an H200 with torch 2.11,
where the context alone takes 543 MB (2026-11-29)."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model in a format, exact, and of running it.

    Attributes
    ----------
    format, architecture : str
        The requested format, and the model's architecture.
    parameters : int
        Number of weights.
    tensors : tuple of (str, str, int)
        Name in the output, format and exact bytes of every tensor.
    nbytes : int
        Exact bytes of all tensors; a file adds its header and the tokenizer.
    ranks : tuple of int
        Bytes of the tensors on each device; one number without tensor parallelism.
    context, chunk : int or None
        Tokens that the cache holds, and tokens of a prompt that are computed at a time. These and the two below are
        ``None`` if only the tensors are known.
    cache : int or None
        Keys and values of the whole context in 16 bits, one sequence; of one device, as are the numbers below.
    decoded : int
        The largest quantized matrix in 16 bits, for runtimes that decode one before they multiply.
    activations : int or None
        Hidden states of a chunk in 16 bits (four of the model's width, two of the feed-forward network's) and the
        float32 logits of one position.
    left_out : tuple of LeftOut
        Tensors of the model that an output would not hold, by name, and why.
    unknown : str
        Why the memory to run it is not known; empty if it is.
    notes : tuple of str
        What a program would not load of it.
    """

    format: str
    architecture: str
    parameters: int
    tensors: tuple[tuple[str, str, int], ...]
    nbytes: int
    ranks: tuple[int, ...]
    context: int | None
    chunk: int | None
    cache: int | None
    decoded: int
    activations: int | None
    left_out: tuple[LeftOut, ...] = ()
    unknown: str = ""
    notes: tuple[str, ...] = ()

    @property
    def running(self) -> int | None:
        """Bytes of running it, on the device that holds most of it: without what the runtime itself needs."""
        if self.cache is None or self.activations is None:
            return None
        return max(self.ranks) + self.cache + self.decoded + self.activations

    @property
    def runtime(self) -> int:
        """Bytes that the runtime itself needs on a GPU, about."""
        return RUNTIME

    @property
    def bits_per_weight(self) -> float:
        """Mean stored bits per weight."""
        return self.nbytes * 8 / max(1, self.parameters)

    @property
    def types(self) -> dict[str, int]:
        """How many tensors have each format."""
        return dict(Counter(format for _, format, _ in self.tensors).most_common())

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        computed = {
            "running": self.running,
            "runtime": self.runtime,
            "bits_per_weight": self.bits_per_weight,
            "types": self.types,
        }
        return {**asdict(self), **computed}


def footprint(
    source: Checkpoint,
    recipe: Recipe,
    options: Mapping[str, str],
    *,
    context: int | None = None,
    chunk: int = 512,
) -> Footprint:
    """Predict an export and the memory of running its result.

    Parameters
    ----------
    source : Checkpoint
        A model, or the outline of one.
    recipe : Recipe
        What would be exported.
    options : mapping of str to str
        Options of the loader that would write it.
    context : int, optional
        Tokens that the cache holds; as many as the model was made for by default.
    chunk : int
        Tokens of a prompt that are computed at a time.

    Raises
    ------
    CheckpointError
        If the model has no tensors.
    ConfigError
        If `context` or `chunk` is not a number of tokens.
    CheckpointError
        If the configuration lacks what the cache depends on.
    """
    loader = recipe.loader(source)
    if not source.tensors:
        raise CheckpointError(source.path, "holds no tensors (a vocabulary only?)", "a model with weights")
    drafts = loader.draft(source, loader.own_options(options))
    left_out = account(source, drafts, loader)
    assignments = loader.joined(recipe.assign(drafts, loader, source), source)
    notes = require_loadable(
        recipe.program, registry().packer(recipe.format), assignments, folder=not loader.suffix
    )
    if not loader.suffix:
        require_stacks(recipe.program, assignments, source)
    tensors = tuple((a.draft.name, a.packer.name, a.packer.nbytes(a.draft.source.shape)) for a in assignments)
    held: Counter[int] = Counter()
    for assignment, (_, _, nbytes) in zip(assignments, tensors, strict=True):
        held[loader.rank(assignment.draft)] += nbytes
    ranks = tuple(held[rank] for rank in range(max(held) + 1))
    matrices = [a.draft.source.numel for a in assignments if a.packer.quantizes]
    stored = Footprint(
        format=recipe.format,
        architecture=source.architecture,
        parameters=source.parameters if len(ranks) > 1 else sum(a.draft.source.numel for a in assignments),
        tensors=tensors,
        nbytes=sum(ranks),
        ranks=ranks,
        context=None,
        chunk=None,
        cache=None,
        decoded=max(matrices, default=0) * _WIDTH,
        activations=None,
        left_out=left_out,
        notes=notes,
    )
    try:
        config = Values(source.config, str(source.path))
    except UnsupportedModelError as error:
        what = error.what.rpartition(": ")[2]
        return replace(stored, unknown=f"what its {what}, {error.found!r}, computes is not known here")
    if context is None:
        context = _number(
            config, "max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"
        )
    for name, value in (("context", context), ("chunk", chunk)):
        if value < 1:
            raise ConfigError(name, value, "1 token or more")
    hidden = _number(config, "hidden_size", "n_embd")
    inner = _number(config, "intermediate_size", "n_inner", "inner_hidden_size", default=4 * hidden)
    vocabulary = _number(config, "vocab_size", default=0)
    tokens, writes = min(chunk, context), not embedding_class(source.config)
    return replace(
        stored,
        context=context,
        chunk=tokens,
        # A model that makes embeddings keeps nothing from one text to the next, and has no logits.
        cache=writes * _cache(config, hidden) * context // len(ranks),
        activations=tokens * (4 * hidden + 2 * inner // len(ranks)) * _WIDTH + writes * 4 * vocabulary,
    )


def _cache(config: Values, hidden: int) -> int:
    """Bytes of the keys and values of one token."""
    layers = _number(config, "num_hidden_layers", "n_layer", "num_layers")
    heads = _number(config, "num_attention_heads", "n_head")
    groups = _number(config, "num_key_value_heads", default=heads)
    size = _number(config, "head_dim", default=hidden // max(1, heads))
    return layers * groups * size * 2 * _WIDTH


def _number(config: Values, *keys: str, default: int | None = None) -> int:
    """First of several keys that the configuration has; models call the same thing by different names."""
    for key in keys:
        found = config.integer(key, None, minimum=0)
        if found:
            return found
    return config.integer(keys[0], minimum=1) if default is None else default
