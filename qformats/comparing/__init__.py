"""A model in many formats, side by side: weights, behaviour, speed.

Weights are compared tensor by tensor while they stream by. Behaviour is what the models predict over windows of a text,
scored as llama.cpp's perplexity tool scores it; one model at a time is in memory, and the base's predictions are in a
file. The report is plain data.
"""

from __future__ import annotations

from qformats.comparing.comparison import Settings, compare, require_text
from qformats.comparing.report import CompareReport

__all__ = ["CompareReport", "Settings", "compare", "require_text"]
