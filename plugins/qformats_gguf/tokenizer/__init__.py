"""Tokenizers between Hugging Face folders and GGUF metadata, in both directions.

Four kinds of tokenizer exist on both sides:

=======================  =======================================  ===========================
kind                     Hugging Face                             GGUF
=======================  =======================================  ===========================
byte-level BPE           tokenizer.json, vocab.json + merges.txt  model ``gpt2``, with ``pre``
SentencePiece BPE        tokenizer.model, tokenizer.json          model ``llama``
WordPiece                tokenizer.json, vocab.txt                model ``bert``
SentencePiece unigram    tokenizer.json, sentencepiece.bpe.model  model ``t5``
=======================  =======================================  ===========================
"""

from __future__ import annotations

from .convert import to_gguf
from .rebuild import from_gguf, special_ids

__all__ = ["from_gguf", "special_ids", "to_gguf"]
