"""Folders that are made on the way to a target, and removed again if nothing comes of it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MadeFolders"]


class MadeFolders:
    """Folders that did not exist before, from the outermost to the innermost.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from qformats.work.made import MadeFolders
    >>> with tempfile.TemporaryDirectory() as place:
    ...     made = MadeFolders()
    ...     made.make(Path(place, "a", "b"))
    ...     print(Path(place, "a", "b").is_dir(), bool(made))
    ...     made.remove()
    ...     print(Path(place, "a").exists())
    True True
    False
    """

    def __init__(self) -> None:
        self._folders: list[Path] = []

    def __bool__(self) -> bool:
        """Whether one was made."""
        return bool(self._folders)

    def make(self, folder: Path) -> None:
        """Make a folder and those that it lies in, where they are missing."""
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            self._folders.append(each)

    def remove(self) -> None:
        """Remove them, as far as they are empty."""
        for folder in reversed(self._folders):
            try:
                folder.rmdir()
            except OSError:
                # It holds the target, or something that was put there meanwhile.
                return
