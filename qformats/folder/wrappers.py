"""Names that wrappers of a model have put parts into: those of compiled, sharded and adapted models."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["unwrapped"]

_ANYWHERE = re.compile(
    r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""Of torch.compile, FSDP, activation checkpointing and DeepSpeed; each wraps a model or parts of it."""
_IN_FRONT = ("module.", "base_model.model.")
"""Of DataParallel and of PEFT, which wrap whole models."""
_TEXT = "language_model."
"""In front of all names of a text model that was cut out of a larger one."""


def unwrapped(names: Collection[str], config: Mapping[str, Any]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Names of a model's tensors without what wrappers have added.

    Parameters
    ----------
    names : collection of str
        As stored.
    config : mapping
        config.json.

    Returns
    -------
    dict of str to str, tuple of str
        Names of the model by stored names, and what was removed. Nothing is removed if two names would become one.

    Examples
    --------
    >>> from qformats.folder.wrappers import unwrapped
    >>> unwrapped(["module.model.norm.weight", "module._orig_mod.lm_head.weight"], {})
    ({'module.model.norm.weight': 'model.norm.weight', 'module._orig_mod.lm_head.weight': 'lm_head.weight'},
    ('_orig_mod.', 'module.'))
    """
    bare = {name: _ANYWHERE.sub("", name) for name in names}
    removed = {f"{part}." for name in names for part in _ANYWHERE.findall(name)}
    flat = "text_config" not in config and "vision_config" not in config
    fronts = (*_IN_FRONT, _TEXT) if flat and "num_hidden_layers" in config else _IN_FRONT
    while front := next((f for f in fronts if bare and all(n.startswith(f) for n in bare.values())), None):
        bare = {name: short.removeprefix(front) for name, short in bare.items()}
        removed.add(front)
    if len(set(bare.values())) < len(bare) or "" in bare.values():
        return {name: name for name in names}, ()
    return bare, tuple(sorted(removed))
