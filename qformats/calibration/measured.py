"""The measured mix: the bytes of a container's own choice of formats, spent where a calibration says they count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from qformats.calibration.sensitivity import measure_sensitivity
from qformats.calibration.settings import OPTIONS, Settings
from qformats.errors import ConfigError, Described, spelled
from qformats.exporting.allocate import Choice, allocate
from qformats.exporting.plan import make_plan
from qformats.exporting.recipe import Measured, Recipe
from qformats.exporting.recorded import require_unchanged
from qformats.registry import registry

if TYPE_CHECKING:
    from pathlib import Path

    from qformats.exporting.plan import Plan, TensorPlan
    from qformats.interfaces.checkpoint import Checkpoint
    from qformats.interfaces.packer import Packer
    from qformats.work.progress import Progress

__all__ = ["with_measured_mix", "with_mix"]

_SAMPLES, _LENGTH = "16", 256
"""Pieces of text and tokens of each, unless the user says how many: on the demo model 8 to 128 pieces, and
other ones, give files whose divergence differs by 1 %."""
_CALIBRATED = 0.5
"""What calibration leaves of the divergence that rounding causes: about half on the demo model (docs/calibration.md).
The token embedding gains little by it, so that bytes there are worth more."""


def with_mix(
    mix: str,
    source: Checkpoint,
    target: Path,
    recipe: Recipe,
    options: Mapping[str, str],
    progress: Progress | None,
    *,
    verify: bool = False,
) -> Recipe:
    """Apply what the user says of mixes: ``"named"`` changes nothing; see :func:`with_measured_mix`.

    What is measured is the model as it was written: one that has changed since is refused, and with `verify` every byte
    of it is compared.

    Raises
    ------
    ConfigError
        If it is neither ``"named"`` nor ``"measured"``.
    """
    from qformats.work.progress import Silent

    if mix not in ("named", "measured"):
        raise ConfigError("mix", mix, "named or measured")
    if mix == "named":
        return recipe
    progress = progress or Silent()
    require_unchanged(source, verify=verify, progress=progress)
    return with_measured_mix(source, target, recipe, options, progress)


def with_measured_mix(
    source: Checkpoint, target: Path, recipe: Recipe, options: Mapping[str, str], progress: Progress
) -> Recipe:
    """Measure what each tensor's formats cost, and choose: a recipe with that choice in place of the container's own.

    The sum of bytes is at most that of the container's choice. Tensors under a rule, those that are never quantized,
    and those that cannot be measured keep the format that they have there.

    Parameters
    ----------
    source : Checkpoint
        The model.
    target : Path
        File or folder to write.
    recipe : Recipe
        What the user requested. Options of calibrations that its quantizer does not have are taken out.
    options : mapping of str to str
        Of the loaders.
    progress : Progress
        Receives progress reports.

    Raises
    ------
    ConfigError
        If the container does not choose formats, nothing is left to choose, or an option is not possible.
    UnsupportedModelError
        If Transformers cannot run the model block by block.

    Examples
    --------
    >>> import qformats
    >>> from pathlib import Path
    >>> from qformats.calibration.measured import with_measured_mix
    >>> from qformats.exporting import Recipe
    >>> from qformats.work.progress import Silent
    >>> small = (("samples", "2"), ("sequence-length", "32"))
    >>> recipe = Recipe("gguf:q4_0", quantizer_options=small)
    >>> found = with_measured_mix(qformats.open("demo"), Path("demo.gguf"), recipe, {}, Silent())
    >>> len(found.measured.formats), found.quantizer_options
    (30, ())
    """
    given = dict(recipe.quantizer_options)
    own = {option.name for option in registry().quantizer(recipe.quantizer).options}
    shared = {option.name for option in OPTIONS}
    settings = _settings(source, {name: value for name, value in given.items() if name in shared})
    kept = tuple(
        (name, value) for name, value in recipe.quantizer_options if name in own or name not in shared
    )
    recipe = replace(recipe, quantizer_options=kept)
    if recipe.pure:
        found = Described("measured" + spelled(" with --pure", ", with pure=True"))
        raise ConfigError("mix", found, "one of the two: a pure file has no mix")
    plan = make_plan(source, target, recipe, options)
    names = {each.name: name for each in plan.tensors for name in [_canonical(each, plan.source)] if name}
    free = {each.name: _alternatives(each, plan, recipe) for each in plan.tensors if each.name in names}
    free = {name: packers for name, packers in free.items() if len(packers) > 1}
    if not free:
        found = Described(f"measured, for {recipe.format} in the container {plan.loader.name}")
        raise ConfigError("mix", found, "named: there is nothing to choose")
    progress.notice(
        f"measuring what {len(free)} weights cost in each type, on "
        f"{settings.calibration or 'the text that comes with qformats'}, which runs the model"
    )
    losses = measure_sensitivity(
        plan.source,
        {names[name]: packers for name, packers in free.items()},
        plan.quantizer,
        settings,
        progress,
    )
    return replace(recipe, measured=_chosen(plan, free, names, losses))


def _settings(source: Checkpoint, given: Mapping[str, str]) -> Settings:
    from qformats.folder.context import context_limit

    takes = context_limit(source.config)
    length = _LENGTH if takes is None else min(_LENGTH, takes)
    return Settings.parse({"samples": _SAMPLES, "sequence-length": str(length), **given})


def _canonical(tensor: TensorPlan, source: Checkpoint) -> str:
    """Name of the tensor of the source that it is made from; empty if it is made from none, or from several."""
    found = tensor.source
    if found.name in source.tensors:
        return found.name
    # Where the source has names of its own.
    for name, each in source.tensors.items():
        if (each.file, each.offset, each.numel) == (found.file, found.offset, found.numel):
            return name
    return ""


def _alternatives(tensor: TensorPlan, plan: Plan, recipe: Recipe) -> list[Packer]:
    """Formats to choose from, the one of the container's own choice first."""
    assignment = tensor.assignment
    if not assignment.mixed or not tensor.packer.quantizes:
        return [tensor.packer]
    usual = registry().writable(recipe.format)
    others = [registry().packer(name) for name in plan.loader.alternatives(assignment.draft, usual)]
    fitting = [other for other in others if other.veto(assignment.draft.source.shape) is None]
    return list({packer.name: packer for packer in (tensor.packer, *fitting)}.values())


def _chosen(
    plan: Plan,
    free: Mapping[str, list[Packer]],
    names: Mapping[str, str],
    losses: Mapping[str, Mapping[str, float]],
) -> Measured:
    before = {tensor.name: tensor for tensor in plan.tensors}
    formats: dict[str, tuple[str, str]] = {}
    choices: dict[str, list[Choice]] = {}
    for name, packers in free.items():
        known = losses.get(names[name])
        if known is None:
            formats[name] = packers[0].name, "not measured: as the container chooses"
            continue
        shape = before[name].source.shape
        share = (
            _CALIBRATED
            if plan.quantizer.prepares and before[name].assignment.draft.role != "token_embedding"
            else 1.0
        )
        choices[name] = [
            Choice(packer.name, plan.loader.room(packer.nbytes(shape)), share * known[packer.name])
            for packer in packers
        ]
    budget = sum(each[0].nbytes for each in choices.values())
    chosen = allocate(choices, budget)
    usual = sum(each[0].loss for each in choices.values())
    if sum(choice.loss for choice in chosen.values()) > usual:
        # A greedy walk need not find what is there already.
        chosen = {name: each[0] for name, each in choices.items()}
    for name, choice in chosen.items():
        named = before[name].packer
        why = "as by name" if choice.format == named.name else f"instead of {named.spec.variant}"
        formats[name] = choice.format, f"measured: {why}"
    reached = sum(choice.loss for choice in chosen.values())
    note = (
        f"measured: {len(choices)} weights cost an estimated {reached:.2g} nats per token (mean KL divergence), and "
        f"{usual:.2g} with the types that the name stands for"
    )
    return Measured(tuple((name, *found) for name, found in formats.items()), note)
