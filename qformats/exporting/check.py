"""Whether an export keeps every value: settled before anything is written."""

from __future__ import annotations

from collections.abc import Mapping

from qformats.errors import InexactExportError
from qformats.exact import Answer
from qformats.exporting.fill import Slice, in_slices, slices_of, source_bytes
from qformats.exporting.plan import Plan
from qformats.exporting.transcode import why_not
from qformats.work.progress import Progress

__all__ = ["check_exact", "require_exact"]


def check_exact(plan: Plan, workers: int, progress: Progress) -> dict[int, str]:
    """Read every tensor that needs the data, once, and find out why it cannot keep its values.

    Returns
    -------
    dict of int to str
        Reason by index of the tensor, empty if it can; for tensors of which the plan says `Answer.DATA`.
    """
    found = {i: "" for i, tensor in enumerate(plan.tensors) if tensor.exact is Answer.DATA}
    pieces = [piece for piece in slices_of(plan) if piece.tensor in found]

    def work(piece: Slice) -> str:
        if found[piece.tensor]:
            # One slice that cannot is enough.
            return ""
        tensor = plan.tensors[piece.tensor]
        return why_not(tensor.source.read(piece.start, piece.stop), tensor.packer)

    progress.start("checking", sum(source_bytes(plan, piece) for piece in pieces))
    with in_slices(plan, work, pieces, workers) as looked_at:
        for piece, reason in looked_at:
            found[piece.tensor] = found[piece.tensor] or reason
            progress.advance(source_bytes(plan, piece))
    return found


def require_exact(
    plan: Plan, workers: int, progress: Progress, settled: Mapping[int, str] | None = None
) -> None:
    """Refuse an export that would change a value.

    Parameters
    ----------
    plan : Plan
        The export.
    workers : int
        Threads.
    progress : Progress
        Receives progress reports.
    settled : mapping of int to str, optional
        What :func:`check_exact` has found already.

    Raises
    ------
    InexactExportError
        Naming the tensors and the reasons.
    """
    wrong: Mapping[int, str] = {i: t.reason for i, t in enumerate(plan.tensors) if t.exact is Answer.NEVER}
    # What the plan knows needs no reading; counting the others is not worth it.
    complete = not wrong or all(t.exact is not Answer.DATA for t in plan.tensors)
    if not wrong:
        settled = check_exact(plan, workers, progress) if settled is None else settled
        wrong = {i: reason for i, reason in settled.items() if reason}
    if wrong:
        reasons = {plan.tensors[i].name: reason for i, reason in wrong.items()}
        raise InexactExportError(str(plan.source.path), plan.recipe.format, reasons, complete)
