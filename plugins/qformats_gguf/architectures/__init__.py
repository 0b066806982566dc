"""Hugging Face models as GGUF architectures: tensor names, row orders, metadata, in both directions.

To add one, write a file: a plain one takes 20 lines and no code (``table/seed_oss.toml``, ``table/olmo2.toml``).
docs/gguf.md says step by step how, and which tests then run by themselves.

=========================================  ========================================================================
where                                      what
=========================================  ========================================================================
``table/``                                 a file for each architecture; ``common.toml`` is what they share
``read.py``                                everything that such a file may say; a file as a `Row`
``schema.py``                              what a `Row` is made of; ``models``, ``tensor_rules``, ``pieces``,
                                           ``orders``, ``metadata_rules`` and ``limits`` are parts of it
``checks.py``, ``derived.py``              the few rules that take code, by the names that files use
``rows.py``, ``find.py``                   all rows, other plugins' too; the one of a model or of a file
``config.py``, ``keys.py``                 a config.json completed, or made from metadata; keys that are refused
``architecture.py``, ``names.py``          a model seen through its row: metadata; names and shapes of its tensors
``rope.py``, ``llama3.py``, ``longrope.py``  rotary embeddings
``windows.py``, ``mixers.py``              layers of several kinds
``further.py``                             blocks that predict further tokens
``multimodal.py``                          the language model beside a vision model
=========================================  ========================================================================
"""

from __future__ import annotations

from qformats_gguf.architectures.architecture import Architecture
from qformats_gguf.architectures.find import supported_models
from qformats_gguf.architectures.limits import Problem
from qformats_gguf.architectures.mapping import TensorMapping
from qformats_gguf.architectures.orders import Permute, Regroup
from qformats_gguf.architectures.pieces import Piece
from qformats_gguf.architectures.size_label import size_label

__all__ = [
    "Architecture",
    "Permute",
    "Piece",
    "Problem",
    "Regroup",
    "TensorMapping",
    "size_label",
    "supported_models",
]
