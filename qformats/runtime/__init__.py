"""Models that run while their weights stay packed."""

from qformats.runtime.linear import PackedLayer, QuantEmbedding, QuantLinear
from qformats.runtime.load import load_model
from qformats.runtime.report import LoadedWeight, LoadReport
from qformats.runtime.tokenizer import tokenizer

__all__ = [
    "LoadReport",
    "LoadedWeight",
    "PackedLayer",
    "QuantEmbedding",
    "QuantLinear",
    "load_model",
    "tokenizer",
]
