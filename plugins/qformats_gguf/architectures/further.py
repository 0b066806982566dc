"""Blocks after a model's own that predict further tokens, by the names that folders give to their tensors.

Most families count them on (``model.layers.{n}``); Qwen3-Next has ``mtp.layers.0``, and what is around that block
beside it. Transformers' classes have neither. In GGUF they are blocks like others, with some tensors more
(``nextn.*``).

Source: llama.cpp:conversion/{glm,qwen}.py, llama.cpp:src/models/{glm4-moe,deepseek2,qwen3next}.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qformats.folder import predicts

__all__ = ["PREDICTING", "REQUIRED", "in_block"]

PREDICTING = "predicting"
"""What the table calls the kind of tensors that only such blocks have."""
REQUIRED = ("eh_proj", "enorm", "hnorm")
"""Those of them that llama.cpp needs; in place of others it takes the model's own."""
_AROUND = {
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
}
_WITHIN = re.compile(r"(?:model\.)?mtp\.layers\.(\d+)\.(.+)")
_BESIDE = re.compile(rf"(?:model\.)?mtp\.({'|'.join(_AROUND)})\.(weight|bias)")


def in_block(name: str, blocks: int, config: Mapping[str, Any]) -> str | None:
    """Name as a tensor of a block after the last one; None if it belongs to the model itself.

    Parameters
    ----------
    name : str
        Of a tensor of a folder.
    blocks : int
        That the model itself has.
    config : mapping
        config.json, which tells how many such blocks there are, if they are counted on.

    Examples
    --------
    >>> from qformats_gguf.architectures.further import in_block
    >>> in_block("mtp.layers.0.self_attn.q_proj.weight", 48, {}), in_block("mtp.fc.weight", 48, {})
    ('model.layers.48.self_attn.q_proj.weight', 'model.layers.48.eh_proj.weight')
    """
    within, beside = _WITHIN.fullmatch(name), _BESIDE.fullmatch(name)
    if within is not None:
        return f"model.layers.{blocks + int(within[1])}.{within[2]}"
    if beside is not None:
        return f"model.layers.{blocks}.{_AROUND[beside[1]]}.{beside[2]}"
    return name if predicts(name, config) else None
