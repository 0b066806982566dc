"""Distances between the weights of models, streamed by slices of rows, several at a time in bounded memory."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import xxhash

from qformats.comparing.report import IdenticalTensors, TensorError, WeightError, WeightsResult
from qformats.comparing.sums import Sums, compare, total
from qformats.errors import NonFiniteError, WeightsError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor
from qformats.kernels.dense import require_finite
from qformats.work.memory import return_freed
from qformats.work.pool import bounded
from qformats.work.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WeightsOutcome", "compare_weights", "position"]

_TASK = 1 << 21
"""Weights that a thread takes at a time: enough to hide the cost of handing them over."""
_SLICE = 1 << 19
"""Weights that are decoded and compared at a time: they stay in the caches."""
_IN_FLIGHT = 1 << 23
"""Weights in progress at once; a tensor that cannot be sliced may have more and is then alone."""
_FREED = 1 << 26
"""Weights after which freed memory is returned: a C library that keeps it keeps more for larger models."""


@dataclass(frozen=True)
class WeightsOutcome:
    """What is known of all models' weights.

    Attributes
    ----------
    results : tuple of WeightsResult or None
        One per model, without the base; ``None`` for one that shares no tensor with it.
    identical : tuple of IdenticalTensors
        For every two models that share a tensor.
    notes : tuple of tuple of str
        One per model, without the base: tensors that could not be compared, in sentences.
    """

    results: tuple[WeightsResult | None, ...]
    identical: tuple[IdenticalTensors, ...]
    notes: tuple[tuple[str, ...], ...]


@dataclass
class _Tally:
    """Results from slices of one tensor of one model."""

    bytes_digest: list[bytes] = field(default_factory=list)
    values_digest: list[bytes] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)


_Found = dict[int, tuple[bytes, bytes, Sums | None] | WeightsError]
"""Of each model that has some rows: digests of bytes and of values, and sums against the base; or what is wrong."""


@dataclass(frozen=True)
class _Piece:
    """Rows ``[start, stop)`` of one tensor, in the models that have it, read `step` at a time; `weights` in each."""

    name: str
    start: int
    stop: int
    step: int
    weights: int
    nbytes: int


def position(name: str) -> tuple[int | None, str]:
    """Number of the block that a tensor belongs to, and what it is within it.

    >>> position("model.layers.3.self_attn.q_proj.weight")
    (3, 'self_attn.q_proj')
    >>> position("model.layers.0.mlp.experts.7.down_proj.weight")
    (0, 'mlp.experts.down_proj')
    >>> position("model.embed_tokens.weight")
    (None, 'embed_tokens')
    """
    parts = name.removesuffix(".weight").split(".")
    block = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if block is None:
        return None, ".".join(parts[-2:] if parts[-1] == "bias" else parts[-1:])
    return int(parts[block]), ".".join(part for part in parts[block + 1 :] if not part.isdigit())


def compare_weights(
    models: Sequence[tuple[str, Checkpoint]], threads: int, progress: Progress
) -> WeightsOutcome:
    """Compare the weights of models with those of the first one.

    Parameters
    ----------
    models : sequence of (str, Checkpoint)
        Names for the report, and models; the base first.
    threads : int
        Slices that are worked on at a time.
    progress : Progress
        Receives the number of stored bytes read so far.

    Raises
    ------
    WeightsError
        If a weight of the base is NaN or infinite, naming its tensor. Another model's tensor that holds one is left
        out, with a note.
    """
    names = [name for name, _ in models]
    checkpoints = [model for _, model in models]
    shared, notes = _shared(checkpoints)
    tallies = {(i, name): _Tally() for name, users in shared.items() for i in users}
    pieces = list(_pieces(checkpoints, shared))
    progress.start("comparing weights", sum(piece.nbytes for piece in pieces))
    # Values need a digest only if two models other than the base may share them.
    digest_values = len(models) > 2

    def work(piece: _Piece) -> _Found:
        return _compared(checkpoints, shared[piece.name], piece, digest_values)

    done = 0
    wrong: dict[tuple[int, str], WeightsError] = {}
    with bounded(
        work, pieces, threads, weight=lambda piece: piece.weights, limit=_IN_FLIGHT, ahead=4, ordered=True
    ) as compared:
        for piece, found in compared:
            for i, told in found.items():
                if isinstance(told, WeightsError):
                    wrong.setdefault((i, piece.name), told)
                    continue
                raw, values, sums = told
                tally = tallies[i, piece.name]
                tally.bytes_digest.append(raw)
                tally.values_digest.append(values)
                if sums is not None:
                    tally.sums.append(sums)
            progress.advance(piece.nbytes)
            done += piece.weights
            if done >= _FREED:
                done = 0
                return_freed()
    for i, name in wrong:
        shared[name].remove(i)
    notes = tuple(
        (*_left_out([error for (k, _), error in wrong.items() if k == i]), *said)
        for i, said in enumerate(notes, 1)
    )
    sums_of = {key: total(tally.sums) for key, tally in tallies.items()}
    broken = {i for i, _ in wrong}
    results = tuple(
        _result(i, checkpoints[i], checkpoints[0], shared, tallies, sums_of, broken=i in broken)
        for i in range(1, len(checkpoints))
    )
    return WeightsOutcome(results, _identical(names, checkpoints, shared, tallies, sums_of), notes)


def _shared(models: Sequence[Checkpoint]) -> tuple[dict[str, list[int]], tuple[tuple[str, ...], ...]]:
    """Models that hold each tensor of the base as it does, and why others do not."""
    base, *others = models
    shared = {name: [0] for name, tensor in base.tensors.items() if _readable(tensor)}
    notes = []
    for i, model in enumerate(others, 1):
        differ, hidden = [], []
        for name, tensor in model.tensors.items():
            if name not in base.tensors:
                continue
            if tensor.shape != base.tensors[name].shape:
                differ.append(f"{name} {_shape(tensor)} against {_shape(base.tensors[name])}")
            elif not _readable(tensor) or name not in shared:
                hidden.append(name)
            else:
                shared[name].append(i)
        missing = [name for name in base.tensors if name not in model.tensors]
        extra = [name for name in model.tensors if name not in base.tensors]
        said: tuple[str, ...] = (
            _listed(differ, "has a different shape from the base's", "have different shapes from the base's"),
            _listed(
                hidden,
                "is in a format that cannot be decoded",
                "are in a format that cannot be decoded",
            ),
            _listed(missing, "is only in the base", "are only in the base"),
            _listed(extra, "is only in this model", "are only in this model"),
        )
        if not any(i in users for users in shared.values()):
            said = ("No tensor has the name and shape of one in the base, so weights are not compared.",)
        notes.append(tuple(sentence for sentence in said if sentence))
    return shared, tuple(notes)


def _readable(tensor: StoredTensor) -> bool:
    return tensor.packer.readable and tensor.numel > 0


def _shape(tensor: StoredTensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _listed(names: Sequence[str], one: str, several: str) -> str:
    if not names:
        return ""
    if len(names) == 1:
        return f"Not compared: {names[0]} {one}."
    return f"Not compared: {len(names)} tensors ({names[0]}, ...) {several}."


def _left_out(errors: Sequence[WeightsError]) -> tuple[str, ...]:
    if not errors:
        return ()
    more = f" The same applies to {len(errors) - 1} more of its tensors." if len(errors) > 1 else ""
    return (f"Not compared: {errors[0]}{more}",)


def _pieces(models: Sequence[Checkpoint], shared: Mapping[str, list[int]]) -> Iterator[_Piece]:
    """Slices in the order of the base on disk."""
    base = models[0]
    order = sorted(shared, key=lambda name: (str(base.tensors[name].file), base.tensors[name].offset))
    for name in order:
        if len(shared[name]) == 1:
            continue
        tensors = [models[i].tensors[name] for i in shared[name]]
        rows = tensors[0].rows
        width = tensors[0].numel // rows
        step = math.lcm(*(tensor.step for tensor in tensors))
        step = max(step, _SLICE // width // step * step) if step else rows
        task = max(step, _TASK // width // step * step)
        nbytes = sum(tensor.nbytes for tensor in tensors)
        for start in range(0, rows, task):
            stop = min(rows, start + task)
            yield _Piece(name, start, stop, step, (stop - start) * width, nbytes * (stop - start) // rows)


def _compared(
    models: Sequence[Checkpoint], users: Sequence[int], piece: _Piece, digest_values: bool
) -> _Found:
    """Compare the models that have these rows."""
    tensors = [models[i].tensors[piece.name] for i in users]
    encodings = Counter(map(_encoding, tensors))
    raw = [xxhash.xxh3_128() for _ in users]
    meant = [xxhash.xxh3_128() for _ in users]
    sums = [Sums() for _ in users]
    wrong: dict[int, WeightsError] = {}
    for start in range(piece.start, piece.stop, piece.step):
        stop = min(piece.stop, start + piece.step)
        base: Tensor | None = None
        for k, tensor in enumerate(tensors):
            part = tensor.read(start, stop)
            # Bytes need a digest only if another model may have the same ones.
            if encodings[_encoding(tensor)] > 1:
                _digest(raw[k], part)
            values = _values(part)
            if base is None:
                base = values
                continue
            found = compare(base, values)
            if not math.isfinite(found.max_error):
                _require_finite(tensors[0], piece.name, base, start)
                wrong.setdefault(users[k], _what_is_wrong(tensor, piece.name, values, start))
            sums[k] = total((sums[k], found))
            if digest_values:
                _digest_values(meant[k], values)
    return {
        i: wrong.get(i) or (raw[k].digest(), meant[k].digest(), sums[k] if k else None)
        for k, i in enumerate(users)
    }


def _require_finite(tensor: StoredTensor, name: str, values: Tensor, start: int) -> None:
    """Raise an error that names the file and the tensor if these rows of it are not finite."""
    try:
        require_finite(values)
    except NonFiniteError as error:
        where = f" (in rows from {start})" if start else ""
        raise WeightsError(str(tensor.file), name, error.found + where, error.hint) from error


def _what_is_wrong(tensor: StoredTensor, name: str, values: Tensor, start: int) -> WeightsError:
    """Why a distance from finite values is not finite."""
    try:
        _require_finite(tensor, name, values, start)
    except WeightsError as error:
        return error
    return WeightsError(str(tensor.file), name, "differs from the base by more than float32 can hold")


def _values(part: PackedTensor) -> Tensor:
    """Values of a slice: plain numbers as they are, others as float32."""
    return part.dequantize() if part.packer.quantizes else next(iter(part.fields.values()))


def _digest(digest: Any, part: PackedTensor) -> None:
    import torch

    for name, value in sorted(part.fields.items()):
        # What the one field of plain numbers is called depends on the container.
        digest.update(name.encode() if len(part.fields) > 1 else b"")
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _digest_values(digest: Any, values: Tensor) -> None:
    """Add numbers to a digest so that all formats of the same numbers give the same one: -0 equals +0."""
    digest.update((values.float() + 0.0).contiguous().numpy().data)


def _result(
    index: int,
    model: Checkpoint,
    base: Checkpoint,
    shared: Mapping[str, list[int]],
    tallies: Mapping[tuple[int, str], _Tally],
    sums_of: Mapping[tuple[int, str], Sums],
    *,
    broken: bool,
) -> WeightsResult | None:
    names = [name for name in base.tensors if index in shared.get(name, ())]
    if not names:
        return None
    rows = []
    for name in names:
        stored = model.tensors[name]
        layer, kind = position(name)
        rows.append(
            TensorError(
                name=name,
                layer=layer,
                kind=kind,
                shape=stored.shape,
                format=stored.stored_format,
                nbytes=stored.nbytes,
                bits_per_weight=stored.nbytes * 8 / stored.numel,
                quantized=stored.stored_packer.quantizes,
                error=sums_of[index, name].result(),
                identical=_same_bytes(0, index, name, (base, model), tallies),
            )
        )
    linears = [row for row in rows if row.quantized and row.layer is not None]
    everything = total(sums_of[index, name] for name in names).result()
    of_blocks = total(sums_of[index, row.name] for row in linears).result()
    if broken:
        # Without the tensors that are not finite, the rest may look as good as new.
        everything, of_blocks = _unknown(everything), _unknown(of_blocks)
    return WeightsResult(
        total=everything,
        linears=of_blocks,
        linear_nbytes=sum(row.nbytes for row in linears),
        linear_parameters=sum(math.prod(row.shape) for row in linears),
        by_tensor=tuple(rows),
    )


def _unknown(error: WeightError) -> WeightError:
    return replace(error, max_error=math.nan, rmse=math.nan, cosine=math.nan)


def _same_bytes(
    first: int,
    second: int,
    name: str,
    models: tuple[Checkpoint, Checkpoint],
    tallies: Mapping[tuple[int, str], _Tally],
) -> bool:
    one, other = (model.tensors[name] for model in models)
    same = tallies[first, name].bytes_digest == tallies[second, name].bytes_digest
    return _encoding(one) == _encoding(other) and same


def _encoding(tensor: StoredTensor) -> str:
    """Name of a format; plain numbers of one dtype are the same whatever container calls them."""
    return tensor.packer.dense_dtype or tensor.format


def _identical(
    names: Sequence[str],
    models: Sequence[Checkpoint],
    shared: Mapping[str, list[int]],
    tallies: Mapping[tuple[int, str], _Tally],
    sums_of: Mapping[tuple[int, str], Sums],
) -> tuple[IdenticalTensors, ...]:
    found = []
    for i, j in itertools.combinations(range(len(models)), 2):
        common = [name for name in models[0].tensors if {i, j} <= set(shared.get(name, ()))]
        if not common:
            continue
        pair = (models[i], models[j])
        same_bytes = [name for name in common if _same_bytes(i, j, name, pair, tallies)]
        same_values = []
        for name in common:
            if i == 0:
                equal = sums_of[j, name].max_error == 0 and sums_of[j, name].error == 0
            else:
                equal = tallies[i, name].values_digest == tallies[j, name].values_digest
            if equal and name not in same_bytes:
                same_values.append(name)
        found.append(IdenticalTensors(names[i], names[j], len(common), tuple(same_bytes), tuple(same_values)))
    return tuple(found)
