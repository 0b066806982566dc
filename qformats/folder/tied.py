"""Output layers that share their weight with the embedding: what config.json says, and what the tensors say.

Transformers 5 ties an output layer to the embedding only if the files hold one of them, or equal ones: a fine-tuned
model whose two differ keeps both although its config.json says ``tie_word_embeddings: true``. If only the output layer
is stored, it becomes the embedding. Source: ``PreTrainedModel.tie_weights``,
transformers:src/transformers/modeling_utils.py, version 5.23.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from qformats.folder.classes import own_class, without_storage
from qformats.folder.config_class import recorded
from qformats.interfaces.stored import StoredTensor, same_values
from qformats.registry import registry

__all__ = ["Ties", "Untied", "settle_ties"]

_KEY = "tie_word_embeddings"
_HEAD = re.compile(r"(?:^|\.)lm_head\.weight$")
_EMBEDDING = re.compile(
    r"(?:^|\.)(?:embed_tokens|wte|shared|embed_in|tok_embeddings|(?:word_)?embeddings?)\.weight$"
)


@dataclass(frozen=True)
class Untied:
    """Tensors of a folder and its configuration, which agree.

    Attributes
    ----------
    tensors : dict of str to StoredTensor
        Without the copy of a tied weight.
    config : dict
        ``tie_word_embeddings`` is what the tensors say.
    left_out : dict of str to str
        The copy, under every name that it has in the files, and why.
    notes : tuple of str
        What was changed besides.
    """

    tensors: dict[str, StoredTensor]
    config: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Ties:
    """What a configuration ties; Transformers' own class is asked only where config.json leaves it open.

    Parameters
    ----------
    config : mapping
        config.json.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        text = config.get("text_config")
        parts = [config, *([text] if isinstance(text, Mapping) else [])]
        said = [part[_KEY] for part in parts if part.get(_KEY) is not None]
        # Classes of several modalities take it from either place.
        self.said: bool | None = any(said) if said else None
        """What config.json says; None if nothing."""

    @cached_property
    def of_class(self) -> dict[str, str] | None:
        """Parameters that the model's class ties and to which, with this configuration; None if it has no class."""
        return _of_class(self._config)

    @property
    def head(self) -> bool:
        """Whether the output layer is tied to the embedding."""
        if self.said is not None:
            return self.said
        return any(_HEAD.search(name) for name in self.of_class or ())

    def excuse(self, name: str, stored: Iterable[str]) -> bool:
        """Whether a tensor may be missing, because it is tied to one that is stored."""
        if self.said is False:
            return False
        there = set(stored)
        if _HEAD.search(name):
            homes = [other for other in there if _EMBEDDING.search(other)]
            return bool(homes) and self.head
        ties = self.of_class or {}
        twins = {ties.get(name), *(target for target, home in ties.items() if home == ties.get(name, name))}
        return bool(twins & there)


def settle_ties(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Untied:
    """Believe the tensors, not the configuration, about what is tied.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor
        By name; read only if the configuration ties an output layer that is stored.
    config : mapping
        config.json.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.tied import settle_ties
    >>> model = qformats.open("demo")
    >>> told = settle_ties(model.tensors, {**model.config, "tie_word_embeddings": True})
    >>> told.config["tie_word_embeddings"], "lm_head.weight" in told.tensors
    (False, True)
    """
    ties = Ties(config)
    as_it_is = Untied(dict(tensors), dict(config))
    heads = [name for name in tensors if _HEAD.search(name)]
    if len(heads) != 1 or ties.said is False:
        return as_it_is
    head = heads[0]
    homes = [name for name, tensor in tensors.items() if _EMBEDDING.search(name) and len(tensor.shape) == 2]
    if not homes:
        return _made_embedding(as_it_is, head, ties)
    if len(homes) > 1:
        # Encoders and decoders: all of them are kept as they are stored, which is right in any case.
        return as_it_is
    home = homes[0]
    if not same_values(tensors[head], tensors[home]):
        return _kept_apart(as_it_is, head, home, ties)
    if not ties.head:
        return as_it_is
    rest = {name: tensor for name, tensor in tensors.items() if name != head}
    why = f"equal to {home}, to which the configuration ties it"
    return Untied(rest, as_it_is.config, dict.fromkeys(tensors[head].names, why))


def _kept_apart(found: Untied, head: str, home: str, ties: Ties) -> Untied:
    config = {**found.config, _KEY: False}
    text = config.get("text_config")
    if isinstance(text, Mapping) and _KEY in text:
        config["text_config"] = {**text, _KEY: False}
    note = (
        f"config.json ties {head} to {home}, but they differ: both are kept, as in Transformers, and "
        f"{_KEY} becomes false"
    )
    return Untied(found.tensors, config, notes=(note,) if ties.said else ())


def _made_embedding(found: Untied, head: str, ties: Ties) -> Untied:
    """The output layer as the embedding, if only that is stored."""
    home = next((home for name, home in (ties.of_class or {}).items() if name == head), None)
    if home is None or not ties.head:
        return found
    tensors = {
        home if name == head else name: tensor.renamed(home) if name == head else tensor
        for name, tensor in found.tensors.items()
    }
    note = f"{head} is also {home}, which the files lack and to which the configuration ties it"
    return Untied(tensors, found.config, notes=(note,))


def _of_class(config: Mapping[str, Any]) -> dict[str, str] | None:
    told = None if registry().model_for(config) is not None else recorded(config.get("model_type"))
    if told is not None and config.get("architectures") in (None, [], [told.model_class]):
        return dict(told.ties) if told.completed(config)[_KEY] else {}

    import transformers
    from transformers import AutoConfig

    from qformats.work.compat import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config.get("model_type"))
    named = config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    try:
        own = own_class(config)
        parsed = own[0] if own is not None else AutoConfig.for_model(**without_storage(config))
    except Exception:
        # Each configuration class has its own ways of being wrong; what needs a model says so.
        return None
    names = (*classes, *([known] if isinstance(known, str) else []))
    for cls in (own[1],) if own is not None else [getattr(transformers, name, None) for name in names]:
        ties = getattr(cls, "_tied_weights_keys", None)
        if isinstance(ties, Mapping):
            return dict(ties) if getattr(parsed, _KEY, False) else {}
    return None
