"""A model written into a container, as an export does it, for checks to look at."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qformats.errors import ConfigError, ShapeError, UnsupportedModelError
from qformats.exporting import Recipe, make_plan
from qformats.exporting.plan import Plan
from qformats.exporting.run import execute
from qformats.interfaces import Checkpoint, Loader, Packer
from qformats.registry import registry
from qformats.sources import open_model
from qformats.testing.failure import NotApplicable
from qformats.testing.model import HIDDEN, tiny_model

__all__ = ["Written", "plain_format", "planned", "registered", "written"]


@dataclass(frozen=True)
class Written:
    """A model, and what an export made of it.

    Attributes
    ----------
    source : Checkpoint
        The model before.
    plan : Plan
        What was to be written.
    target : Path
        What was written.
    """

    source: Checkpoint
    plan: Plan
    target: Path

    @property
    def files(self) -> list[Path]:
        """Files of the output, in the order of the layout."""
        folder = self.target if self.plan.layout.folder else self.target.parent
        return [folder / file.name for file in self.plan.layout.files]


def registered(subject: Packer | Loader) -> None:
    """Refuse to go on with what the registry does not give under its name: they would use something else."""
    known = registry()
    names = known.format_names() if isinstance(subject, Packer) else [each.name for each in known.loaders()]
    same = False
    with contextlib.suppress(LookupError):
        found = known.packer(subject.name) if isinstance(subject, Packer) else known.loader(subject.name)
        same = type(found) is type(subject)
    if not same:
        other = "another one has its name" if subject.name in names else "no plugin registers it"
        raise NotApplicable(f"folders and exports ask the registry, and {other}")


def plain_format(loader: Loader) -> Packer:
    """Format of plain float32 that a container holds.

    Raises
    ------
    NotApplicable
        If it holds none.
    """
    for packer in sorted(registry().formats(), key=lambda packer: packer.container != loader.name):
        if packer.dense_dtype == "f32" and loader.accepts(packer):
            return packer
    raise NotApplicable("the container holds no format of plain float32")


@contextlib.contextmanager
def planned(
    loader: Loader, packer: Packer, model: str | Path | None = None, *, hidden: int | None = None
) -> Iterator[Written]:
    """Plan an export of a model into a container; nothing is written.

    Parameters
    ----------
    loader : Loader
        Writes.
    packer : Packer
        Format of all weights that are quantized.
    model : str or path, optional
        What is exported; by default a tiny llama.
    hidden : int, optional
        Columns of most of its weights.

    Raises
    ------
    NotApplicable
        If the container cannot be written, or cannot hold this model.
    """
    with tempfile.TemporaryDirectory(prefix="qformats-check-") as scratch, warnings.catch_warnings():
        # What an export remarks about a random model does not matter here.
        warnings.simplefilter("ignore")
        folder = Path(scratch)
        source = open_model(model if model is not None else tiny_model(folder / "tiny", hidden or HIDDEN), {})
        target = folder / "out" / f"model{loader.suffix}"
        target.parent.mkdir()
        recipe = Recipe(packer.name, "rtn", pure=True, container=loader.name)
        yield Written(source, _planned(loader, source, target, recipe), target)


@contextlib.contextmanager
def written(
    loader: Loader, packer: Packer, model: str | Path | None = None, *, hidden: int | None = None
) -> Iterator[Written]:
    """Export a model into a container; everything is removed afterwards. See :func:`planned`."""
    with planned(loader, packer, model, hidden=hidden) as done:
        execute(done.plan, workers=1)
        yield done


def _planned(loader: Loader, source: Checkpoint, target: Path, recipe: Recipe) -> Plan:
    if type(loader).draft is Loader.draft or type(loader).lay_out is Loader.lay_out:
        raise NotApplicable("the container is only read")
    try:
        return make_plan(source, target, recipe, {})
    except (UnsupportedModelError, ShapeError) as error:
        raise NotApplicable(f"the container does not hold the model {source.name} ({error})") from error
    except ConfigError as error:
        if error.key not in ("container", "format"):
            raise
        raise NotApplicable(f"the container does not hold the format {recipe.format} ({error})") from error
