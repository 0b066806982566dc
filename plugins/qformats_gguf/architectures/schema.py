"""What one row of the architecture table says, as data.

A row (:class:`Row`) names the Hugging Face models it stands for, the tensors they have, the metadata that
llama.cpp reads for them, and what llama.cpp does *not* compute. Nothing here knows any model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from qformats_gguf.architectures.further import PREDICTING
from qformats_gguf.architectures.limits import Config, Limit
from qformats_gguf.architectures.metadata_rules import MetaRule
from qformats_gguf.architectures.models import HFModel
from qformats_gguf.architectures.orders import Permute, Regroup

__all__ = ["Fused", "If", "Mixers", "Piece", "PieceRule", "Row", "TensorMapping", "TensorRule"]


_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}
"""What the first files of BERT call the tensors of its norms."""


@dataclass(frozen=True)
class Piece:
    """Part of a tensor that GGUF keeps as a tensor of its own.

    Attributes
    ----------
    axis : int
        Dimension of the tensor, after grouping, of which it is a part.
    start, stop : int
        Which part.
    groups : int
        Into how many groups the first dimension is divided before, as a new first one; 0 if it is not.
    swapped : bool
        Whether GGUF has the last two dimensions the other way round.
    """

    axis: int
    start: int
    stop: int
    groups: int = 0
    swapped: bool = False

    @property
    def whole_rows(self) -> bool:
        """Whether it is some rows of a matrix, as they are."""
        return self.axis == 0 and not self.groups and not self.swapped

    def grouped(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the whole tensor after grouping."""
        return (self.groups, shape[0] // self.groups, *shape[1:]) if self.groups else shape

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the part in GGUF, by that of the whole tensor on disk."""
        dims = list(self.grouped(whole))
        dims[self.axis] = self.stop - self.start
        return (*dims[:-2], dims[-1], dims[-2]) if self.swapped else tuple(dims)


@dataclass(frozen=True)
class PieceRule:
    """A :class:`Piece` whose numbers are expressions in keys of the configuration; without `groups` there are none."""

    axis: int
    start: str
    stop: str
    groups: str = ""
    swapped: bool = False

    @property
    def expressions(self) -> tuple[str, ...]:
        """All that has to be evaluated."""
        return tuple(filter(None, (self.start, self.stop, self.groups)))


@dataclass(frozen=True)
class TensorMapping:
    """One tensor under both of its names.

    Attributes
    ----------
    canonical, gguf : str
        Name that Transformers' model class uses on disk, and name in a GGUF file.
    permute : Permute or Regroup, optional
        Rows to reorder on the way to GGUF (`rows`) or back (`inverse`).
    force_f32 : bool
        llama.cpp and its converter keep this tensor in float32 in every file type.
    shape : tuple of int
        What the configuration says.
    offset : float
        Added to the values on the way to GGUF.
    stack : int
        Matrices of the GGUF tensor, of which this is one; 0 if it is the whole tensor.
    piece : Piece, optional
        What the GGUF tensor is a part of this one, where it does not hold all of it as it is.
    squeezed : bool
        Whether GGUF leaves out the second dimension, which is 1.
    negated_exp : bool
        Whether GGUF holds ``-exp(x)`` of these numbers.
    """

    canonical: str
    gguf: str
    shape: tuple[int, ...]
    permute: Permute | Regroup | None = None
    force_f32: bool = False
    offset: float = 0.0
    stack: int = 0
    piece: Piece | None = None
    squeezed: bool = False
    negated_exp: bool = False

    @property
    def shared(self) -> bool:
        """Whether several GGUF tensors hold what is one tensor here."""
        return self.piece is not None or (isinstance(self.permute, Regroup) and bool(self.permute.only))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the GGUF tensor."""
        if self.piece is not None:
            return self.piece.shape(self.shape)
        if isinstance(self.permute, Regroup):
            return (self.permute.count, *self.shape[1:])
        if self.squeezed:
            return (self.shape[0], *self.shape[2:])
        return (self.stack, *self.shape) if self.stack else self.shape


@dataclass(frozen=True)
class If:
    """A tensor that exists only if ``config[key] == value``; its presence in turn tells that value.

    A key that begins with an underscore is in no ``config.json``: it tells two forms of files apart.
    """

    key: str
    value: bool | int = True

    def holds(self, config: Config) -> bool:
        """Whether a model of this configuration has the tensor."""
        found = config.get(self.key)
        return bool(found) is self.value if isinstance(self.value, bool) else found == self.value


@dataclass(frozen=True)
class TensorRule:
    """A module and the tensors it has: ``.weight``, and perhaps ``.bias``.

    Attributes
    ----------
    canonical, gguf : str
        Module names; ``{i}`` stands for the block.
    weight, bias : bool or If
        Always present, never present, or present under a condition.
    permute : str, optional
        Configuration key with the number of heads whose rows are reordered.
    groups : (str, tuple of str), optional
        Number of groups of rows, and rows of each part of one, as symbolic dimensions; see `Regroup`.
    only : tuple of int
        Those of these parts that the GGUF tensor holds, where several share them.
    force_f32 : bool
        Keep the weight in float32. Biases always are.
    alias_of : str, optional
        Module whose weight this one shares if its condition does not hold; such a copy is dropped.
    offset : float
        Added to the values on the way to GGUF: norms that multiply by ``1 + weight`` are stored so.
    experts : str, optional
        Configuration key with the number of experts, whose matrices GGUF stacks in one tensor. ``{e}`` stands for the
        expert in `canonical`.
    shape : tuple of str
        Symbolic dimensions of the weight in configuration keys, see :func:`qformats.interfaces.evaluate`; a bias
        has the first one.
    parameter : str, optional
        Ending of the name in GGUF, where `canonical` is the name of a parameter by itself and not of a module.
    layers : str
        ``dense`` or ``sparse``, where only layers without or with experts have this module; or a kind of layers, where
        they have several.
    piece : PieceRule, optional
        Which part of the tensor this is, of which GGUF makes several.
    squeezed, negated_exp : bool
        See `TensorMapping`; of the weight.
    """

    canonical: str
    gguf: str
    shape: tuple[str, ...]
    weight: bool | If = True
    bias: bool | If = False
    permute: str | None = None
    groups: tuple[str, tuple[str, ...]] | None = None
    only: tuple[int, ...] = ()
    force_f32: bool = False
    alias_of: str | None = None
    offset: float = 0.0
    experts: str | None = None
    parameter: str | None = None
    layers: str = ""
    piece: PieceRule | None = None
    squeezed: bool = False
    negated_exp: bool = False

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the names in GGUF."""
        return (".weight", ".bias") if self.parameter is None else (self.parameter,)

    @property
    def per_block(self) -> bool:
        """Whether every block has this module."""
        return "{i}" in self.gguf

    def presence(self, suffix: str) -> bool | If:
        """Rule for the tensor ``.weight`` or ``.bias``."""
        return self.bias if suffix == ".bias" and self.parameter is None else self.weight


@dataclass(frozen=True)
class Fused:
    """Modules that a GGUF file may store as one, their rows below each other; of stacks, those of each matrix.

    Attributes
    ----------
    gguf : str
        Name of the one module; ``{i}`` stands for the block.
    parts : tuple of str
        GGUF names of the modules in it, in the order of their rows.
    """

    gguf: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Mixers:
    """Layers that have something else in the place of attention.

    Attributes
    ----------
    other : str
        What ``layer_types`` calls them.
    every : int
        Every how many layers there is attention where nothing says it, and an array of flags tells in GGUF; 0 where it
        is the array of key-value heads.
    """

    other: str
    every: int = 0


@dataclass(frozen=True, eq=False)
class Row:
    """One GGUF architecture.

    Attributes
    ----------
    name : str
        Of its file in the table.
    arch : str
        ``general.architecture``, and prefix of its keys.
    models : tuple of HFModel
        Hugging Face models that are written as this architecture; a file is read as the first.
    prefix : str
        Prefix of canonical names that base-model checkpoints leave out.
    blocks : str
        Configuration key with the number of blocks.
    tensors, metadata : tuple
        The mapping itself.
    fused : tuple of Fused
        Modules that llama.cpp also loads as one; such files are read but never written.
    rope : tuple of str
        Rotary scalings that llama.cpp computes for it; empty where there is no rotary embedding. With "none" instead
        of "default", upstream's converter says so where there is none; "alpha" is another base.
    yarn : tuple of str
        What llama.cpp reads of YaRN here and nowhere else: its "betas", a "log_multiplier" and a "temperature"; or
        "latent", a tenth of the multiplier.
    partial_rotary : bool
        Whether a part of each head may be rotated; else all of it is.
    limits : tuple of Limit
        What llama.cpp does not compute.
    constants : mapping
        Configuration keys with one possible value, or one where no tensor tells another, for the way back.
    restore : callable, optional
        Adds to a configuration made from a file, in place, what only several of its keys tell.
    only : str
        ``"write"`` where the models' code is in their folders: a file of this architecture is read as another row says;
        ``"read"`` for that other row.
    neutral : mapping
        Metadata keys that mean nothing while they have this value; ``None`` for any value.
    junk : tuple of str
        Endings of tensor names that old checkpoints contain and no model needs.
    tells : str
        Metadata key that only models of this row have, where the architecture has several rows; or, as
        ``KEY = NUMBER``, what only they have there.
    output_required : bool
        Whether llama.cpp loads no model without an output layer of its own: a tied one is written twice.
    window : int
        Every how many layers llama.cpp computes one without a window, where a file does not say; 0 if none has any.
    window_pattern : bool
        Whether a file says it even so, as upstream's converter does for this architecture.
    window_width : int
        Width that it assumes where a file does not say; 0 if it then has no window.
    local_theta : float
        Base of the rotary embedding of sliding layers where the configuration says nothing, if they have their own.
    unscaled_windows : bool
        Whether sliding layers rotate with the base of the others, but without their scaling.
    sparse : (str, str), optional
        Which layers have experts, where not all do: those ``from`` the number of a configuration key on, or ``every``
        so many.
    mixers : Mixers, optional
        Which layers have no attention.
    derived, restores : mapping of str to str
        Keys of a configuration that follow from others, by expressions: on the way to GGUF and on the way back.
    causal : bool
        Whether a token sees only those before it; models that make embeddings of texts see all.
    around : str
        Prefix of canonical names in models that have a head.
    heads : tuple of str
        Beginnings of names of tensors of such heads, which no file holds.
    tolerated : tuple of str
        Keys whose unsupported values are only warned of, since what is lost is small.
    attention_scale : (str, int), optional
        Configuration key whose inverse root scales attention, where llama.cpp takes the size of a head; and the number
        of blocks with which it takes hidden_size / num_attention_heads instead.
    """

    name: str
    arch: str
    models: tuple[HFModel, ...]
    prefix: str
    blocks: str
    tensors: tuple[TensorRule, ...]
    metadata: tuple[MetaRule, ...]
    fused: tuple[Fused, ...] = ()
    rope: tuple[str, ...] = ()
    yarn: tuple[str, ...] = ()
    partial_rotary: bool = False
    limits: tuple[Limit, ...] = ()
    constants: Config = field(default_factory=dict)
    restore: Callable[[dict[str, Any]], None] | None = None
    only: str = ""
    neutral: Config = field(default_factory=dict)
    junk: tuple[str, ...] = ()
    tells: str = ""
    output_required: bool = False
    window: int = 0
    window_pattern: bool = False
    window_width: int = 0
    local_theta: float = 0.0
    unscaled_windows: bool = False
    attention_scale: tuple[str, int] | None = None
    sparse: tuple[str, str] | None = None
    mixers: Mixers | None = None
    derived: Mapping[str, str] = field(default_factory=dict)
    restores: Mapping[str, str] = field(default_factory=dict)
    tolerated: tuple[str, ...] = ()
    causal: bool = True
    around: str = ""
    heads: tuple[str, ...] = ()

    def kinds(self, block: int, config: Config) -> tuple[str, ...]:
        """What a layer has in the place of attention, and whether it has experts, where they differ in that."""
        found = []
        if self.mixers is not None and block < len(config["layer_types"]):
            found.append(str(config["layer_types"][block]))
        elif block >= int(config[self.blocks]):
            found += [PREDICTING, "full_attention"]
        if self.sparse is not None:
            how, number = self.sparse[0], int(config[self.sparse[1]])
            sparse = block >= number if how == "from" else (block + 1) % number == 0
            found.append("sparse" if sparse else "dense")
        return tuple(found)

    @property
    def local_rope(self) -> bool:
        """Whether sliding layers have rotary parameters of their own."""
        return bool(self.local_theta) or self.unscaled_windows

    def own(self, name: str) -> str:
        """A name as a model without a head has it today."""
        if not self.around:
            return name
        name = name.removeprefix(self.around)
        for old, new in _OLD_ENDINGS.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        return name

    def separate(self, name: str) -> list[str]:
        """GGUF names of the tensors in the GGUF tensor `name`, in the order of their rows: usually just itself."""
        for rule in self.fused:
            template = re.escape(rule.gguf).replace(r"\{i\}", r"(0|[1-9]\d*)")
            match = re.fullmatch(template + r"(\.weight|\.bias)", name)
            if match:
                return [part.replace("{i}", match[1]) + match[2] for part in rule.parts]
        return [name]
