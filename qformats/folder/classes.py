"""The class that runs a model: a plugin's own, or Transformers'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qformats.folder.config_class import causal_types, encoders
from qformats.registry import registry

__all__ = ["embedding_class", "new_model", "own_class", "runs", "without_storage"]

_NOT_CONFIGURATION = ("quantization_config", "auto_map")
"""Keys of config.json that are about how weights are stored, and about code that is not run."""


def without_storage(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says about the model itself.

    >>> without_storage({"model_type": "llama", "auto_map": {"AutoModel": "code.Model"}})
    {'model_type': 'llama'}
    """
    return {key: value for key, value in config.items() if key not in _NOT_CONFIGURATION}


def own_class(config: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """Configuration and causal language model class that a plugin brings for a config.json; None if none does.

    Raises
    ------
    Exception
        Whatever the configuration's class raises if it does not understand the configuration.

    Examples
    --------
    >>> own_class({"model_type": "llama"}) is None
    True
    """
    found = registry().model_for(config)
    if found is None:
        return None
    parsed = found.config_class().from_dict(without_storage(config))
    parsed._attn_implementation = "eager"
    return parsed, found.model_class()


def runs(config: Mapping[str, Any]) -> bool:
    """Whether there is a causal language model class for a config.json: a plugin's, or Transformers'.

    >>> runs({"model_type": "llama"}), runs({"model_type": "a stranger"})
    (True, False)
    """
    if registry().model_for(config) is not None:
        return True
    known = causal_types()
    if known is None:
        from qformats.work.compat import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return str(config.get("model_type")) in known


def embedding_class(config: Mapping[str, Any]) -> str:
    """Class of Transformers of a model that makes embeddings and writes no text; empty for other models.

    It is one if its configuration names the class without a head, of a type whose tokens see all others.

    >>> embedding_class({"model_type": "bert", "architectures": ["BertModel"]})
    'BertModel'
    >>> embedding_class({"model_type": "llama", "architectures": ["LlamaModel"]})
    ''
    """
    named, kind = config.get("architectures"), config.get("model_type")
    if config.get("is_decoder") or not isinstance(named, list) or not isinstance(kind, str):
        return ""
    own = encoders().get(kind, "")
    return own if own in named else ""


def new_model(config: Mapping[str, Any], **options: Any) -> Any:
    """A new model of a config.json for which :func:`runs` is true, or which :func:`embedding_class` has a class for.

    Parameters
    ----------
    config : mapping
        Of a checkpoint.
    **options
        As ``from_config`` of Transformers' classes takes them: ``dtype``.

    Raises
    ------
    Exception
        Whatever its classes raise if they do not understand the configuration.

    Examples
    --------
    >>> import qformats, torch
    >>> from qformats.folder.classes import new_model
    >>> with torch.device("meta"):
    ...     type(new_model(qformats.open("demo").config)).__name__
    'LlamaForCausalLM'
    """
    own = own_class(config)
    if own is not None:
        parsed, model_class = own
        return model_class._from_config(parsed, **options)
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    known: Any = AutoModel if embedding_class(config) else AutoModelForCausalLM
    return known.from_config(AutoConfig.for_model(**without_storage(config)), **options)
