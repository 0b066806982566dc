"""The name of a model in its file, which to llama.cpp is no decoration: it reads special tokens by it.

With "phi-3" or "phi3" in ``general.name`` it removes the spaces after every special token, with "modern-bert" those
before ``[MASK]``; and it does not load a file whose vocabulary lacks one of the tokens that it names.

Source: ggml-org/llama.cpp:src/llama-vocab.cpp (``_set_token_attr``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qformats_gguf.metadata import Keys, Metadata, string
from qformats_gguf.tokenizer.vocabulary import TokenType

__all__ = ["with_safe_name"]

_SPECIAL = {TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED}


@dataclass(frozen=True)
class _Family:
    """Names by which llama.cpp reads some tokens otherwise.

    Attributes
    ----------
    pattern : str
        Regular expression for the part of the name, in any case.
    instead : str
        What stands for it where the tokens are not so.
    flag : str
        What llama.cpp does around these tokens.
    special : bool
        Whether it does so around all special tokens, save those of `tokens` that are false.
    tokens : mapping of str to bool
        Tokens that must be there, and whether it does so around them.
    """

    pattern: str
    instead: str
    flag: str
    special: bool
    tokens: Mapping[str, bool]


_FAMILIES = (
    _Family(
        r"(phi)-?3",
        r"\1 3",
        "rstrip",
        special=True,
        tokens={"</s>": True, "<unk>": False, "<s>": False, "<|endoftext|>": False},
    ),
    _Family(r"(modern)-(bert)", r"\1 \2", "lstrip", special=False, tokens={"[MASK]": True}),
)


def with_safe_name(metadata: Metadata, source: str) -> Metadata:
    """Metadata whose ``general.name`` makes llama.cpp read no token otherwise than the tokenizer does.

    Parameters
    ----------
    metadata : Metadata
        Of a file, tokenizer included.
    source : str
        Where the model comes from, for the warning that another name was written.
    """
    keys = Keys(metadata, source)
    name = given = keys.text("general.name", "")
    for family in _FAMILIES:
        if re.search(family.pattern, name, re.IGNORECASE) and not _as_told(family, keys):
            name = re.sub(family.pattern, family.instead, name, flags=re.IGNORECASE)
    if name == given:
        return metadata
    reason = f"by the name {given!r} llama.cpp would treat tokens otherwise than this tokenizer does"
    warnings.warn(f"{source}: general.name is {name!r}: {reason}", UserWarning, stacklevel=2)
    return metadata | {"general.name": string(name)}


def _as_told(family: _Family, keys: Keys) -> bool:
    """Whether the tokenizer itself does around its tokens what llama.cpp does by the name."""
    tokens = keys.strings("tokenizer.ggml.tokens", [])
    types = keys.integers("tokenizer.ggml.token_type", [])
    ids = {token: index for index, token in enumerate(tokens)}
    if not ids.keys() >= family.tokens.keys():
        return False
    around: set[int] = {i for i, kind in enumerate(types) if kind in _SPECIAL} if family.special else set()
    around |= {ids[token] for token, does in family.tokens.items() if does}
    around -= {ids[token] for token, does in family.tokens.items() if not does}
    own: Collection[int] = keys.integers(f"qformats.tokenizer.{family.flag}", [])
    return around == set(own)
