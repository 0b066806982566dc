"""The tokenizer: whether each of its ids has a row in the model."""

from __future__ import annotations

from typing import Any

from qformats.errors import CheckpointError, QFormatsError, UnsupportedModelError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.registry import registry
from qformats.runtime.tokenizer import tokenizer
from qformats.verifying.collecting import Findings, clause
from qformats.vocabularies import library_failed

__all__ = ["check_vocabulary"]

_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")


def check_vocabulary(source: Checkpoint, findings: Findings) -> str:
    """Compare the tokenizer with the token embedding.

    Returns
    -------
    str
        Why it could not be compared, as a sentence without the full stop; empty if it was.
    """
    rows = _rows(source)
    if rows is None:
        return "The tokenizer was not compared: nothing tells how many tokens the model has"
    for key, value in _special(source):
        if not 0 <= value < rows:
            findings.add("vocabulary", f"{key} is {value}, but the token embedding has {rows:,} rows")
    try:
        files = source.tokenizer_files()
        if not files:
            return "There is no tokenizer"
        ids = _ids(source, files)
    except (CheckpointError, UnsupportedModelError) as error:
        return f"The tokenizer was not compared: {clause(error)}"
    except QFormatsError as error:
        findings.add("vocabulary", clause(error))
        return ""
    beyond = [token for token, number in ids.items() if not 0 <= number < rows]
    if beyond:
        example = max(beyond, key=lambda token: ids[token])
        found = (
            f"the tokenizer has {len(beyond):,} tokens without a row in the token embedding of {rows:,}, such as "
            f"{example!r} ({ids[example]})"
        )
        findings.add("vocabulary", found)
    return ""


def _rows(source: Checkpoint) -> int | None:
    """Rows of the token embedding, of which the container knows which tensor it is."""
    try:
        loader = registry().loader(source.container)
        for draft in loader.draft(source, {}):
            if draft.role == "token_embedding":
                return draft.source.shape[0]
    except QFormatsError:
        # A container that is only read, or a model that it could not write: the configuration may tell.
        pass
    told = _config(source).get("vocab_size")
    return told if isinstance(told, int) and not isinstance(told, bool) and told > 0 else None


def _config(source: Checkpoint) -> dict[str, Any]:
    try:
        return source.config
    except QFormatsError:
        return {}


def _special(source: Checkpoint) -> list[tuple[str, int]]:
    """Ids in the configuration; -1 and absent ones mean none."""
    config = _config(source)
    found = []
    for key in _SPECIAL:
        value = config.get(key)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and not isinstance(each, bool) and each != -1:
                found.append((key, each))
    return found


def _ids(source: Checkpoint, files: dict[str, bytes]) -> dict[str, int]:
    """Every token and its id."""
    if "tokenizer.json" not in files:
        return dict(tokenizer(source).get_vocab())
    from tokenizers import Tokenizer

    try:
        found: dict[str, int] = Tokenizer.from_buffer(files["tokenizer.json"]).get_vocab(
            with_added_tokens=True
        )
    except BaseException as error:
        if not library_failed(error):
            raise
        told = " ".join(str(error).split())[:160]
        raise _Unreadable(f"tokenizer.json cannot be read ({told})") from error
    return found


class _Unreadable(QFormatsError):
    """A tokenizer that its own library does not load."""
