"""Files: compared with the record of the export that wrote them."""

from __future__ import annotations

import os

from qformats.errors import CheckpointError
from qformats.exporting.recorded import Record
from qformats.interfaces.checkpoint import Checkpoint
from qformats.verifying.collecting import Findings
from qformats.work.files import refuse_link_out
from qformats.work.progress import Progress

__all__ = ["check_files", "check_strangers"]


def check_files(record: Record, findings: Findings, workers: int, progress: Progress) -> None:
    """Find files that are missing or of another size, and bytes that have changed."""
    whole = []
    for name in record.sizes:
        file = record.file(name)
        try:
            # A record may come from a stranger, and a link beside it lead anywhere.
            refuse_link_out(file, record.target if record.target.is_dir() else record.path)
        except CheckpointError as error:
            findings.add("file", str(error).removeprefix(f"{file}: "), file=_shown(record, name))
            continue
        wrong = record.wrong_sizes([name])
        for each in wrong:
            found = f"{each.found}; expected {each.expected}" if each.expected else each.found
            findings.add("file", found, file=_shown(record, name))
        if not wrong:
            whole.append(name)
    names = {record.file(name): _shown(record, name) for name in whole}
    for each in record.wrong_bytes(whole, sample=False, workers=workers, progress=progress):
        findings.add("checksum", each.found, file=names[each.file], tensor=each.tensor)


def _shown(record: Record, name: str) -> str:
    """Name of a file now; a single one may have been renamed."""
    return record.file(name).name if len(record.sizes) == 1 else name


def check_strangers(record: Record, source: Checkpoint, findings: Findings) -> None:
    """Find files with tensors that the export has not written, but readers take for a part of the model."""
    known = {os.path.realpath(record.file(name)) for name in record.sizes}
    files = dict.fromkeys(tensor.file for tensor in source.tensors.values())
    for file in files:
        if os.path.realpath(file) not in known:
            found = f"holds tensors of the model, although {record.path.name} does not know it"
            findings.add("file", found, file=file.name)
