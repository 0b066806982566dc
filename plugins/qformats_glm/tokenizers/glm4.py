"""GLM-4: ranks of tiktoken, followed by the special tokens of its code."""

from __future__ import annotations

from collections.abc import Mapping

from qformats.errors import CheckpointError
from qformats.vocabularies import byte_level_sections

from .vocabulary import Built

__all__ = ["glm4"]

_SPECIAL = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def glm4(ranks: Mapping[bytes, int], listed: Mapping[int, tuple[str, bool]], file: str) -> Built:
    """Build the tokenizer of a ``tokenizer.model`` in tiktoken's form.

    Parameters
    ----------
    ranks : mapping of bytes to int
        Tokens and their ids.
    listed : mapping of int to (str, bool)
        Text and special flag of the tokens in ``added_tokens_decoder``, by id; if there are none, the usual ones
        follow the ranks.
    file : str
        Name of the file, for messages.

    Raises
    ------
    CheckpointError
        If a token that GLM-4's code needs is missing.
    """
    special = {text: index for index, (text, _) in listed.items()}
    if not special:
        special = {text: len(ranks) + at for at, text in enumerate(_SPECIAL)}
    missing = [text for text in _SPECIAL[:10] if text not in special]
    if missing:
        raise CheckpointError(
            file, f"the list of added tokens lacks {missing[0]}", "the special tokens of GLM-4"
        )
    end = "<|endoftext|>"
    return Built(
        byte_level_sections(ranks, _PATTERN),
        {text: special[text] for text in _SPECIAL if text in special},
        "glm4",
        before=("[gMASK]", "<sop>"),
        roles={"eos_token": end, "pad_token": end},
        ends=(special[end], special["<|user|>"], special["<|observation|>"]),
    )
