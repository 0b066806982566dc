"""The text that models are run on: where it comes from, its tokens, its windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.comparing.report import TextUsed
from qformats.errors import CheckpointError, ConfigError, Described
from qformats.interfaces.checkpoint import Checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["DEMO", "Tokenizer", "Windows", "read_text", "require_window", "windows_of"]

DEMO = "demo"
"""Name of the held-out text that comes with the package; write ``./demo`` for a file of that name."""

_SHORTEST = 4
"""Tokens of a window at least: two halves, and something to score in the second."""


def read_text(name: str) -> tuple[str, str]:
    """What to call a text, and the text.

    Parameters
    ----------
    name : str
        A UTF-8 file, or ``"demo"`` for the held-out text that comes with the package.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or is not UTF-8 text.
    """
    if name == DEMO:
        file = files("qformats").joinpath("demo", "heldout.txt")
        return "the held-out text that comes with qformats", file.read_text(encoding="utf-8")
    path = Path(name).expanduser()
    expected = "a text to run the models on"
    try:
        return str(path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"is not UTF-8 text ({error.reason})", expected) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        hint = f"Give a text file, or {DEMO} for the text that comes with qformats"
        raise CheckpointError(path, f"cannot be read ({reason})", expected, hint=hint) from error


class Tokenizer:
    """Tokenizer of a model.

    Parameters
    ----------
    source : Checkpoint
        The model.

    Raises
    ------
    CheckpointError
        If it has none.
    """

    def __init__(self, source: Checkpoint) -> None:
        from qformats.runtime.tokenizer import tokenizer

        self._tokenizer, self._source = tokenizer(source), source

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text; with `special`, also those that the model expects around it."""
        # Texts are longer than what the model takes: they are cut into windows.
        found = self._tokenizer(text, add_special_tokens=special, verbose=False)
        return list(found["input_ids"])

    def literal(self, text: str) -> list[int]:
        """Ids of a text that holds no special tokens, only their names: ``<unk>`` in a corpus is five characters."""
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        return list(found["input_ids"])

    def text(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @property
    def beginning(self) -> list[int]:
        """Ids that precede every text: those that the model needs, or the tokenizer puts in front, if any."""
        from qformats.runtime.prefix import beginning_of

        return beginning_of(self._source, lambda text, special: self.ids(text, special=special))


@dataclass(frozen=True)
class Windows:
    """A text, cut into windows of tokens as llama.cpp's perplexity tool cuts it.

    Attributes
    ----------
    ids : ndarray
        int64, ``(windows, length)``. Where tokens stand before every text, they take the place of each window's
        first ones.
    content : str
        The text.
    text : TextUsed
        For the report.
    """

    ids: NDArray[np.int64]
    content: str
    text: TextUsed

    @property
    def first(self) -> int:
        """First position whose prediction is scored: the middle, so that every token has half a window before it."""
        return self.text.window_length // 2

    @property
    def scored(self) -> int:
        """Scored positions per window; the last one predicts a token of the next window."""
        return self.text.window_length - 1 - self.first

    def difference(self, tokenizer: Tokenizer) -> int | None:
        """First token of the windows that another tokenizer reads differently; ``None`` if there is none."""
        import numpy as np

        count, length = self.ids.shape
        ids = _cut(self.content, tokenizer, length, count)
        known = min(len(ids), count)
        differ = np.flatnonzero(ids[:known] != self.ids[:known])
        if len(differ):
            return int(differ[0])
        return None if known == count else known * length


def _cut(text: str, tokenizer: Tokenizer, length: int, most: int | None) -> NDArray[np.int64]:
    """Whole windows of a text."""
    import numpy as np

    beginning = tokenizer.beginning
    ids = np.array(beginning + tokenizer.ids(text), np.int64)
    count = len(ids) // length if most is None else min(most, len(ids) // length)
    cut = ids[: count * length].reshape(count, length)
    cut[:, : len(beginning)] = beginning[:length]
    return cut


def require_window(length: int, takes: int | None) -> None:
    """Refuse windows that are too short to score, or longer than what the model takes.

    Raises
    ------
    ConfigError
        If so.
    """
    if length < _SHORTEST:
        raise ConfigError("window", length, f"{_SHORTEST} tokens or more")
    if takes is not None and length > takes:
        raise ConfigError("window", length, f"at most {takes} tokens, the model's limit")


def windows_of(
    text: str, source: str, tokenizer: Tokenizer, length: int, most: int | None, takes: int | None
) -> Windows:
    """Cut a text into windows.

    Parameters
    ----------
    text, source : str
        The text, and what to call it.
    tokenizer : Tokenizer
        The base's.
    length : int
        Tokens per window.
    most : int, optional
        Most windows to use, from the beginning of the text; all by default.
    takes : int, optional
        Tokens that the model takes.

    Raises
    ------
    ConfigError
        If there is no whole window, or the model does not take one.
    """
    require_window(length, takes)
    if most is not None and most < 1:
        raise ConfigError("windows", most, "1 or more")
    ids = _cut(text, tokenizer, length, most)
    count = len(ids)
    if not count:
        found = Described(f"{len(tokenizer.ids(text))} tokens in {source}")
        hint = "give a longer text, or shorter windows (--window)"
        raise ConfigError("text", found, f"{length} or more, a whole window", hint)
    scored = count * (length - 1 - length // 2)
    return Windows(ids, text, TextUsed(source, len(text), ids.size, count, length, scored))
