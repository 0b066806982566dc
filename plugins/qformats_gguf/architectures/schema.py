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
from qformats_gguf.architectures.tensor_rules import Fused, TensorRule

__all__ = ["Mixers", "Row"]


_OLD_ENDINGS = {".gamma": ".weight", ".beta": ".bias"}
"""What the first files of BERT call the tensors of its norms."""


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
