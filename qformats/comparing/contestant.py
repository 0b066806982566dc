"""A model of the comparison, and what is known about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from qformats.comparing.report import BehaviourResult, ModelResult, SpeedResult, TaskResult, WeightsResult
from qformats.comparing.weights import position
from qformats.errors import UnsupportedModelError
from qformats.interfaces.checkpoint import Checkpoint, ReplacedTensors

__all__ = ["Contestant", "distinguish", "in_names_of_all"]

_MAIN = 0.9
"""Share of the weights that a format must have to stand for the model."""


@dataclass
class Contestant:
    """A model of the comparison.

    Attributes
    ----------
    name : str
        What to call it.
    checkpoint : Checkpoint
        The model.
    container : str
        Loader that opened it, or that would write it.
    quantizer : str
        Of a format that is tried; empty for models in files.
    notes : list of str
        Notes about its numbers, in sentences.
    behaviour, speed, tasks
        Results so far.
    """

    name: str
    checkpoint: Checkpoint
    container: str
    quantizer: str = ""
    notes: list[str] = field(default_factory=list)
    behaviour: BehaviourResult | None = None
    speed: SpeedResult | None = None
    tasks: dict[str, TaskResult] = field(default_factory=dict)

    @property
    def formats(self) -> tuple[str, dict[str, int]]:
        """Format that stands for the model, and how many weights each format holds."""
        held: Counter[str] = Counter()
        blocks: Counter[str] = Counter()
        for name, tensor in self.checkpoint.tensors.items():
            held[tensor.stored_format] += tensor.numel
            quantized = tensor.stored_packer.quantizes
            # Embeddings and output layers have formats of their own, or none.
            if quantized and position(name)[0] is not None:
                blocks[tensor.stored_format] += tensor.numel
        counts = blocks or held
        format, count = counts.most_common(1)[0] if counts else ("mixed", 0)
        if count < _MAIN * counts.total():
            families = {name.partition(":")[0] for name in counts}
            format = f"{families.pop()}:mixed" if len(families) == 1 else "mixed"
        return format, dict(held.most_common())

    def note_differences(self, base: Checkpoint) -> None:
        """Say so where it is of another kind than the base."""
        ours, theirs = _kind(self.checkpoint), _kind(base)
        if ours != theirs:
            self.notes.append(
                f"It is a {ours} and the base a {theirs}: only weights of the same name and shape are "
                "compared."
            )

    def _read(self) -> list[str]:
        """What was decided when it was opened; of a format that is tried, the base says that."""
        return [] if self.quantizer else [f"{note}." for note in self.checkpoint.notes]

    def result(self, weights: WeightsResult | None, notes: Sequence[str]) -> ModelResult:
        """What the report says of it."""
        format, held = self.formats
        checkpoint = self.checkpoint
        return ModelResult(
            name=self.name,
            path=str(checkpoint.path),
            format=format,
            formats=held,
            container=self.container,
            tried=bool(self.quantizer),
            quantizer=self.quantizer,
            nbytes=checkpoint.nbytes,
            parameters=checkpoint.parameters,
            bits_per_weight=checkpoint.bits_per_weight,
            weights=weights,
            behaviour=self.behaviour,
            speed=self.speed,
            notes=(*self.notes, *self._read(), *notes),
            tasks=dict(self.tasks),
        )


def in_names_of_all(models: Sequence[Contestant]) -> list[Checkpoint]:
    """Checkpoints to compare weights of: under their container's names where one's architecture is not known.

    Formats that are tried have the base's names.
    """
    base = models[0].checkpoint
    unknown = {m.container for m in models if not m.quantizer and not _known(m.checkpoint)}
    if _known(base) and any(m.quantizer for m in models):
        unknown = set()
    found = []
    for model in models:
        checkpoint = model.checkpoint
        if model.container in unknown and not model.quantizer:
            own = dict(checkpoint.in_own_names)
            checkpoint = ReplacedTensors(checkpoint, {})
            checkpoint.tensors = own
        found.append(checkpoint)
    return found


def _known(model: Checkpoint) -> bool:
    try:
        _ = model.config
    except UnsupportedModelError:
        return False
    return True


def _kind(model: Checkpoint) -> str:
    """Transformers' type of a model; the container's own name for one that Transformers has no type for."""
    try:
        return str(model.config.get("model_type"))
    except UnsupportedModelError:
        return model.architecture


def distinguish(models: Sequence[Contestant]) -> None:
    """Give each a unique name: of equal ones, all but the first get their format or a number added."""
    additions = [model.formats[0] for model in models], [str(i) for i in range(len(models))]
    for added in additions:
        counts = Counter(model.name for model in models)
        seen: set[str] = set()
        for model, addition in zip(models, added, strict=True):
            if counts[model.name] > 1 and model.name in seen:
                model.name += f" ({addition})"
            else:
                seen.add(model.name)
