"""What Transformers' classes make of a config.json: defaults, other names of keys, tied weights, tensors.

For the types that have a row in an architecture's table this is recorded in ``config_classes.json``, since to import
Transformers takes 4 seconds of a processor. ``scripts/make_config_classes.py`` writes the record, and
``tests/folder/test_config_classes.py`` compares it with the installed Transformers. A version of Transformers other
than the recorded one is asked itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

__all__ = [
    "RECORD",
    "ConfigClass",
    "Recorded",
    "ask",
    "ask_encoders",
    "causal_types",
    "config_class",
    "encoders",
    "layout",
    "recorded",
]

RECORD = Path(__file__).with_name("config_classes.json")
"""Version of Transformers, its classes by model type, and the types that write text or make embeddings."""


@dataclass(frozen=True)
class ConfigClass:
    """Transformers' configuration class of a model type.

    Attributes
    ----------
    defaults : dict of str to object
        Value of every key that the class has and a config.json may leave out.
    aliases : dict of str to str
        Other names of keys, and the keys.
    """

    defaults: dict[str, Any]
    aliases: dict[str, str]

    def completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with the defaults of what it leaves out; other names of a key win, as in Transformers.

        Examples
        --------
        >>> from qformats.folder.config_class import config_class
        >>> config_class("gpt2").completed({"hidden_size": 64})["n_embd"]
        64
        """
        own = {self.aliases[key]: value for key, value in config.items() if key in self.aliases}
        return {**self.defaults, **config, **own}


@dataclass(frozen=True)
class Recorded(ConfigClass):
    """The same, and what is recorded of the causal language model.

    Attributes
    ----------
    model_class : str
        Its name.
    ties : dict of str to str
        Parameters that it ties, and to which, if the configuration says so.
    """

    model_class: str
    ties: dict[str, str]


def config_class(model_type: str) -> ConfigClass:
    """What is recorded of a configuration class, or else what Transformers says.

    Raises
    ------
    KeyError
        If Transformers has no such type.

    Examples
    --------
    >>> from qformats.folder.config_class import config_class
    >>> config_class("llama").defaults["hidden_size"]
    4096
    """
    # Whatever is loaded already costs nothing to ask, and may have been extended by the program.
    known = None if "transformers" in sys.modules else recorded(model_type)
    return known or ask(model_type)


def recorded(model_type: object) -> Recorded | None:
    """What is recorded of a model type, if it is of the Transformers that is installed."""
    found = _of(model_type) if _same_version() else None
    return None if found is None else Recorded(**{f.name: found[f.name] for f in fields(Recorded)})


def layout(model_type: object) -> dict[str, Any] | None:
    """How the names and shapes of a type's tensors follow from its configuration; see :mod:`qformats.folder.shapes`."""
    found = _of(model_type)
    told = None if found is None else found["layout"]
    return None if found is None or told is None else {"model_class": found["model_class"], **told}


def causal_types() -> Collection[str] | None:
    """Model types that Transformers has a causal language model for; None if they are not recorded."""
    types: list[str] = _record()["causal_types"]
    return types if _same_version() else None


def encoders() -> Mapping[str, str]:
    """Types of models whose tokens see all others, and the class of each without a head: it makes embeddings."""
    recorded: dict[str, str] = _record()["encoders"]
    return recorded if _same_version() else ask_encoders()


def ask_encoders() -> dict[str, str]:
    """The same, from the installed Transformers."""
    from qformats.work.compat import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    names: Mapping[str, Any] = MODEL_MAPPING_NAMES
    found = ((kind, names.get(kind)) for kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    return {kind: name for kind, name in sorted(found) if isinstance(name, str)}


def _of(model_type: object) -> dict[str, Any] | None:
    classes: dict[str, dict[str, Any]] = _record()["classes"]
    return classes.get(model_type) if isinstance(model_type, str) else None


@lru_cache(maxsize=1)
def _record() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return content


@lru_cache(maxsize=1)
def _same_version() -> bool:
    try:
        return bool(version("transformers") == _record()["transformers"])
    except PackageNotFoundError:
        # Then nothing can be asked, and the record is the best that is known.
        return True


def ask(model_type: str) -> ConfigClass:
    """What Transformers says about a configuration class.

    Raises
    ------
    KeyError
        If it has no such type.
    """
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[model_type]
    defaults = {
        name: parameter.default
        for name, parameter in signature(cls).parameters.items()
        if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    }
    if is_dataclass(cls):
        defaults |= {f.name: f.default_factory() for f in fields(cls) if f.default_factory is not MISSING}
    return ConfigClass(defaults, dict(cls.attribute_map))
