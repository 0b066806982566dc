"""A tokenizer.json as the tokenizers library runs it."""

from __future__ import annotations

from qformats.vocabularies import using_library

from .files import TokenizerFiles
from .hashes import TEXT

__all__ = ["ids_of_text"]


def ids_of_text(files: TokenizerFiles) -> list[int]:
    """Encode the text by which llama.cpp's converter knows vocabularies, special tokens included.

    Raises
    ------
    CheckpointError
        If the library does not load the file, or fails to encode with it.
    """
    from tokenizers import Tokenizer

    with using_library(files.path("tokenizer.json"), "the tokenizers library cannot use it"):
        tokenizer = Tokenizer.from_buffer(files.bytes("tokenizer.json"))
        # Files of embedding models bring limits of their own.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return list(tokenizer.encode(TEXT).ids)
