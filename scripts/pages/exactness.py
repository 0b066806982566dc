"""What is exact into what, and what is supported: the answers that a plan gives, for every two formats."""

from __future__ import annotations

from qformats.exact import Answer
from qformats.interfaces import Packer

__all__ = ["exact_page", "support_table"]

SHAPE = (4096, 4096)
MARKS = {Answer.ALWAYS: "yes", Answer.DATA: "data", Answer.NEVER: ""}


def _quantized() -> list[Packer]:
    from qformats.registry import Registry

    return [packer for packer in Registry().formats() if packer.quantizes and packer.spec.level]


def _answer(source: Packer, target: Packer) -> Answer:
    if source.spec.name == target.spec.name:
        return Answer.ALWAYS
    return target.foresee(source, SHAPE)[0]


def _answers(packers: list[Packer]) -> dict[tuple[str, str], Answer]:
    written = [packer for packer in packers if packer.writable]
    return {(s.spec.name, t.spec.name): _answer(s, t) for s in packers for t in written}


def _one_of_each(packers: list[Packer]) -> list[Packer]:
    """Without formats that differ from an earlier one only in the size of their blocks."""
    seen = {}
    for packer in packers:
        fields = packer.spec.fields
        stored = tuple(
            (field.name, field.dtype, field.shape if len(fields) == 1 else len(field.shape))
            for field in fields
        )
        kind = (
            getattr(packer.grid, "kind", ""),
            packer.spec.bits,
            "columns reordered" in packer.spec.summary,
        )
        seen.setdefault((packer.spec.family, stored, kind), packer)
    return list(seen.values())


def exact_page(generated: str) -> str:
    """The matrix, and for each format what it is always exact into."""
    packers = _quantized()
    answers = _answers(packers)
    chosen = _one_of_each(packers)
    shown = [packer.spec.name for packer in chosen]
    targets = [packer.spec.name for packer in chosen if packer.writable]
    lines = [
        generated,
        "# What is exact into what",
        "",
        "A row is what a model is in, a column what it becomes. **yes**: every value stays what it is, whatever the model.",
        "**data**: it depends on the numbers; `qformats export --check-exact` reads them and says so for each tensor. Empty:",
        "values are rounded again. The answers are those of a plan for matrices of 4096 x 4096;",
        "[how they are decided](exact.md). From every format into `dense:f32` is exact.",
        "",
        "Of formats that differ only in the size of their blocks the matrix has one; smaller blocks hold what larger ones do, if",
        "their sizes divide. The list below has all of them.",
        "",
        "| from \\ into | " + " | ".join(str(shown.index(target) + 1) for target in targets) + " |",
        "| --- |" + " --- |" * len(targets),
    ]
    for at, source in enumerate(shown, 1):
        cells = (MARKS[answers[source, target]] for target in targets)
        lines.append(f"| {at} `{source}` | " + " | ".join(cells) + " |")
    lines += ["", "## Always exact", "", "| from | into |", "| --- | --- |"]
    for packer in packers:
        name = packer.spec.name
        into = [
            f"`{target}`"
            for (source, target), a in answers.items()
            if source == name != target and a is Answer.ALWAYS
        ]
        lines.append(f"| `{name}` | {', '.join(into) or 'only `dense:f32`'} |")
    return "\n".join(lines) + "\n"


def support_table() -> list[str]:
    """A line for each family: what can be done with its formats."""
    from qformats.registry import Registry

    packers = Registry().formats()
    answers = _answers(_quantized())
    lines = [
        "| family | read | written | any quantizer chooses codes | shared GPU kernel | always exact into some format of |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family in dict.fromkeys(packer.spec.family for packer in packers):
        own = [packer for packer in packers if packer.spec.family == family]
        into = {
            target.split(":")[0]
            for (source, target), answer in answers.items()
            if answer is Answer.ALWAYS and source.split(":")[0] == family and source != target
        }
        counts = (
            len(own),
            sum(packer.writable for packer in own),
            sum(packer.grid is not None and packer.writable for packer in own),
            sum(packer.spec.level == 2 for packer in own),
        )
        cells = [f"{count}" if count else "-" for count in counts]
        exact = ", ".join(sorted(into)) or "`dense:f32`"
        lines.append(f"| [{family}](docs/formats/{family}.md) | " + " | ".join(cells) + f" | {exact} |")
    return lines
