"""Recipe: which tensor gets which format, decided by rules from general to particular."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qformats.errors import ConfigError, ShapeError, UnknownFormatError
from qformats.exporting.programs import known
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.float8 import Float8Packer
from qformats.interfaces.layout import Assignment, Draft
from qformats.interfaces.loader import Loader
from qformats.interfaces.packer import Packer
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import FLOATS, FLOATS8
from qformats.registry import registry

__all__ = ["Measured", "Recipe", "with_options"]


@dataclass(frozen=True)
class Measured:
    """A choice of formats, tensor by tensor, in place of the container's own mix.

    Attributes
    ----------
    formats : tuple of (str, str, str)
        Name in the output, format, and reason.
    note : str
        What came of it, for the user.
    """

    formats: tuple[tuple[str, str, str], ...]
    note: str = ""


@dataclass(frozen=True)
class Recipe:
    """What the user requested.

    Attributes
    ----------
    format : str
        ``family:variant``, or what else users may call it; always the full name afterwards.
    quantizer : str
        Method that chooses codes; the format's own default if it is left out.
    tensor_types : tuple of (str, str)
        Regular expression and variant: one of the format's family, plain numbers (f32, f16, bf16), or a full name. The
        first that is found in a tensor's name, and whose type can hold the tensor if the container wants to keep it,
        wins. So ``attn=q4_0`` quantizes the attention's matrices and leaves its norms alone.
    output_type, token_embedding_type : str or None
        Variants for the two tensors with a role.
    pure : bool
        Leave out the container's own mix.
    container : str or None
        Loader that writes the output, if not the usual one.
    quantizer_options : tuple of (str, str)
        Options of the quantizer.
    imatrix : tuple of str
        Files with importance matrices, by which errors are weighed; they are added up.
    measured : Measured or None
        What replaces the container's own mix.
    program : str
        Program that is to load the output, see :data:`qformats.exporting.programs.PROGRAMS`; empty for any.
    """

    format: str
    quantizer: str = ""
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    container: str | None = None
    quantizer_options: tuple[tuple[str, str], ...] = ()
    imatrix: tuple[str, ...] = ()
    measured: Measured | None = None
    program: str = ""

    def __post_init__(self) -> None:
        """Settle the format's full name, and the quantizer."""
        # Users write short names; plans, journals and reports hold the full one.
        packer = registry().meant(self.format)
        object.__setattr__(self, "format", packer.name)
        if self.program:
            object.__setattr__(self, "program", known(self.program))
        if not self.quantizer:
            object.__setattr__(self, "quantizer", packer.default_quantizer)

    def loader(self, source: Checkpoint) -> Loader:
        """Loader that writes the output: the requested one, or else the source's own if the format belongs to it.

        Raises
        ------
        ConfigError
            If that container cannot hold the format.
        """
        packer = registry().writable(self.format)
        if self.container is None:
            own = registry().loader(source.container)
            return own if packer.family in own.families else registry().loader(packer.container)
        chosen = registry().loader(self.container)
        if not chosen.accepts(packer):
            names = [loader.name for loader in registry().loaders() if loader.accepts(packer)]
            raise ConfigError(
                "container", chosen.name, f"one that can hold {packer.name}: " + ", ".join(names)
            )
        return chosen

    def assign(self, drafts: Sequence[Draft], loader: Loader, source: Checkpoint) -> list[Assignment]:
        """Choose a format for every tensor that is written.

        Raises
        ------
        ConfigError
            If a rule is not a regular expression, or matches no tensor.
        ShapeError
            If neither a tensor's format nor the container's fallbacks can hold it.
        """
        default = registry().writable(self.format)
        rules = [
            (self._compiled(pattern), pattern, self._typed(variant, loader))
            for pattern, variant in self.tensor_types
        ]
        roles = {
            role: self._typed(variant, loader)
            for role, variant in (
                ("output", self.output_type),
                ("token_embedding", self.token_embedding_type),
            )
            if variant is not None
        }
        used: set[str] = set()
        drafts = [draft for draft in drafts if not draft.left_out]
        if default.quantizes and any(_is_packed(t) for t in source.tensors.values()):
            drafts = [_staying_plain(draft, loader) for draft in drafts]
        mixed: Mapping[str, tuple[str, str]] = {}
        if self.measured is not None:
            mixed = {name: (format, why) for name, format, why in self.measured.formats}
        elif not self.pure:
            mixed = loader.mixes(drafts, default, source)
        usual = default.typical
        chosen = [self._choose(draft, usual, rules, roles, loader, used, mixed) for draft in drafts]
        for _, pattern, _ in rules:
            if pattern not in used:
                raise self._useless(pattern, drafts)
        return [_oriented(_decodable(assignment)) for assignment in chosen]

    @staticmethod
    def _useless(pattern: str, drafts: Sequence[Draft]) -> ConfigError:
        """Why a rule has no effect: a typing mistake, an earlier rule, or tensors that are never quantized."""
        if not drafts:
            return ConfigError("tensor-type", pattern, "no rule, since there are no tensors")
        matched = [d for d in drafts if _matches(re.compile(pattern), d)]
        if not matched:
            example = next((d.name for d in drafts if d.keep is None), drafts[0].name)
            allowed = f"an expression that matches part of a tensor's name, such as {example}"
        elif all(d.keep for d in matched):
            kept = matched[0]
            allowed = f"one that matches a tensor this type can hold; {kept.name} is not one ({kept.why})"
        else:
            allowed = "one that matches tensors not matched by an earlier rule: the first rule wins"
        return ConfigError("tensor-type", pattern, allowed)

    def _choose(
        self,
        draft: Draft,
        default: Packer,
        rules: list[tuple[re.Pattern[str], str, Packer]],
        roles: dict[str, Packer],
        loader: Loader,
        used: set[str],
        mixed: Mapping[str, tuple[str, str]],
    ) -> Assignment:
        for expression, pattern, packer in rules:
            if _matches(expression, draft) and (draft.keep is None or not packer.veto(draft.source.shape)):
                used.add(pattern)
                return self._fitting(draft, packer, f"by rule {pattern}", loader)
        by_role = roles.get(draft.role or "")
        if by_role is None and draft.tied:
            by_role = roles.get("output")
        if by_role is not None:
            what = "output" if draft.role not in roles else (draft.role or "").replace("_", " ")
            return self._fitting(draft, by_role, f"by option for the {what}", loader)
        if draft.keep is not None and _has_already(draft, default):
            return Assignment(draft, default, "quantized in the source", kept=True)
        if draft.keep is not None:
            kept = registry().packer(draft.keep)
            if draft.cast_along and kept.dense_dtype in FLOATS and default.dense_dtype is not None:
                return Assignment(draft, default)
            return Assignment(draft, kept, draft.why, kept=True)
        if draft.name in mixed:
            name, why = mixed[draft.name]
            return replace(self._fitting(draft, registry().packer(name), why, loader), mixed=True)
        return replace(self._fitting(draft, default, "", loader), mixed=True)

    def _fitting(self, draft: Draft, packer: Packer, note: str, loader: Loader) -> Assignment:
        """The packer, or the first of the container's fallbacks that can hold the tensor."""
        problem = packer.veto(draft.source.shape)
        if problem is None:
            return Assignment(draft, packer, note)
        for name in loader.fallback(draft, packer):
            other = registry().packer(name)
            if other.veto(draft.source.shape) is None:
                return Assignment(draft, other, f"{packer.spec.variant} does not fit: {problem}")
        expected = f"one that {packer.name} can hold ({problem})"
        hint = (
            f"readers of the container {loader.name} need this tensor in that format"
            if packer.quantizes
            else None
        )
        raise ShapeError(draft.name, draft.source.shape, expected, hint)

    def _typed(self, variant: str, loader: Loader) -> Packer:
        """Packer of a full name, of a variant of the recipe's family, or of plain numbers in any family."""
        packer = registry().writable(variant if ":" in variant else self._full_name(variant))
        if packer.typical is not packer:
            raise ConfigError("type", packer.name, f"the type of one tensor, such as {packer.typical.name}")
        if packer.quantizes and not loader.accepts(packer):
            names = [p.name for p in registry().formats() if loader.accepts(p) and p.writable]
            raise ConfigError(
                "type", packer.name, f"one that the container {loader.name} can hold: " + ", ".join(names)
            )
        return packer

    def _full_name(self, variant: str) -> str:
        """The recipe's family is asked first: GGUF has an f32 of its own."""
        own = f"{self.format.partition(':')[0]}:{variant}"
        try:
            return registry().packer(own).name
        except (UnknownFormatError, ConfigError):
            plain = f"dense:{variant.lower()}"
            if any(packer.name == plain for packer in registry().formats()):
                return plain
            raise

    @staticmethod
    def _compiled(pattern: str) -> re.Pattern[str]:
        try:
            return re.compile(pattern)
        except re.error as error:
            raise ConfigError("tensor-type", pattern, f"a regular expression ({error})") from error


def with_options(recipes: Sequence[Recipe], options: Mapping[str, str]) -> list[Recipe]:
    """Give each recipe those options that its quantizer has; all get an option that none has, to be refused."""
    names = [{option.name for option in registry().quantizer(each.quantizer).options} for each in recipes]
    known = set[str]().union(*names)
    return [
        replace(
            recipe,
            quantizer_options=tuple((k, v) for k, v in options.items() if k in own or k not in known),
        )
        for recipe, own in zip(recipes, names, strict=True)
    ]


def _is_packed(tensor: StoredTensor) -> bool:
    """Whether it was quantized by somebody who chose what to leave out; in FP8 models are released as they are."""
    return tensor.stored_packer.quantizes and not isinstance(tensor.stored_packer, Float8Packer)


def _staying_plain(draft: Draft, loader: Loader) -> Draft:
    """A draft that keeps its plain numbers: in a quantized model they were left out on purpose."""
    plain = draft.source.stored_packer.dense_dtype
    if plain in FLOATS8:
        plain = draft.source.packer.dense_dtype
    if draft.keep is not None or plain not in FLOATS:
        return draft
    own = [p.name for p in registry().formats() if p.container == loader.name and p.dense_dtype == plain]
    return replace(draft, keep=own[0] if own else f"dense:{plain}", why="not quantized in the source")


def _has_already(draft: Draft, packer: Packer) -> bool:
    """Whether a tensor that is usually left plain (an embedding, a head) is stored in the requested format."""
    stored, shape = draft.source.stored_packer, draft.source.shape
    return packer.quantizes and stored.name == draft.source.format == packer.name and not packer.veto(shape)


def _decodable(assignment: Assignment) -> Assignment:
    """Refuse to convert what can only be copied."""
    source = assignment.draft.source.stored_packer
    if not source.readable and source.name != assignment.packer.name:
        name = assignment.draft.name
        raise ConfigError(
            f"format of {name}", source.name, "a format that can be decoded, which conversion needs"
        )
    return assignment


def _oriented(assignment: Assignment) -> Assignment:
    """Transpose a matrix that the container stores transposed as plain numbers."""
    draft = assignment.draft
    if not draft.dense_transposed or assignment.packer.quantizes:
        return assignment
    return replace(assignment, draft=replace(draft, source=draft.source.transposed()))


def _matches(expression: re.Pattern[str], draft: Draft) -> bool:
    """Whether a rule finds a tensor, under its name in the output or its canonical one."""
    return bool(expression.search(draft.name) or expression.search(draft.source.name))
