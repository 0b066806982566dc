"""Tokens that a folder names without an id: Transformers puts them behind all others.

Source: huggingface/transformers:src/transformers/tokenization_utils_tokenizers.py (``TokenizersBackend.__init__``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .added import ROLES, AddedToken, token_text
from .files import TokenizerFiles
from .vocabulary import rows_of, tell_without_rows

__all__ = ["with_unlisted"]


def with_unlisted(
    files: TokenizerFiles,
    config: Mapping[str, Any],
    own: Mapping[str, int],
    listed: Mapping[int, AddedToken],
) -> dict[int, AddedToken]:
    """Give the tokens without an id the ids that Transformers gives them; warn of those beyond the model's rows.

    Parameters
    ----------
    files : TokenizerFiles
        The folder.
    config : mapping
        The model's config.json.
    own : mapping of str to int
        The vocabulary without added tokens.
    listed : mapping of int to AddedToken
        Added tokens that have ids.

    Returns
    -------
    dict of int to AddedToken
        Like `listed`, and the others, all of which are special.

    Raises
    ------
    ConfigError
        If the configured number of rows is invalid.
    """
    known = {*own, *(entry.text for entry in listed.values())}
    texts = [text for text in _in_order(files) if text not in known]
    found = dict(enumerate(texts, 1 + max([*own.values(), *listed], default=-1)))
    rows = rows_of(config)
    beyond = {index: text for index, text in found.items() if 0 < rows <= index}
    tell_without_rows(beyond, rows, files.source)
    return {**listed, **{i: AddedToken(text, special=True) for i, text in found.items() if i not in beyond}}


def _in_order(files: TokenizerFiles) -> list[str]:
    """Texts of named tokens: the usual roles, then the model's own, then those without a role."""
    settings = files.settings()
    usual = [f"{role}_token" for role in ROLES]
    values = [settings.get(key) for key in usual]
    values += [value for key, value in settings.items() if key.endswith("_token") and key not in usual]
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    values += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
    return list(dict.fromkeys(text for value in values if (text := token_text(value))))
