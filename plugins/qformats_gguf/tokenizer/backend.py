"""A tokenizer.json as the tokenizers library runs it."""

from __future__ import annotations

from qformats.errors import CheckpointError

from .files import TokenizerFiles
from .hashes import TEXT

__all__ = ["ids_of_text"]


def ids_of_text(files: TokenizerFiles) -> list[int]:
    """Encode the text by which llama.cpp's converter knows vocabularies, special tokens included.

    Raises
    ------
    CheckpointError
        If the library does not load the file.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(files.bytes("tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(
            files.path("tokenizer.json"), f"the tokenizers library cannot load it ({error})"
        ) from error
    # Files of embedding models bring limits of their own.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return list(tokenizer.encode(TEXT).ids)
