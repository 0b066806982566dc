"""Loaders: which files hold a model's tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from qformats.errors import ConfigError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.importance import ColumnSums, Importance
from qformats.interfaces.layout import Assignment, Draft, Layout, OutputFile
from qformats.interfaces.option import Option
from qformats.interfaces.packer import Packer
from qformats.work.guard import Guarded
from qformats.work.shown import Shown

__all__ = ["Loader"]


class Loader(Shown, Guarded, ABC):
    """One container: which files hold a model's tensors, under which names; reads and writes.

    Subclasses set :attr:`name` and :attr:`summary`. Reading yields a :class:`~qformats.Checkpoint` with canonical
    names (those that Transformers' model class uses on disk). Writing happens in three pure steps, all from
    headers: :meth:`draft` the output's tensors, let the framework choose a format for each (asking :meth:`mixes`
    and :meth:`fallback`), :meth:`lay_out` the files. The framework fills and seals them.

    Examples
    --------
    A container that can be read; docs/examples/qformats-npz also writes.

    >>> import qformats, tempfile
    >>> from pathlib import Path
    >>> from qformats import Loader
    >>> class Shouting(Loader):
    ...     name = "shouting"
    ...     summary = "the demo model behind a file of capital letters"
    ...
    ...     def detect(self, path):
    ...         return path.is_file() and path.read_bytes()[:9].isupper()
    ...
    ...     def open(self, path, options):
    ...         return qformats.open("demo")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "model")
    ...     written = path.write_text("THE MODEL")
    ...     Shouting().detect(path), len(Shouting().open(path, {}).tensors)
    (True, 39)
    """

    guarded = (
        *(
            "accepts",
            "detect",
            "open",
            "outline",
            "shapes",
            "draft",
            "joined",
            "mixes",
            "alternatives",
            "room",
        ),
        *("fallback", "lay_out", "finish"),
        *("read_importance", "name_importance", "importance_file"),
    )
    role = "container"

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    options: ClassVar[tuple[Option, ...]] = ()
    suffix: ClassVar[str] = ""
    """File name suffix of a single-file output; empty if outputs are folders."""
    generic: ClassVar[bool] = False
    """Whether :meth:`detect` also accepts containers that a more specific loader may know better."""
    takes_vocabularies: ClassVar[bool] = False
    """Whether it writes the tokenizer of a model that has no tensors, as plain numbers; :meth:`draft` is not called."""
    takes_adapters: ClassVar[bool] = False
    """Whether it writes adapters: then :meth:`draft` may be given an adapter as PEFT saves it."""
    families: ClassVar[tuple[str, ...]] = ()
    """Families whose exports stay in this container if the source is in it."""

    def _shown_facts(self) -> dict[str, str]:
        return {"name": getattr(self, "name", ""), "summary": self.summary}

    def accepts(self, packer: Packer) -> bool:
        """Whether tensors of this format can be written into this container."""
        return packer.container == self.name or packer.family in self.families

    def own_options(self, options: Mapping[str, str]) -> dict[str, str]:
        """Those of the given options that this loader knows."""
        known = {option.name for option in self.options}
        return {name: value for name, value in options.items() if name in known}

    @abstractmethod
    def detect(self, path: Path) -> bool:
        """Whether `path` looks like this container; reads a few bytes at most."""

    @abstractmethod
    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open a model: headers only, no weights.

        Raises
        ------
        CheckpointError
            If a file is missing, truncated or corrupt.
        """

    def outline(self, config: Mapping[str, Any], path: Path) -> Checkpoint | None:
        """A model with this configuration, of which only names and shapes are known; its weights cannot be read.

        Parameters
        ----------
        config : mapping
            ``config.json``.
        path : Path
            Where it was found, for messages.

        Returns
        -------
        Checkpoint or None
            ``None`` if this container holds no such models.
        """
        return None

    def shapes(self, config: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]] | None:
        """Names and shapes of the tensors in a Hugging Face folder, where this container knows such models.

        Asked for a lone ``config.json``, since to ask the model's class takes seconds.

        Parameters
        ----------
        config : mapping
            ``config.json``.

        Returns
        -------
        mapping of str to tuple of int, or None
            Canonical names and shapes; ``None`` if the model's class must tell.
        """
        return None

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """Tensors of an output made from `source`, in output order.

        Raises
        ------
        UnsupportedModelError
            If the container cannot express this model.
        """
        raise ConfigError("container", self.name, "a container that can be written")

    def rank(self, draft: Draft) -> int:
        """Which device of tensor parallelism holds this tensor of an output, from 0; always 0 without it."""
        return 0

    def mixes(
        self, drafts: Sequence[Draft], packer: Packer, source: Checkpoint
    ) -> Mapping[str, tuple[str, str]]:
        """Formats other than the usual one for some tensors, and why; skipped by ``--pure``, and by rules of users.

        Parameters
        ----------
        drafts : sequence of Draft
            Tensors of the output.
        packer : Packer
            The requested format, or mixture of formats.
        source : Checkpoint
            The model.

        Returns
        -------
        mapping of str to (str, str)
            Format and reason, by the name of the draft.
        """
        return {}

    def alternatives(self, draft: Draft, packer: Packer) -> tuple[str, ...]:
        """Formats that a measured mix may give a tensor, whichever its own mix gives it; empty if it has no mixes.

        Parameters
        ----------
        draft : Draft
            The tensor.
        packer : Packer
            The requested format, or mixture of formats.
        """
        return ()

    def room(self, nbytes: int) -> int:
        """Bytes that a tensor of this size takes in a file, with what is left empty behind it."""
        return nbytes

    def fallback(self, draft: Draft, packer: Packer) -> tuple[str, ...]:
        """Formats to try, in order, if `packer` cannot hold this tensor; empty to refuse."""
        return (draft.plain,) if packer.quantizes and draft.plain else ()

    def joined(self, assignments: Sequence[Assignment], source: Checkpoint) -> list[Assignment]:
        """Assignments of the tensors that are written, where readers need several plain ones as one.

        Parameters
        ----------
        assignments : sequence of Assignment
            What :meth:`draft` gave, with formats.
        source : Checkpoint
            The model.
        """
        return list(assignments)

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """Every file of the output, with exact sizes and offsets."""
        raise ConfigError("container", self.name, "a container that can be written")

    @property
    def finishes(self) -> bool:
        """Whether :meth:`finish` has anything to write."""
        return type(self).finish is not Loader.finish

    def finish(self, file: OutputFile, content: memoryview) -> Sequence[tuple[int, bytes]]:
        """Parts of a file that depend on the written weights: checksums, or a directory at its end.

        Called once for each file when everything else in it is written, before it is checked and put in place.

        Parameters
        ----------
        file : OutputFile
            As :meth:`lay_out` has planned it; its size does not change.
        content : memoryview
            The whole file, mapped and read-only.

        Returns
        -------
        sequence of (int, bytes)
            Offset and content of ranges to write. They may lie in the header and in the plan's parts, and nowhere in a
            placement.
        """
        return ()

    # Importance matrices, for containers that have a file format for them.

    @property
    def writes_importance(self) -> bool:
        """Whether it has a file format for importance matrices."""
        return type(self).importance_file is not Loader.importance_file

    def read_importance(self, path: Path) -> Importance | None:
        """Importance matrix in a file, under the file's own names.

        Returns
        -------
        Importance or None
            ``None`` if the file is not of this kind.

        Raises
        ------
        CheckpointError
            If it is, and is truncated or corrupt.
        """
        return None

    def name_importance(self, importance: Importance, source: Checkpoint) -> dict[str, ColumnSums]:
        """What an importance matrix that :meth:`read_importance` gave says about a model's tensors.

        Parameters
        ----------
        importance : Importance
            Under the names of its file.
        source : Checkpoint
            The model.

        Returns
        -------
        dict of str to ColumnSums
            By canonical name, and by the names in ``source.in_own_names``; what belongs to none of them is left out.
        """
        return {name: sums for name, sums in importance.sums.items() if name in source.tensors}

    def importance_file(self, importance: Importance, source: Checkpoint | None) -> bytes:
        """Content of a file with an importance matrix.

        Parameters
        ----------
        importance : Importance
            Under canonical names if there is a `source`, otherwise under those of the file that it was read from.
        source : Checkpoint or None
            The model that it belongs to.
        """
        raise ConfigError("container", self.name, "a container with a file format for importance matrices")
