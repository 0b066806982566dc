"""What headers tell about running a model: asked before anything that takes seconds to import."""

from __future__ import annotations

from typing import Any

from qformats.errors import CheckpointError, Described, UnsupportedModelError
from qformats.folder.classes import embedding_class, runs, without_storage
from qformats.interfaces.checkpoint import Checkpoint

__all__ = ["require_class", "require_tokenizer", "require_weights"]

_VOCABULARIES = ("tokenizer.", "vocab", "ice_text")
"""What names of files with the tokens themselves begin with."""


def require_weights(source: Checkpoint) -> None:
    """Refuse a vocabulary without a model.

    Raises
    ------
    CheckpointError
        If there are no tensors.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.readiness import require_weights
    >>> require_weights(qformats.open("demo"))
    """
    if not source.tensors:
        # Its container may have more to say.
        _ = source.config
        raise CheckpointError(source.path, "holds no tensors (a vocabulary only?)", "a model with weights")


def require_tokenizer(source: Checkpoint) -> None:
    """Refuse a model that cannot turn text into tokens.

    Raises
    ------
    CheckpointError
        If it has no vocabulary.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.readiness import require_tokenizer
    >>> require_tokenizer(qformats.open("demo"))
    """
    content = source.tokenizer_files()
    if not any(name.startswith(("tokenizer", "vocab", "ice_text")) for name in content):
        hint = "use a model whose folder or file includes its tokenizer"
        raise CheckpointError(source.path, "has no tokenizer", "one, to turn text into tokens", hint=hint)
    if not any(name.startswith(_VOCABULARIES) for name in content):
        hint = "Copy the missing file from the model that this one was made from"
        expected = "tokenizer.json, or another vocabulary, beside it"
        raise CheckpointError(source.path, "has only the settings of a tokenizer", expected, hint=hint)


def require_class(source: Checkpoint, purpose: str, *, text: bool = True) -> dict[str, Any]:
    """Refuse a model that there is no code to run for, before anything else is found to be missing.

    Parameters
    ----------
    source : Checkpoint
        The model.
    purpose : str
        What the class is for, for messages: ``"run"``.
    text : bool
        Whether it has to write text: models that make embeddings do not.

    Returns
    -------
    dict
        Its configuration, with a ``model_type``.

    Raises
    ------
    UnsupportedModelError
        If neither Transformers nor a plugin has such a class for this configuration.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder.readiness import require_class
    >>> require_class(qformats.open("demo"), "run")["model_type"]
    'llama'
    """
    config = without_storage(source.config)
    kind = config["model_type"] = str(config.get("model_type") or source.architecture)
    if own := embedding_class(config):
        if text:
            raise UnsupportedModelError(
                f"{source.path}: model to {purpose}",
                Described(f"{own}, which makes embeddings and writes no text"),
                ["a causal language model"],
                "qformats.load_model loads it, and its tensors can be converted and compared",
            )
        return config
    if not runs(config):
        raise UnsupportedModelError(
            f"{source.path}: model to {purpose}",
            kind,
            ["a model type that Transformers, or a plugin, has a causal language model for"],
            "Its tensors can be converted and compared, but there is no code to run them",
        )
    return config
