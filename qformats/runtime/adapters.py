"""LoRA adapters over packed weights: make a model ready for them, and merge a trained one back into a file."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.checkpoint import Checkpoint, StoredTensor
from qformats.errors import BackendUnavailableError, ConfigError, ShapeError
from qformats.registry import registry
from qformats.tensors import PackedTensor

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.exporting import ExportReport, Recipe
    from qformats.exporting.progress import Progress

__all__ = ["MergeReport", "MergedTensor", "merge_adapter", "prepare_for_training"]

_ELSEWHERE = "train with plain LoRA, or merge with PEFT into an unquantized model"


def prepare_for_training(model: Any, *, gradient_checkpointing: bool = True) -> Any:
    """Freeze a model and let gradients through it, before PEFT puts adapters on it.

    PEFT's ``prepare_model_for_kbit_training`` does this for the quantization methods that it knows; for others it
    widens every half-precision parameter to float32 and lets no gradient into the first block.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        With packed weights or plain ones. Modified: no parameter needs a gradient afterwards, and embeddings give
        outputs that do.
    gradient_checkpointing : bool
        Compute activations again in the backward pass instead of keeping them.

    Returns
    -------
    transformers.PreTrainedModel
        The same model.
    """
    model.requires_grad_(False)
    model.enable_input_require_grads()
    if gradient_checkpointing:
        model.config.use_cache = False
        # Newer versions of Transformers warn of the older name.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable = next(getattr(model, name) for name in names if hasattr(model, name))
        enable({"use_reentrant": False})
    return model


@dataclass(frozen=True)
class MergedTensor:
    """What became of one tensor that an adapter changed.

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


@dataclass(frozen=True)
class MergeReport:
    """What became of a model into which an adapter was merged.

    Attributes
    ----------
    export : ExportReport
        Everything that was written.
    tensors : tuple of MergedTensor
        The tensors that the adapter changed, measured on what was written.
    """

    export: ExportReport
    tensors: tuple[MergedTensor, ...]

    @property
    def requantized(self) -> tuple[MergedTensor, ...]:
        """Those that were rounded to the levels of a quantized format."""
        return tuple(t for t in self.tensors if registry().packer(t.format).dense_dtype is None)

    def __str__(self) -> str:
        """One sentence: how much of the adapter arrived."""
        rounded = self.requantized
        if not rounded:
            return f"{self.export.target}: merged {len(self.tensors)} tensors into plain numbers."
        formats = ", ".join(dict.fromkeys(t.format for t in rounded))
        errors, lost = [t.error for t in rounded], [t.lost for t in rounded]
        return (
            f"{self.export.target}: the {len(rounded)} tensors that the adapter changes were quantized again to "
            f"{formats}, which adds an error of {min(errors):.2%} to {max(errors):.2%} of the weights, "
            f"{min(lost):.2g} to {max(lost):.2g} times what the adapter adds; plain numbers keep all of it "
            '(format="dense:bf16").'
        )


def merge_adapter(
    model: Any,
    target: str | PathLike[str],
    *,
    format: str | None = None,
    source: str | PathLike[str] | Checkpoint | None = None,
    force: bool = False,
    workers: int | None = None,
    options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> MergeReport:
    """Write the base model with the active LoRA adapters added to its weights.

    Weights are read from the base model's files again, a slice at a time; the sum is taken in float32. Tensors without
    an adapter keep their bytes where the output has the same format.

    Parameters
    ----------
    model : peft.PeftModel
        Over a model of :func:`qformats.load_model`. Not modified.
    target : str or path
        File or folder to make.
    format : str, optional
        ``family:variant``. By default every tensor goes back into the format that it has, which quantizes the changed
        ones again; ``"dense:bf16"`` or another plain format keeps the sum.
    source : str, path or Checkpoint, optional
        The base model, where `model` does not know what it was loaded from.
    force : bool
        Replace an existing target.
    workers : int, optional
        Threads; all cores by default.
    options : mapping of str to str, optional
        Options of the loaders involved.
    progress : Progress, optional
        Is told how far the work is.

    Returns
    -------
    MergeReport
        What was written, and what rounding added; where tensors were quantized again, that is also warned of.

    Raises
    ------
    ConfigError
        If there is no adapter, or one that is not a plain sum: DoRA, trained biases, modules that were trained whole.
    ShapeError
        If an adapter does not fit the stored weight.
    """
    import qformats
    from qformats.exporting import make_plan
    from qformats.exporting.run import execute

    options = dict(options or {})
    base = _source(model, source, options)
    updates = _updates(model)
    merged = MergedCheckpoint(base, updates)
    recipe = _recipe(merged, updates, *_formats(base, updates, format), options)
    # What an interrupted merge left is gone on with only if the adapter is the same.
    identity = {**options, "adapter": _digest(updates)}
    plan = make_plan(merged, Path(target).expanduser(), recipe, identity)
    export = execute(plan, force=force, workers=workers, progress=progress)
    at = plan.target if plan.layout.folder else plan.target.parent / export.files[0][0]
    written = qformats.open(at, options=options)
    stored = {t.source_name: t.format for t in export.tensors}
    tensors = tuple(
        _measured(base.tensors[name], merged.tensors[name], written.tensors[name], stored[name], update)
        for name, update in updates.items()
    )
    report = MergeReport(export, tensors)
    if report.requantized:
        warnings.warn(str(report), UserWarning, stacklevel=2)
    return report


@dataclass(frozen=True, eq=False)
class Update:
    """What adapters add to a weight: a product of two thin matrices, or a sum of such products.

    Attributes
    ----------
    left : Tensor
        float32, ``(N, r)``; scaled, so that the product is in weight units.
    right : Tensor
        float32, ``(r, K)``.
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)`` of the weight."""
        return int(self.left.shape[0]), int(self.right.shape[1])

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``[start, stop)`` of what is added, float32."""
        return self.left[start:stop] @ self.right


class MergedCheckpoint(Checkpoint):
    """A checkpoint with updates added to some of its weights, which become plain float32.

    Parameters
    ----------
    base : Checkpoint
        The model.
    updates : mapping of str to Update
        By canonical name.
    """

    def __init__(self, base: Checkpoint, updates: Mapping[str, Update]) -> None:
        self._base = base
        self.path, self.name, self.container = base.path, base.name, base.container
        self.fingerprint = base.fingerprint
        self.tensors = {
            name: _added(tensor, updates[name]) if name in updates else tensor
            for name, tensor in base.tensors.items()
        }

    @property
    def architecture(self) -> str:
        """The base model's."""
        return self._base.architecture

    @property
    def config(self) -> dict[str, Any]:
        """The base model's."""
        return self._base.config

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The base model's."""
        return self._base.metadata

    @property
    def files(self) -> list[Path]:
        """The base model's."""
        return self._base.files

    def tokenizer_files(self) -> dict[str, bytes]:
        """The base model's."""
        return self._base.tokenizer_files()


def _added(tensor: StoredTensor, update: Update) -> StoredTensor:
    """The sum of a stored weight and an update, as a stored tensor of plain numbers."""
    packer = registry().packer(tensor.format)

    def load(start: int, stop: int) -> PackedTensor:
        part = packer.dequantize(tensor.load(start, stop)).float() + update.rows(start, stop)
        return PackedTensor("dense:f32", tuple(part.shape), {"weight": part})

    return replace(tensor, format="dense:f32", nbytes=4 * tensor.numel, load=load, origin="")


def _source(
    model: Any, source: str | PathLike[str] | Checkpoint | None, options: Mapping[str, str]
) -> Checkpoint:
    """Open what the base model was loaded from."""
    import qformats

    if source is None:
        get_base = getattr(model, "get_base_model", None)
        source = getattr(get_base() if get_base else model, "qformats_source", None)
    if source is None:
        expected = "the path of the base model, since the model does not know what it was loaded from"
        raise ConfigError("source", None, expected)
    return source if isinstance(source, Checkpoint) else qformats.open(source, options=options)


def _updates(model: Any) -> dict[str, Update]:
    """What the active adapters of a model add to its weights, by canonical name.

    Raises
    ------
    ConfigError
        If there are none, or some are no plain sum.
    """
    try:
        from peft import PeftModel
    except ImportError as error:
        raise BackendUnavailableError(
            "peft", "is not installed", "install it (pip install 'qformats[peft]')"
        ) from error
    if not isinstance(model, PeftModel):
        found = type(model).__name__
        raise ConfigError("model to merge", found, "a PeftModel, as peft.get_peft_model gives it")
    for name in model.active_adapters:
        bias = getattr(model.peft_config[name], "bias", "none")
        if bias != "none":
            raise ConfigError(
                f"bias of the adapter {name!r}", bias, "'none': biases are not merged", _ELSEWHERE
            )
    base: Any = model.get_base_model()
    updates = dict(_layers(base))
    if not updates:
        raise ConfigError("active adapters", model.active_adapters, "at least one that changes a weight")
    return updates


def _layers(model: Any) -> Iterator[tuple[str, Update]]:
    """Adapted layers below a model, by the names of their weights."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            found = f"{type(module).__name__}, trained whole"
            raise ConfigError(f"adapter of {name}", found, "LoRA: whole modules are not merged", _ELSEWHERE)
        if isinstance(module, BaseTunerLayer) and module.active_adapters:
            parts = [_product(name, module, adapter) for adapter in module.active_adapters]
            known = [part for part in parts if part is not None]
            if known:
                yield f"{name}.weight", _sum(known)


def _product(name: str, layer: Any, adapter: str) -> Update | None:
    """What one adapter adds to one layer; None if it does not reach it."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    plain = isinstance(layer, LoraLayer) and not isinstance(layer, ParamWrapper)
    if not plain:
        raise ConfigError(f"adapter of {name}", type(layer).__name__, "LoRA on a linear layer", _ELSEWHERE)
    variant = layer.lora_variant.get(adapter)
    if variant is not None:
        found = type(variant).__name__
        raise ConfigError(f"adapter of {name}", found, "plain LoRA, which adds a product", _ELSEWHERE)
    if layer.lora_bias.get(adapter):
        raise ConfigError(f"adapter of {name}", "a bias of its own", "LoRA without lora_bias", _ELSEWHERE)
    if adapter in layer.lora_A:
        left, right = layer.lora_B[adapter].weight, layer.lora_A[adapter].weight
    elif adapter in layer.lora_embedding_A:
        left, right = layer.lora_embedding_A[adapter].t(), layer.lora_embedding_B[adapter].t()
    else:
        return None
    left, right = (part.detach().to("cpu").float().contiguous() for part in (left, right))
    return Update(left * float(layer.scaling[adapter]), right)


def _sum(parts: list[Update]) -> Update:
    import torch

    if len(parts) == 1:
        return parts[0]
    return Update(torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts], 0))


def _formats(
    base: Checkpoint, updates: Mapping[str, Update], format: str | None
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Format of the output, and rules for tensors that take another one; checks that every update has its tensor."""
    for name, update in updates.items():
        tensor = base.tensors.get(name)
        if tensor is None:
            tied = name == "lm_head.weight"
            expected = "an untied output layer" if tied else "adapters on layers that are stored as they run"
            raise ConfigError(f"{base.path}: adapter", f"one on {name}, which is not stored", expected)
        if tuple(tensor.shape) != update.shape:
            raise ShapeError(name, tuple(tensor.shape), f"{update.shape}, as the adapter was made for")
        if name.endswith("embed_tokens.weight") and "lm_head.weight" not in base.tensors:
            found = f"one on {name}, which the output layer shares"
            expected = "none there: merging would change the output layer too"
            raise ConfigError(f"{base.path}: adapter", found, expected)
    stored = {name: registry().packer(tensor.stored_format) for name, tensor in base.tensors.items()}
    if format is not None:
        default = registry().packer(format)
        if default.dense_dtype is not None:
            return default.name, ()
        # A recipe leaves plain numbers of a quantized model alone; these were quantized before they were added to.
        return default.name, tuple((_only(name), default.name) for name in updates)
    sizes: Counter[str] = Counter()
    for name, tensor in base.tensors.items():
        if stored[name].writable and len(tensor.shape) == 2:
            sizes[stored[name].name] += tensor.numel * (1 if stored[name].dense_dtype else 1 << 20)
    if not sizes:
        raise ConfigError("format", None, "a format, since none that the model has can be written")
    chosen = sizes.most_common(1)[0][0]
    rules = [
        (_only(name), packer.name if packer.writable else chosen)
        for name, packer in stored.items()
        if packer.dense_dtype is None and (name in updates or (packer.writable and packer.name != chosen))
    ]
    return chosen, tuple(rules)


def _recipe(
    merged: Checkpoint,
    updates: Mapping[str, Update],
    default: str,
    rules: tuple[tuple[str, str], ...],
    options: Mapping[str, str],
) -> Recipe:
    """Write into the model's own container, or the format's usual one where that would join changed tensors.

    Raises
    ------
    ConfigError
        If both would: nothing tells the format of a tensor made of a changed one and others.
    """
    from qformats.exporting import Recipe

    packer = registry().packer(default)
    own = [merged.container] if registry().loader(merged.container).holds(packer) else []
    for container in dict.fromkeys((*own, packer.container)):
        loader = registry().loader(container)
        known = {option.name for option in loader.options}
        drafts = loader.draft(merged, {name: value for name, value in options.items() if name in known})
        joined = updates.keys() - {draft.source.name for draft in drafts}
        if not joined:
            return Recipe(default, tensor_types=rules, container=container)
    found = f"one on {min(joined)}, which the container {container} joins with other tensors"
    hint = 'merge into plain numbers (format="dense:bf16"), and export those'
    raise ConfigError(f"{merged.path}: adapter", found, "a container that keeps it apart", hint)


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
    error = float((registry().packer(written.format).dequantize(written.read()) - values).norm())
    added = float(update.rows(0, update.shape[0]).norm())
    old = float(registry().packer(before.format).dequantize(before.read()).norm())

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else 0.0

    return MergedTensor(
        before.name,
        before.stored_format,
        format,
        change=ratio(added, old),
        error=ratio(error, float(values.norm())),
        lost=ratio(error, added),
    )
