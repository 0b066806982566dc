"""What was found of a model on disk."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qformats.work.shown import Shown, nbytes

__all__ = ["Derivation", "Finding", "VerifyReport"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes
    ----------
    kind : str
        ``file`` (missing, of another size, not in the record), ``checksum``, ``structure`` (cannot be opened, or
        tensors are missing or unexpected), ``tensor`` (cannot be read, or may be read in another way), ``values`` (NaN
        or infinite numbers or scales), ``codes`` (off the grid of the format), ``vocabulary``, ``source`` (does not
        derive from the source that was given).
    found : str
        What, as a clause.
    file : str
        Where; empty if the whole model is meant.
    tensor : str
        Its name; empty if no tensor is meant.

    Examples
    --------
    >>> from qformats.verifying import Finding
    >>> str(Finding("file", "is missing", file="model-00002-of-00003.safetensors"))
    'model-00002-of-00003.safetensors: is missing'
    """

    kind: str
    found: str
    file: str = ""
    tensor: str = ""

    def __str__(self) -> str:
        place = [self.file] if self.file else []
        place += [f"tensor {self.tensor!r}"] if self.tensor else []
        return ": ".join((*place, self.found))


@dataclass(frozen=True)
class Derivation:
    """How a model follows from its source.

    Attributes
    ----------
    source : str
        Path of what was given.
    identical : bool
        Whether the files of the source are those that were recorded, byte by byte.
    same_bytes : int
        Tensors whose bytes the recipe gives again from this source.
    exact : int
        Those among them that have every value of the source.
    within : int
        Tensors that are not given again without a calibration, and are as close to the source as recorded.
    largest_error : float or None
        Largest relative error of a tensor that is not exact and of which one is recorded.
    """

    source: str
    identical: bool
    same_bytes: int
    exact: int
    within: int
    largest_error: float | None = None


@dataclass(frozen=True, repr=False)
class VerifyReport(Shown):
    """What was looked at, and what is wrong.

    Attributes
    ----------
    path : str
        The model.
    record : str or None
        Name of the record that it was compared with; ``None`` if there is none.
    checksums : bool
        Whether that has checksums.
    files : int
        Files that were looked at.
    nbytes : int
        Bytes of them.
    formats : mapping of str to int
        How many tensors have each format.
    findings : tuple of Finding
        What is wrong; empty if the model is sound.
    notes : tuple of str
        What could not be looked at, and what is worth knowing besides: a sentence each, without the full stop.
    derivation : Derivation or None
        How it follows from its source, if one was given.
    seconds : float
        Wall time.

    Examples
    --------
    >>> import qformats
    >>> report = qformats.verify("demo")
    >>> report.sound, report.formats
    (True, {'dense:bf16': 39})
    """

    path: str
    record: str | None
    checksums: bool
    files: int
    nbytes: int
    formats: dict[str, int]
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    derivation: Derivation | None = None
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    @property
    def tensors(self) -> int:
        """Tensors that were looked at."""
        return sum(self.formats.values())

    def _shown_facts(self) -> dict[str, str]:
        return {
            "path": self.path,
            "verdict": "sound" if self.sound else f"{len(self.findings):,} findings",
            "record": f"compared with {self.record}" if self.record else "no record",
            "tensors": f"{self.tensors:,} tensors",
            "bytes": nbytes(self.nbytes),
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        if self.sound:
            return []
        return [("kind", "finding"), *((each.kind, str(each)) for each in self.findings)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"sound": self.sound, **asdict(self), "tensors": self.tensors}
