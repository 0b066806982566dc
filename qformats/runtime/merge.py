"""A trained adapter merged back into a file."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.errors import ConfigError, Described, ShapeError
from qformats.exporting import Recipe, make_plan
from qformats.exporting.run import execute
from qformats.folder.adapter import base_name, require_adapter
from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors
from qformats.interfaces.dense import dense
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.error import percent, relative_error
from qformats.registry import registry
from qformats.runtime.adapter_folder import open_adapter
from qformats.runtime.adapters import Update, updates_of
from qformats.sources import open_model
from qformats.work.arguments import mapping
from qformats.work.shown import Shown, nbytes

if TYPE_CHECKING:
    from qformats.exporting import ExportReport
    from qformats.work.progress import Progress

__all__ = ["MergeReport", "MergedTensor", "merge_adapter"]


@dataclass(frozen=True)
class MergedTensor:
    """Result for one tensor that an adapter changed.

    Attributes
    ----------
    name : str
        Canonical name.
    source_format, format : str
        ``family:variant`` before and after.
    change : float
        Root mean square of what the adapter adds, relative to that of the weight before.
    error : float
        Root mean square of what storing the sum changed, relative to that of the sum.
    lost : float
        The same, relative to what the adapter adds: above 1, rounding moved the weight further than training did.
    """

    name: str
    source_format: str
    format: str
    change: float
    error: float
    lost: float


@dataclass(frozen=True, repr=False)
class MergeReport(Shown):
    """Result of merging an adapter into a model.

    Attributes
    ----------
    export : ExportReport
        Everything that was written.
    tensors : tuple of MergedTensor
        The tensors that the adapter changed, measured on what was written.
    ran : tuple of str
        Formats that adapted weights had while they ran, if different from the source's: then the adapter was
        added to weights other than those it ran with.
    """

    export: ExportReport
    tensors: tuple[MergedTensor, ...]
    ran: tuple[str, ...] = ()

    @property
    def adds_nothing(self) -> bool:
        """Whether the adapter changes no weight, as if it had not been trained."""
        return not any(tensor.change for tensor in self.tensors)

    @property
    def warned(self) -> bool:
        """Whether merging warned of what happened: weights were rounded again, or nothing was added."""
        return bool(self.requantized) or self.adds_nothing

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "export": self.export.to_dict(), "adds_nothing": self.adds_nothing}

    @property
    def requantized(self) -> tuple[MergedTensor, ...]:
        """Those that were rounded to the levels of a quantized format."""
        return tuple(tensor for tensor in self.tensors if registry().packer(tensor.format).quantizes)

    def _shown_facts(self) -> dict[str, str]:
        return {
            "target": self.export.target,
            "format": ", ".join(dict.fromkeys(tensor.format for tensor in self.tensors)),
            "changed": f"{_tensors(len(self.tensors))} with an adapter",
            "bytes": nbytes(self.export.file_nbytes),
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("tensor", "format", "change", "error")]
        return rows + [(t.name, t.format, percent(t.change), percent(t.error)) for t in self.tensors]

    def __str__(self) -> str:
        """How much of the adapter arrived."""
        return f"{self.export.target}: {self._arrived()}{self._other_base()}"

    def _arrived(self) -> str:
        rounded = self.requantized
        which = "the adapter changes"
        nothing = ""
        if self.adds_nothing:
            nothing = "the adapter adds nothing, as if it had not been trained; "
            which = "it lies on"
        if not rounded:
            return f"{nothing}merged {_tensors(len(self.tensors))} into plain numbers."
        formats = ", ".join(dict.fromkeys(t.format for t in rounded))
        errors, lost = (
            _span([t.error for t in rounded], percent),
            _span([t.lost for t in rounded], "{:.2g}".format),
        )
        were = "was" if len(rounded) == 1 else "were"
        told = (
            f"{nothing}the {_tensors(len(rounded))} that {which} {were} quantized again to {formats}, "
            f"which adds an error of {errors} of the weights"
        )
        if self.adds_nothing:
            return f"{told}."
        return (
            f'{told}, {lost} times what the adapter adds; plain numbers keep all of it (format="dense:bf16").'
        )

    def _other_base(self) -> str:
        if not self.ran:
            return ""
        return (
            f" The adapter ran over {', '.join(self.ran)}, and was added to the weights of {self.export.source}, "
            "which are not rounded to that format."
        )


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


def _span(values: list[float], spelled: Callable[[float], str]) -> str:
    low, high = spelled(min(values)), spelled(max(values))
    return low if low == high else f"{low} to {high}"


def merge_adapter(
    model: Any,
    target: str | PathLike[str],
    *,
    format: str | None = None,
    source: str | PathLike[str] | Checkpoint | None = None,
    force: bool = False,
    verify: bool = False,
    workers: int | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Write the base model with the active LoRA adapters added; see :func:`qformats.merge_adapter`."""
    options = mapping("options", options)
    if isinstance(model, str | PathLike):
        folder = Path(model).expanduser()
        base = _base(folder, source, options)
        model = open_adapter(folder, base)
    else:
        base = _source(model, source, options)
    updates = updates_of(model)
    merged = ReplacedTensors(
        base,
        {name: _added(tensor, updates[name]) for name, tensor in base.tensors.items() if name in updates},
    )
    recipe = _recipe(merged, updates, *_formats(base, updates, format), options)
    # An interrupted merge is resumed only if the adapter is the same.
    identity = {"adapter": _digest(updates)}
    plan = make_plan(merged, Path(target).expanduser(), recipe, options, extra_identity=identity)
    export = execute(plan, force=force, workers=workers, verify=verify, progress=progress)
    at = plan.target if plan.layout.folder else plan.target.parent / export.files[0][0]
    written = open_model(at, options)
    stored = {t.source_name: t.format for t in export.tensors}
    tensors = tuple(
        _measured(base.tensors[name], merged.tensors[name], written.tensors[name], stored[name], update)
        for name, update in updates.items()
    )
    report = MergeReport(export, tensors, _ran(model, base, updates))
    if report.warned:
        warnings.warn(str(report), UserWarning, stacklevel=2)
    return report


def _added(tensor: StoredTensor, update: Update) -> StoredTensor:
    """The sum of a stored weight and an update, as a stored tensor of plain numbers."""
    plain = dense("f32")

    def load(start: int, stop: int) -> PackedTensor:
        part = tensor.read(start, stop).dequantize().float() + update.rows(start, stop)
        return PackedTensor(plain, tuple(part.shape), {"weight": part})

    return replace(tensor, packer=plain, nbytes=4 * tensor.numel, load=load, origin=None)


def _base(
    adapter: Path, source: str | PathLike[str] | Checkpoint | None, options: Mapping[str, str]
) -> Checkpoint:
    """Open the model that an adapter on disk is merged into."""
    if source is None:
        name = base_name(require_adapter(adapter))
        hint = f"{adapter} says that it was trained on {name}" if name else None
        raise ConfigError("source", None, "the base model, since an adapter does not hold it", hint)
    return source if isinstance(source, Checkpoint) else open_model(source, options)


def _source(
    model: Any, source: str | PathLike[str] | Checkpoint | None, options: Mapping[str, str]
) -> Checkpoint:
    """Open what the base model was loaded from."""
    if source is None:
        get_base = getattr(model, "get_base_model", None)
        source = getattr(get_base() if get_base else model, "qformats_source", None)
    if source is None:
        expected = "the path of the base model, since the model does not know where it was loaded from"
        raise ConfigError("source", None, expected)
    return source if isinstance(source, Checkpoint) else open_model(source, options)


def _ran(model: Any, base: Checkpoint, updates: Mapping[str, Update]) -> tuple[str, ...]:
    """Formats of packed layers under adapters that are not those of the stored weights."""
    from qformats.runtime.linear import PackedLayer

    found = []
    for name in updates:
        layer = model.get_base_model().get_submodule(name.removesuffix(".weight")).get_base_layer()
        stored = base.tensors[name].format
        if isinstance(layer, PackedLayer) and layer.packer.name != stored:
            found.append(layer.packer.name)
    return tuple(dict.fromkeys(found))


def _formats(
    base: Checkpoint, updates: Mapping[str, Update], format: str | None
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Format of the output, and rules for tensors that take another one; checks that every update has its tensor."""
    for name, update in updates.items():
        tensor = base.tensors.get(name)
        if tensor is None:
            tied = name == "lm_head.weight"
            expected = "an untied output layer" if tied else "adapters on layers that are stored separately"
            found = Described(f"one on {name}, which is not stored")
            raise ConfigError(f"{base.path}: adapter", found, expected)
        if tuple(tensor.shape) != update.shape:
            raise ShapeError(name, tuple(tensor.shape), f"{update.shape}, as in the adapter")
        if name.endswith("embed_tokens.weight") and "lm_head.weight" not in base.tensors:
            found = Described(f"one on {name}, which the output layer shares")
            expected = "none there, since merging would change the output layer too"
            raise ConfigError(f"{base.path}: adapter", found, expected)
    stored = {name: tensor.stored_packer for name, tensor in base.tensors.items()}
    if format is not None:
        default = registry().meant(format)
        if default.dense_dtype is not None:
            return default.name, ()
        # A recipe leaves plain numbers of a quantized model alone; these were quantized before they were added to.
        return default.name, tuple((_only(name), default.name) for name in updates)
    sizes: Counter[str] = Counter()
    for name, tensor in base.tensors.items():
        if stored[name].writable and len(tensor.shape) == 2:
            sizes[stored[name].name] += tensor.numel * (1 if stored[name].dense_dtype else 1 << 20)
    if not sizes:
        raise ConfigError("format", None, "a format, since none of the model's own can be written")
    chosen = sizes.most_common(1)[0][0]
    rules = [
        (_only(name), packer.name if packer.writable else chosen)
        for name, packer in stored.items()
        if packer.quantizes and (name in updates or (packer.writable and packer.name != chosen))
    ]
    return chosen, tuple(rules)


def _recipe(
    merged: Checkpoint,
    updates: Mapping[str, Update],
    default: str,
    rules: tuple[tuple[str, str], ...],
    options: Mapping[str, str],
) -> Recipe:
    """Write into the model's own container, or the format's usual one if that would join changed tensors.

    Raises
    ------
    ConfigError
        If both would: nothing tells the format of a tensor made of a changed one and others.
    """
    packer = registry().packer(default)
    own = [merged.container] if registry().loader(merged.container).accepts(packer) else []
    for container in dict.fromkeys((*own, packer.container)):
        loader = registry().loader(container)
        drafts = loader.draft(merged, loader.own_options(options))
        joined = updates.keys() - {draft.source.name for draft in drafts}
        if not joined:
            return Recipe(default, "rtn", tensor_types=rules, container=container)
    found = Described(f"one on {min(joined)}, which the container {container} joins with other tensors")
    hint = 'merge into plain numbers (format="dense:bf16"), then export those'
    raise ConfigError(f"{merged.path}: adapter", found, "a container that keeps it separate", hint)


def _only(name: str) -> str:
    return f"^{re.escape(name)}$"


def _digest(updates: Mapping[str, Update]) -> str:
    """Fingerprint of everything that is added."""
    import xxhash

    digest = xxhash.xxh3_128()
    for name, update in updates.items():
        digest.update(name.encode())
        for part in (update.left, update.right):
            digest.update(repr(tuple(part.shape)).encode() + part.numpy().tobytes())
    return digest.hexdigest()


def _measured(
    before: StoredTensor, sum_: StoredTensor, written: StoredTensor, format: str, update: Update
) -> MergedTensor:
    """Compare a tensor as it was written with the sum that it stands for."""
    values = sum_.read().fields["weight"]
    error = float((written.dequantize() - values).norm())
    added = float(update.rows(0, update.shape[0]).norm())
    old = float(before.dequantize().norm())

    return MergedTensor(
        before.name,
        before.stored_format,
        format,
        change=relative_error(added**2, old**2),
        error=relative_error(error**2, float(values.norm()) ** 2),
        lost=error / added if added else 0.0,
    )
