"""Linear weights that GPT-2 stores as ``[in_features, out_features]`` (Transformers' Conv1D)."""

from __future__ import annotations

import re

__all__ = ["is_conv1d"]

_CONV1D = {
    "gpt2": re.compile(r"(?:^|\.)h\.\d+\.(?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight$")
}


def is_conv1d(model_type: str, name: str) -> bool:
    """Whether this tensor is transposed on disk."""
    pattern = _CONV1D.get(model_type)
    return pattern is not None and pattern.search(name) is not None
