"""Text to calibrate on, as tokens of the model."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.calibration.settings import Settings
from qformats.errors import BackendUnavailableError, CheckpointError, ConfigError, Described
from qformats.interfaces.checkpoint import Checkpoint
from qformats.work.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["calibration_text", "check_name", "check_text", "chunks_of", "sample_tokens"]

_LONGEST = 2048
"""Tokens of a piece, if the model takes more and the user does not ask for more."""
_CHUNKS_OF_DATA_SETS = 256
"""Chunks to take of a data set, whose length nobody knows, unless the user says how many."""
_CHARACTERS = 32
"""Most characters per token to tokenize: a large corpus is not tokenized whole."""


def calibration_text(name: str, characters: int) -> str:
    """Text of a file, a data set on the hub, or (empty name) the one that comes with the package.

    Parameters
    ----------
    name : str
        A text file; a ``.jsonl`` file whose objects have a ``text``; or ``owner/name`` of a data set with such a
        column.
    characters : int
        How much of a data set is needed.

    Raises
    ------
    CheckpointError
        If the file cannot be read.
    ConfigError
        If there is neither such a file nor such a data set.
    BackendUnavailableError
        If data sets cannot be fetched.
    """
    if not name:
        return files("qformats").joinpath("demo", "calibration.txt").read_text(encoding="utf-8")
    path = Path(name).expanduser()
    if path.is_file():
        return _file_text(path)
    check_name(name)
    return _hub_text(name, characters)


def check_text(source: Checkpoint, settings: Settings) -> int:
    """Tokens of a piece; refuses what can be told without reading the text.

    Raises
    ------
    ConfigError
        If the text is neither a file nor the name of a data set, or the model does not take pieces of this length.
    """
    from qformats.folder.context import context_limit

    check_name(settings.calibration)
    takes = context_limit(source.config) or _LONGEST
    length = settings.sequence_length or min(takes, _LONGEST)
    if length > takes:
        raise ConfigError("sequence-length", length, f"at most {takes}, the model's limit")
    return length


def check_name(name: str, option: str = "calibration") -> None:
    """Refuse the name of a text that is neither empty, nor that of a file, nor such as data sets on the hub have.

    Raises
    ------
    ConfigError
        If so.
    """
    path = Path(name).expanduser()
    hub = "/" in name and not path.is_absolute() and not name.startswith(".")
    if name and not path.is_file() and (path.exists() or not hub):
        raise ConfigError(option, name, "a text file, or a data set on the hub (owner/name)")


def _file_text(path: Path) -> str:
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix != ".jsonl":
            return content
        return "\n\n".join(json.loads(line)["text"] for line in content.splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"is not UTF-8 text ({error.reason})", "text to calibrate on") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            path, f"has a line that is not an object with a text ({error})", "JSON lines"
        ) from error


def _hub_text(name: str, characters: int) -> str:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        hint = "Install it (pip install datasets), or give a text file"
        raise BackendUnavailableError(
            "datasets", "is not installed, but is needed to fetch data sets", hint
        ) from error
    parts, found = [], 0
    try:
        for row in load_dataset(name, split="train", streaming=True):
            parts.append(str(row["text"]))
            found += len(parts[-1])
            if found >= characters:
                break
    except Exception as error:
        raise ConfigError("calibration", name, f"a data set with a column 'text' ({error})") from error
    return "\n\n".join(parts)


def sample_tokens(source: Checkpoint, settings: Settings, progress: Progress) -> Tensor:
    """Pieces of the calibration text.

    Returns
    -------
    Tensor
        int64, ``(samples, tokens of a piece)``; fewer samples where the text is short.

    Raises
    ------
    ConfigError
        If the text has no whole piece.
    CheckpointError
        If the model has no tokenizer.
    """
    import torch

    from qformats.runtime.prefix import text_prefix

    length = check_text(source, settings)
    wanted = settings.samples * length
    text = calibration_text(settings.calibration, wanted * _CHARACTERS)[: wanted * _CHARACTERS]
    ids = torch.tensor(_tokenizer(source)(text), dtype=torch.int64)
    pieces = len(ids) // length
    if not pieces:
        where = settings.calibration or "the calibration text"
        found = Described(f"{len(ids)} tokens in {where}")
        raise ConfigError("calibration", found, f"{length} or more")
    count = min(settings.samples, pieces)
    if count < settings.samples:
        progress.notice(f"the calibration text has {count} pieces of {length} tokens, not {settings.samples}")
    # Spread over the text; the seed moves each piece within its share of it.
    share = len(ids) // count
    generator = torch.Generator().manual_seed(settings.seed)
    shift = torch.randint(0, share - length + 1, (count,), generator=generator).tolist()
    cut = torch.stack([ids[i * share + shift[i] :][:length] for i in range(count)])
    prefix = torch.tensor(text_prefix(source)[:length], dtype=torch.int64)
    cut[:, : len(prefix)] = prefix
    return cut


def chunks_of(source: Checkpoint, name: str, size: int, most: int | None) -> Tensor:
    """A text from its beginning on, cut as llama.cpp cuts it; what is left at the end is not used.

    Parameters
    ----------
    source : Checkpoint
        The model.
    name : str
        See :func:`calibration_text`.
    size : int
        Tokens of a chunk.
    most : int, optional
        Chunks at most; all of a file by default, and 256 of a data set.

    Returns
    -------
    Tensor
        int64, ``(chunks, size)``. Ids that precede every text take the place of each chunk's first ones.

    Raises
    ------
    ConfigError
        If the text has no whole chunk.
    CheckpointError
        If the model has no tokenizer, or the file cannot be read.
    """
    import torch

    from qformats.runtime.prefix import beginning_of
    from qformats.runtime.tokenizer import tokenizer

    characters = (most or _CHUNKS_OF_DATA_SETS) * size * _CHARACTERS
    text = calibration_text(name, characters)
    # llama.cpp's tools drop the end of a file's last line.
    text = text.removesuffix("\n") if most is None else text[:characters]
    turned = tokenizer(source)

    def ids(part: str, special: bool = False) -> list[int]:
        return list(turned(part, add_special_tokens=special, verbose=False)["input_ids"])

    beginning = beginning_of(source, ids)
    found = torch.tensor(beginning + ids(text), dtype=torch.int64)
    count = len(found) // size if most is None else min(most, len(found) // size)
    if not count:
        told = Described(f"{len(found)} tokens in {name or 'the calibration text'}")
        raise ConfigError("text", told, f"{size} or more, a whole chunk")
    cut = found[: count * size].view(count, size).clone()
    cut[:, : len(beginning)] = torch.tensor(beginning[:size], dtype=torch.int64)
    return cut


def _tokenizer(source: Checkpoint) -> Any:
    """Callable that turns text into a list of ids."""
    from qformats.runtime.tokenizer import tokenizer

    turned = tokenizer(source)
    return lambda text: turned(text, add_special_tokens=False, verbose=False)["input_ids"]
