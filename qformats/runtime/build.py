"""A Transformers model for a checkpoint's configuration, still without weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qformats.errors import Described, QFormatsError, UnsupportedModelError
from qformats.folder.classes import new_model
from qformats.folder.readiness import require_class
from qformats.folder.skeleton import pooler_of, takes_no_pooler
from qformats.interfaces.checkpoint import Checkpoint

__all__ = ["bare_model"]


def bare_model(source: Checkpoint, dtype: torch.dtype, purpose: str) -> Any:
    """The model class of a checkpoint: parameters on the meta device, buffers (rotary tables) real.

    Parameters
    ----------
    source : Checkpoint
        Its configuration tells the class.
    dtype : torch.dtype
        Of the parameters.
    purpose : str
        What the model is for, for messages: ``"run"``.

    Raises
    ------
    UnsupportedModelError
        If neither Transformers nor a plugin has a class for this configuration.
    """
    config = require_class(source, purpose, text=False)
    try:
        with _parameters_on_meta():
            model = new_model(config, dtype=dtype)
            if (
                pooler_of(model.state_dict())
                and not pooler_of(source.tensors)
                and takes_no_pooler(type(model))
            ):
                model.pooler = None
    except QFormatsError:
        raise
    except Exception as error:
        # Each model class has its own ways of being wrong.
        found = Described(
            f"{config['model_type']} ({type(error).__name__}: {' '.join(str(error).split())[:160]})"
        )
        raise UnsupportedModelError(
            f"{source.path}: model to {purpose}",
            found,
            ["a configuration that Transformers can build a model from"],
        ) from error
    return model.requires_grad_(False).eval()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Let modules put their parameters on the meta device, and their buffers where they belong."""
    register = nn.Module.register_parameter

    def on_meta(self: Any, name: str, param: Any) -> None:
        made = None if param is None else nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, made)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
