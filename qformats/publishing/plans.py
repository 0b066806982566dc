"""Plans of all outputs: what they are called, and that they can be had, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qformats.errors import ConfigError, Described, OutputError, QFormatsError, spelled
from qformats.exporting import Plan, Recipe, make_plan
from qformats.exporting.seal import final_paths
from qformats.exporting.shared import SharedReads
from qformats.interfaces.checkpoint import Checkpoint
from qformats.publishing.files import CARD, CHECKSUMS
from qformats.registry import registry

__all__ = ["plan_all"]

_LOG = "log"
"""Option of quantizers that calibrate: the file of what is written about each layer."""


def plan_all(
    source: Checkpoint, folder: Path, recipes: Sequence[Recipe], options: Mapping[str, str]
) -> list[Plan]:
    """Plan an output of each recipe, under the name that it would have on the hub.

    Parameters
    ----------
    source : Checkpoint
        The model.
    folder : Path
        Where the outputs will lie.
    recipes : sequence of Recipe
        One per format. An importance matrix is left out where the format is plain numbers.
    options : mapping of str to str
        Of the loaders.

    Returns
    -------
    list of Plan
        In the order of the recipes. What one reads of the source, the others get.

    Raises
    ------
    ConfigError
        If there is no format, or one twice.
    OutputError
        If two outputs would have the same name.
    QFormatsError
        If the model cannot be written in a format, saying in which.
    """
    names = [recipe.format for recipe in recipes]
    twice = next((name for name in names if names.count(name) > 1), None)
    if not names or twice is not None:
        found = "" if twice is None else Described(f"{twice} twice")
        raise ConfigError("format", found, "one or more formats, each once")
    quantized = [registry().packer(name).quantizes for name in names]
    if not any(quantized) and any(recipe.imatrix for recipe in recipes):
        raise ConfigError(
            "format", ", ".join(names), "a quantized format among them, for the importance matrix"
        )
    shared = SharedReads().of(source)
    plans = []
    for recipe, quantizes in zip(recipes, quantized, strict=True):
        try:
            target = folder / _named(source, recipe)
            used = recipe if quantizes else replace(recipe, imatrix=())
            plans.append(make_plan(shared, target, used, options))
        except QFormatsError as error:
            if len(names) > 1:
                error.advise(
                    f"{recipe.format} cannot be had like this, so none of the {len(names)} formats is written"
                )
            raise
    _refuse_collisions(folder, plans)
    _refuse_shared_logs(plans)
    return plans


def _named(source: Checkpoint, recipe: Recipe) -> str:
    """``MODEL-FORMAT``, as its family is spelt on the hub."""
    packer = registry().packer(recipe.format)
    return f"{source.name}-{registry().family(packer).hub_name(packer)}{recipe.loader(source).suffix}"


def _refuse_shared_logs(plans: Sequence[Plan]) -> None:
    """Refuse a log that each calibration would replace."""
    logs = [
        plan.quantizer.given[_LOG]
        for plan in plans
        if plan.quantizer.prepares and _LOG in plan.quantizer.given
    ]
    if len(logs) > 1:
        raise ConfigError(
            _LOG, logs[0], f"one format that is calibrated, whose log it is, and not {len(logs)}"
        )


def _refuse_collisions(folder: Path, plans: Sequence[Plan]) -> None:
    """Refuse two outputs of the same name, also on file systems that do not tell cases apart."""
    owners = {str(folder / name).lower(): name for name in (CARD, CHECKSUMS)}
    for plan in plans:
        for path in final_paths(plan):
            other = owners.setdefault(str(path).lower(), plan.recipe.format)
            if other != plan.recipe.format:
                found = f"would be the name of both {other} and {plan.recipe.format}"
                hint = "Export one of them by itself" + spelled(", with a name of its own (--output)", "")
                raise OutputError(path, found, hint)
