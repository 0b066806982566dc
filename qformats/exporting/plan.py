"""Plan: everything about an export that headers can tell, sizes and offsets included."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.errors import CheckpointError, ConfigError, Described, OutputError, spelled
from qformats.exact import Answer
from qformats.exporting.account import LeftOut, account
from qformats.exporting.importance import read_importance
from qformats.exporting.joint import Joint, joints, require_joint
from qformats.exporting.programs import require_loadable, require_stacks
from qformats.exporting.recipe import Recipe
from qformats.folder import AdapterCheckpoint, FolderCheckpoint
from qformats.folder.adapter import refuse_adapter
from qformats.folder.fit import refuse_fragments
from qformats.interfaces.activations import Scheme, forgotten
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.importance import ColumnSums, Importance
from qformats.interfaces.layout import Assignment, Layout
from qformats.interfaces.loader import Loader
from qformats.interfaces.packer import Packer
from qformats.interfaces.quantizer import Quantizer
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import FLOATS
from qformats.registry import registry
from qformats.version import __version__
from qformats.work.files import Fingerprint, fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["Action", "Plan", "TensorPlan", "make_plan"]


WIDER = {
    "f16": ("f16", "f32", "f64"),
    "bf16": ("bf16", "f32", "f64"),
    "f32": ("f32", "f64"),
    "f64": ("f64",),
}
"""dtypes that hold every value of a dtype."""


class Action(StrEnum):
    """What is done with a tensor's numbers."""

    COPY = "copied"
    """The same format: the same bytes."""
    CAST = "cast"
    """Plain numbers to plain numbers of another dtype: at most one rounding."""
    DEQUANTIZE = "dequantized"
    """A quantized format to plain numbers."""
    QUANTIZE = "quantized"
    """Plain numbers to a quantized format."""
    TRANSCODE = "transcoded"
    """A quantized format to another one with every value unchanged; rows that do not fit are requantized."""
    REQUANTIZE = "requantized"
    """A quantized format to another one, through float32."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output.

    Attributes
    ----------
    assignment : Assignment
        The tensor, its format and the reason for it.
    action : Action
        What is done with its numbers.
    nbytes : int
        Stored bytes in the output.
    exact : Answer
        Whether every value stays the same.
    reason : str
        Why not, or what depends on the data.
    before : StoredTensor or None
        The tensor from which a quantizer that prepared the model made this one, with the same rows.
    importance : ndarray or None
        float32, ``(matrices, K)``: what a squared error in each column costs; ``None`` if errors are not weighed.
    joint : Joint or None
        Neighbours with which it shares a number of its format.
    """

    assignment: Assignment
    action: Action
    nbytes: int
    exact: Answer
    reason: str = ""
    before: StoredTensor | None = None
    importance: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    joint: Joint | None = field(default=None, compare=False, repr=False)

    @property
    def unweighed(self) -> bool:
        """Whether codes are chosen for it without an importance, and not because it is the token embedding."""
        embedding = self.assignment.draft.role == "token_embedding"
        return _is_chosen(self.assignment, self.action) and self.importance is None and not embedding

    @property
    def name(self) -> str:
        """Name in the output."""
        return self.assignment.draft.name

    @property
    def source(self) -> StoredTensor:
        """Source of its rows, already permuted or transposed for the output."""
        return self.assignment.draft.source

    @property
    def packer(self) -> Packer:
        """Format in the output."""
        return self.assignment.packer

    @property
    def chooses(self) -> Packer:
        """Format in which codes are chosen: its number per tensor may be that of several."""
        return self.joint.packer(self.packer) if self.joint and not self.joint.kept else self.packer

    @property
    def keeps(self) -> Packer:
        """The same where values of another quantized format are to stay as they are."""
        return self.joint.keeping(self.packer) if self.joint and self.joint.kept else self.packer

    @property
    def calibrates(self) -> Packer:
        """The same for a quantizer that prepares the model, and changes weights as it goes."""
        if self.joint is None or self.joint.kept:
            return self.packer
        return self.joint.packer(self.packer, room=True)

    @cached_property
    def fixed(self) -> dict[str, Tensor]:
        """Fields that are known before any weight is read."""
        dtype = self.source.stored_packer.dense_dtype or "f32"
        return self.packer.fixed(self.source.shape, dtype) if len(self.source.shape) == 2 else {}

    @property
    def source_format(self) -> str:
        """Format in the source."""
        return self.source.stored_format


@dataclass(frozen=True)
class Plan:
    """An export, decided but not begun.

    Attributes
    ----------
    source : Checkpoint
        What is read.
    target : Path
        What will be made.
    recipe : Recipe
        What the user requested.
    tensors : tuple of TensorPlan
        In output order; placements of the layout index into it.
    layout : Layout
        Every file, with exact sizes.
    fingerprint : Fingerprint
        Of the source's files when the model was opened: what was decided from the headers holds for these files only.
    loader : Loader
        Writes the output.
    options : mapping of str to str
        Of the loaders: how the source is read and the output is written.
    quantizer : Quantizer
        Chooses codes; it knows its options.
    left_out : tuple of LeftOut
        Tensors of the source that the output does not hold.
    extra_identity : mapping of str to str
        What else decides the bytes of the output.
    notes : tuple of str
        What the quantizer has to say, for the user.
    """

    source: Checkpoint
    target: Path
    recipe: Recipe
    tensors: tuple[TensorPlan, ...]
    layout: Layout
    fingerprint: Fingerprint
    loader: Loader
    options: Mapping[str, str]
    quantizer: Quantizer
    left_out: tuple[LeftOut, ...] = ()
    extra_identity: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def partial_name(self) -> str:
        """What the partial output is called after; targets with the same files share it, and so exclude each other."""
        name = self.target.name
        if len(self.layout.files) > 1 and not self.layout.folder:
            # The files of a split model get the same names whether or not the target's name has the suffix.
            suffix = self.loader.suffix
            return name.removesuffix(suffix) + suffix
        return name

    def changed(self) -> Path | None:
        """First source file that has changed since the model was opened."""
        files = self.source.files
        if len(files) != len(self.fingerprint):
            return self.source.path
        for file, before in zip(files, self.fingerprint, strict=True):
            try:
                now = fingerprint([file])
            except OSError:
                return file
            if now != (before,):
                return file
        return None

    def identity(self, slices: Sequence[tuple[int, int, int]]) -> str:
        """Fingerprint of everything that decides the output's bytes: a journal with another one is not resumed.

        Parameters
        ----------
        slices : sequence of (int, int, int)
            Tensor, first and last row (exclusive) of each slice: a journal knows slices by number.
        """
        import xxhash

        digest = xxhash.xxh3_128()
        state = {
            "version": __version__,
            "software": self.software,
            "quantizer": [self.recipe.quantizer, *self.recipe.quantizer_options],
            "container": self.loader.name,
            "options": sorted({**self.options, **self.extra_identity}.items()),
            "tensors": [
                [t.name, t.source.shape, t.source_format, t.packer.name, t.action] for t in self.tensors
            ],
            "files": [
                [f.name, f.size, [[p.tensor, p.field, p.offset, p.nbytes] for p in f.placements]]
                for f in self.layout.files
            ],
            "slices": slices,
            "source": self.fingerprint,
        }
        digest.update(json.dumps(state, default=str).encode())
        for file in self.layout.files:
            digest.update(file.header)
            for offset, part in file.parts:
                digest.update(b"%d:" % offset + part)
        return digest.hexdigest()

    @property
    def software(self) -> dict[str, str]:
        """Versions of the distributions whose code decides the output, and of those that they require."""
        return _versions(self._plugins())

    def _plugins(self) -> set[str]:
        """Distributions whose code turns the source into the output."""
        formats = {self.recipe.format, *(t.packer.name for t in self.tensors)}
        formats |= {t.source_format for t in self.tensors}
        families = {format.partition(":")[0] for format in formats}
        loaders = {self.source.container, self.loader.name}
        return {
            plugin.distribution
            for plugin in registry().plugins
            if self.recipe.quantizer in plugin.quantizers
            or loaders.intersection(plugin.loaders)
            or families.intersection(format.partition(":")[0] for format in plugin.formats)
        }


def _versions(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions and of those that they require, optional ones excepted."""
    return dict(sorted(pair for distribution in distributions for pair in _installed(distribution)))


@cache
def _installed(distribution: str) -> tuple[tuple[str, str], ...]:
    """Names and versions of a distribution and of what it requires; read once, as what is imported stays what it is."""
    try:
        required = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        required = []
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in required if "extra ==" not in line]
    return tuple((name, _version(name)) for name in (distribution, *names))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def make_plan(
    source: Checkpoint,
    target: Path,
    recipe: Recipe,
    options: Mapping[str, str],
    *,
    extra_identity: Mapping[str, str] | None = None,
) -> Plan:
    """Decide an export from headers alone.

    Parameters
    ----------
    source : Checkpoint
        The model.
    target : Path
        File or folder to write.
    recipe : Recipe
        What the user requested.
    options : mapping of str to str
        Of the loaders.
    extra_identity : mapping of str to str, optional
        What else decides the bytes of the output, such as what was added to the source's weights.

    Raises
    ------
    UnknownFormatError
        If nothing installed provides the format.
    ConfigError, ShapeError, UnsupportedModelError
        If the model cannot be written as asked.
    CheckpointError
        If it has no tensors, or integers where weights belong.
    OutputError
        If the target is not a name for a file or folder.
    """
    target = _named(target)
    default = registry().packer(recipe.format)
    source = _weighed(source, recipe, default)
    quantizer = registry().quantizer(recipe.quantizer, dict(recipe.quantizer_options))
    loader = recipe.loader(source)
    if isinstance(source, AdapterCheckpoint) and not loader.takes_adapters:
        refuse_adapter(source.path)
    own = loader.own_options(options)
    vocabulary = not source.tensors and loader.takes_vocabularies and not default.quantizes
    if isinstance(source, FolderCheckpoint):
        # Whatever the container: what follows would only find tensors missing.
        refuse_fragments(source)
    drafts = [] if vocabulary else loader.draft(source, own)
    if not drafts and not (vocabulary and source.tokenizer_files()):
        raise CheckpointError(
            source.path,
            "holds no tensors (a vocabulary only?)",
            "a model with weights",
            hint="--format dense writes the tokenizer of a vocabulary into a folder",
        )
    left_out = account(source, drafts, loader)
    assignments = loader.joined(recipe.assign(drafts, loader, source), source)
    carried = {a.draft.source.name for a in assignments if a.draft.step is not None}
    left_out = tuple(each for each in left_out if each.name not in carried)
    layout = loader.lay_out(source, assignments, default, target, own)
    if default.quantizes and not any(assignment.packer.quantizes for assignment in assignments):
        # A folder would declare a format that nothing in it has; a file holds what its rules and fallbacks say.
        if layout.folder or not any(assignment.note for assignment in assignments if not assignment.kept):
            raise _nothing_quantized(source, default, assignments)
    sizes = [0] * len(assignments)
    for file in layout.files:
        for placement in file.placements:
            sizes[placement.tensor] += placement.nbytes
    actions = [_action(assignment) for assignment in assignments]
    both = list(zip(assignments, actions, strict=True))
    shared = joints(assignments, [_rounds(*each) for each in both], [_keeps(*each) for each in both])
    tensors = tuple(
        TensorPlan(
            assignment,
            action,
            size,
            *exactness(assignment, action),
            importance=_importance(assignment, action, source.importance),
            joint=joint,
        )
        for assignment, action, size, joint in zip(assignments, actions, sizes, shared, strict=True)
    )
    opened = source.fingerprint or fingerprint(source.files)
    extra = dict(extra_identity or {})
    if source.importance is not None:
        extra["importance"] = source.importance.fingerprint
    notes = _notes(quantizer, default.typical, tensors, weighed=source.importance is not None)
    if recipe.measured is not None:
        notes = (*notes, recipe.measured.note)
    notes += require_loadable(recipe.program, default, assignments, folder=layout.folder)
    if not layout.folder and source.container != loader.name:
        held = [a.draft.step for a in assignments if a.draft.step is not None]
        notes += forgotten(source.schemes, [Scheme("input", step.numbers, dynamic=False) for step in held])
    if layout.folder:
        notes += require_joint(recipe.program, assignments, shared)
        require_stacks(recipe.program, assignments, source)
    return Plan(
        source, target, recipe, tensors, layout, opened, loader, options, quantizer, left_out, extra, notes
    )


def _notes(
    quantizer: Quantizer, packer: Packer, tensors: Sequence[TensorPlan], *, weighed: bool
) -> tuple[str, ...]:
    """What the quantizer says of the requested format, if it is to choose codes."""
    if not packer.quantizes or not any(_is_chosen(each.assignment, each.action) for each in tensors):
        return ()
    note = quantizer.review(packer, weighed=weighed)
    return (note,) if note else ()


def _weighed(source: Checkpoint, recipe: Recipe, default: Packer) -> Checkpoint:
    """The source with the importances of the recipe's files."""
    if not recipe.imatrix or source.importance is not None:
        return source
    if not default.quantizes:
        found = Described(f"{default.name} with an importance matrix")
        raise ConfigError("format", found, "a quantized format: plain numbers are rounded each by itself")
    weighed = copy.copy(source)
    weighed.importance = read_importance(recipe.imatrix, source)
    return weighed


_MATRICES = (2, 3)
"""Dimensions of weights that importances are known for: matrices, and stacks of experts'."""


def _is_chosen(assignment: Assignment, action: Action) -> bool:
    """Whether codes are still to be chosen for a tensor, and a quantizer that prepared the model has not done so."""
    packed = assignment.draft.source.format == assignment.packer.name
    return action in (Action.QUANTIZE, Action.REQUANTIZE, Action.TRANSCODE) and not packed


def _rounds(assignment: Assignment, action: Action) -> bool:
    """Whether all codes of a tensor are still to be chosen."""
    return action in (Action.QUANTIZE, Action.REQUANTIZE) and _is_chosen(assignment, action)


def _keeps(assignment: Assignment, action: Action) -> bool:
    """Whether a matrix goes from one quantized format into another that may have its values."""
    matrix = len(assignment.draft.source.shape) == 2
    return action is Action.TRANSCODE and matrix and _is_chosen(assignment, action)


def _sums_of(source: StoredTensor, importance: Importance) -> ColumnSums | None:
    """What is known of a tensor, or of the matrices that it stacks."""
    if source.matrices:
        stacked = ColumnSums.stacked([importance.sums.get(name) for name in source.matrices])
        if stacked is not None:
            return stacked
    return importance.sums.get(source.name)


def _importance(
    assignment: Assignment, action: Action, importance: Importance | None
) -> NDArray[np.float32] | None:
    """What errors in the columns of a tensor cost, where codes are chosen for it."""
    draft = assignment.draft
    sums = None if importance is None else _sums_of(draft.source, importance)
    if sums is None or not _is_chosen(assignment, action) or len(draft.source.shape) not in _MATRICES:
        return None
    try:
        return sums.means(draft.source.shape, draft.name)
    except ConfigError:
        # llama.cpp too ignores what it finds for the embedding, of which no product is ever taken.
        if draft.role == "token_embedding":
            return None
        raise


def _nothing_quantized(
    source: Checkpoint, default: Packer, assignments: Sequence[Assignment]
) -> CheckpointError:
    """Error for a quantized format that no tensor would get."""
    # A matrix that stays plain tells more than a norm.
    example = max(assignments, key=lambda each: each.draft.source.numel)
    why = f" ({example.note})" if example.note else ""
    found = f"no tensor that would be {default.name}: {example.draft.name} stays {example.packer.name}{why}"
    return CheckpointError(
        source.path, found, "weights to quantize", hint="write plain numbers: --format dense"
    )


def _named(target: Path) -> Path:
    """The target with a proper name, from which the name of the partial output beside it is derived."""
    if target.name in ("", ".."):
        target = target.resolve()
    if not target.name:
        raise OutputError(
            target,
            "is not a valid name for a file or folder",
            "Choose another one" + spelled(" with --output", ""),
        )
    return target


def _action(assignment: Assignment) -> Action:
    """What is done with a tensor, which a loader may have decoded, or a quantizer packed, since it was read."""
    tensor, packer = assignment.draft.source, assignment.packer
    stored, now = tensor.stored_packer, tensor.packer
    same = now.name == packer.name or (now.dense_dtype and now.dense_dtype == packer.dense_dtype)
    if same and tensor.stored_format == tensor.format:
        return Action.COPY
    if stored.dense_dtype is not None and stored.dense_dtype not in FLOATS:
        found = f"holds {stored.dense_dtype}, which cannot become {packer.name}"
        raise CheckpointError(tensor.file, found, "weights of " + ", ".join(FLOATS), tensor=tensor.name)
    if packer.dense_dtype is not None:
        return Action.CAST if stored.dense_dtype else Action.DEQUANTIZE
    if stored.dense_dtype is not None:
        return Action.QUANTIZE
    answer, _ = _transcodable(assignment)
    return Action.REQUANTIZE if answer is Answer.NEVER else Action.TRANSCODE


def _transcodable(assignment: Assignment) -> tuple[Answer, str]:
    """Whether a quantized tensor can keep its values in another quantized format."""
    source, packer = assignment.draft.source, assignment.packer
    if source.format == packer.name:
        return Answer.ALWAYS, ""
    if not source.packer.quantizes:
        # A loader had to decode it, to give its rows another order.
        return Answer.NEVER, f"this container reorders rows that share blocks of {source.stored_format}"
    # Of a stack, each matrix goes by itself.
    return packer.foresee(source.packer, source.shape[1:] if source.separate else source.shape)


def exactness(assignment: Assignment, action: Action) -> tuple[Answer, str]:
    """Whether every value of a tensor stays the same, and if not, why."""
    dtype = assignment.packer.dense_dtype or ""
    match action:
        case Action.COPY:
            return Answer.ALWAYS, ""
        case Action.QUANTIZE:
            return Answer.NEVER, "plain numbers are rounded to the format's levels"
        case Action.TRANSCODE | Action.REQUANTIZE:
            return _transcodable(assignment)
    source = assignment.draft.source.packer.dense_dtype or "f32"
    if dtype in WIDER.get(source, ()):
        return Answer.ALWAYS, ""
    return Answer.DATA, f"{dtype} may not hold every value"
