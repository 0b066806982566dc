"""What a publisher's run has written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qformats.comparing.report import Estimate, TextUsed
from qformats.exporting import ExportReport
from qformats.work.shown import Shown, nbytes

__all__ = ["PublishReport", "Published"]


@dataclass(frozen=True)
class Published:
    """One output.

    Attributes
    ----------
    name : str
        Its file or folder.
    report : ExportReport
        What was written, tensor by tensor.
    mean_kl, same_top : Estimate or None
        Divergence from the source in nats per token, and share of the tokens for which both expect the same next one;
        ``None`` if there was no text, or it could not be run on it.
    notes : tuple of str
        Why not.
    earlier : bool
        Whether an earlier run, that was interrupted, had written it.
    """

    name: str
    report: ExportReport
    mean_kl: Estimate | None = None
    same_top: Estimate | None = None
    notes: tuple[str, ...] = ()
    earlier: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "mean_kl": None if self.mean_kl is None else asdict(self.mean_kl),
            "same_top": None if self.same_top is None else asdict(self.same_top),
            "notes": list(self.notes),
            "earlier": self.earlier,
            "report": self.report.to_dict(),
        }


@dataclass(frozen=True, repr=False)
class PublishReport(Shown):
    """A publisher's run, done or planned.

    Attributes
    ----------
    source, folder : str
        Paths.
    name : str
        The model's.
    base_model : str
        Its id on the hub; empty if it is not known.
    outputs : tuple of Published
        In the order of the formats.
    text : TextUsed or None
        The text that divergences were measured on.
    card, checksums : str
        Names of the two files beside the outputs.
    notes : tuple of str
        What else there is to know: a sentence each, without the full stop.
    seconds : float
        Wall time; 0 for a plan.
    """

    source: str
    folder: str
    name: str
    base_model: str
    outputs: tuple[Published, ...]
    text: TextUsed | None
    card: str
    checksums: str
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def nbytes(self) -> int:
        """Exact bytes of all outputs, without their records and the two files beside them."""
        return sum(output.report.file_nbytes for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        own = ("source", "folder", "name", "base_model", "card", "checksums", "seconds")
        return {
            **{key: getattr(self, key) for key in own},
            "nbytes": self.nbytes,
            "text": None if self.text is None else asdict(self.text),
            "notes": list(self.notes),
            "outputs": [output.to_dict() for output in self.outputs],
        }

    def _shown_facts(self) -> dict[str, str]:
        return {
            "folder": self.folder,
            "outputs": f"{len(self.outputs)} formats",
            "bytes": nbytes(self.nbytes),
            "source": f"from {self.source}",
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("file", "bits", "bytes", "mean KL")]
        for output in self.outputs:
            kl = "" if output.mean_kl is None else f"{output.mean_kl.value:.3g}"
            report = output.report
            rows.append((output.name, f"{report.bits_per_weight:.2f}", f"{report.file_nbytes:,}", kl))
        return rows
