"""A tokenizer built from a vocabulary file: what goes into the files of Transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qformats.vocabularies import added_token, around

__all__ = ["NEVER", "Built"]

NEVER = -1e6
"""Score of pieces of a unigram model that no text is split into: below that of any way to spell their letters."""


@dataclass(frozen=True)
class Built:
    """One tokenizer.

    Attributes
    ----------
    sections : dict
        Sections of tokenizer.json that split text.
    special : dict of str to int
        Tokens that no text contains.
    template : str
        Name of its chat template, empty if it was not made for chat.
    before, after : sequence of str
        Special tokens around every text.
    roles : dict of str to str
        Tokens by role, such as ``"eos_token"``.
    ends : tuple of int
        Ids at which an answer ends, the main one first.
    """

    sections: dict[str, Any]
    special: Mapping[str, int]
    template: str
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    roles: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[int, ...] = ()

    def tokenizer_json(self, more: Mapping[int, tuple[str, bool]]) -> dict[str, Any]:
        """Content of tokenizer.json.

        Parameters
        ----------
        more : mapping of int to (str, bool)
            Text and special flag of tokens that a fine-tune added, by id.
        """
        listed = {index: (text, True) for text, index in self.special.items()}
        added = sorted((dict(more) | listed).items())
        # The tokenizers library counts on from the last token, whatever id a list gives.
        vocabulary = self.sections["model"]["vocab"]
        if isinstance(vocabulary, dict):
            vocabulary |= {text: index for index, (text, _) in added}
        else:
            last = max(index for index, _ in added)
            vocabulary += [(f"\0{index}", NEVER) for index in range(len(vocabulary), last + 1)]
            for index, (text, _) in added:
                vocabulary[index] = (text, vocabulary[index][1])
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added_token(index, text, special=special) for index, (text, special) in added],
            **self.sections,
            "post_processor": around(
                [(text, self.special[text]) for text in self.before],
                [(text, self.special[text]) for text in self.after],
            ),
        }
