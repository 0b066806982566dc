"""A page for each family of formats: names, what is stored, and where each code lies."""

from __future__ import annotations

from pathlib import Path

from pages import bytemap
from qformats.interfaces import Packer

__all__ = ["family_pages"]

EXAMPLE = (4096, 4096)
DOCS = Path(__file__).resolve().parents[2] / "docs"


def family_pages(generated: str) -> dict[str, str]:
    """Text of every page by its name in docs/."""
    from qformats.registry import Registry

    registry = Registry()
    families: dict[str, list[Packer]] = {}
    for packer in registry.formats():
        families.setdefault(packer.spec.family, []).append(packer)
    return {f"formats/{name}.md": _page(name, packers, generated) for name, packers in families.items()}


def _page(family: str, packers: list[Packer], generated: str) -> str:
    guide = f"[More about {family}](../{family}.md), [all formats](../formats.md)."
    if not (DOCS / f"{family}.md").is_file():
        guide = "[All formats](../formats.md)."
    sources = sorted({packer.spec.source for packer in packers if packer.spec.source})
    lines = [
        generated,
        f"# The formats of `{family}`",
        "",
        "`N` is out_features (rows), `K` in_features (columns); `/` rounds up. Bits per weight and bytes are those of a",
        "matrix of 4096 x 4096. Everything on this page is read from the formats' descriptors, or measured with the code that",
        f"packs them. {guide}",
        "",
    ]
    if sources:
        lines += [f"Byte layouts are those of {', '.join(f'`{source}`' for source in sources)}.", ""]
    lines += [
        "| format | bits per weight | one scale per | use | level | at least, dB | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for packer in packers:
        spec = packer.spec
        size = {0: "row", 1: "-"}.get(spec.block_size, str(spec.block_size))
        floor = "" if spec.sqnr_floor_db is None else f"{spec.sqnr_floor_db:g}"
        use = "read, write" if packer.writable else "read"
        lines.append(
            f"| `{spec.name}` | {spec.bits_per_weight:.4g} | {size} | {use} | {spec.level} | {floor} | {spec.summary} |"
        )
    lines += [
        "",
        "*At least*: the signal-to-noise ratio that the format's own rounding of normally distributed weights must reach,",
        "which [`qformats check`](../testing.md) measures.",
    ]
    for packers_of_one in _alike(packers):
        lines += ["", *_section(packers_of_one)]
    return "\n".join(lines) + "\n"


def _alike(packers: list[Packer]) -> list[list[Packer]]:
    """Formats that store their codes in the same way, together."""
    groups: dict[tuple[object, ...], list[Packer]] = {}
    for packer in packers:
        fields = tuple((field.name, field.dtype, len(field.shape)) for field in packer.spec.fields)
        # One for a block: what differs only in the size of blocks is laid out alike.
        key = (fields, _strip(packer), packer.spec.bits, packer.spec.kernel and packer.spec.kernel.mode)
        groups.setdefault(key, []).append(packer)
    return list(groups.values())


def _section(packers: list[Packer]) -> list[str]:
    first = packers[0]
    names = ", ".join(f"`{packer.spec.variant}`" for packer in packers)
    lines = [f"## {names}", ""]
    if strip := _strip(first):
        lines += ["One block, bytes from left to right:", "", "```text", strip, "```"]
    else:
        lines += [f"Stored for a weight `[N, K]`, here in `{first.spec.variant}`:", ""]
        lines += ["| tensor | dtype | shape | meaning | bytes |", "| --- | --- | --- | --- | --- |"]
        for field in first.spec.fields:
            shape = f"({', '.join(field.shape)})"
            count = f"{field.nbytes(*EXAMPLE):,}"
            lines.append(f"| `{field.name}` | {field.dtype} | `{shape}` | {field.unit} | {count} |")
    if first.grid is not None:
        lines += ["", f"Values: {_values(first)}."]
    codes = bytemap.table(first)
    if codes:
        lines += ["", "Where the codes are:", "", *codes]
    return lines


def _values(packer: Packer) -> str:
    """How a code becomes a number."""
    grid = packer.grid
    codebook = getattr(grid, "codebook", None)
    if codebook is not None:
        return f"`scale * table[code]`, with the table {', '.join(f'{level:.6g}' for level in codebook)}"
    kind = getattr(grid, "kind", "")
    levels = "" if grid is None else f", {grid.levels} codes"
    if kind == "minimum":
        return f"`scale * code + minimum`{levels}"
    if kind == "zero_point":
        return f"`scale * (code - zero_point)`{levels}"
    return f"`scale * (code - {getattr(grid, 'center', 'zero')})`{levels}"


def _strip(packer: Packer) -> str:
    """The fields of a block side by side, where the format's type says what a block is made of."""
    fields = getattr(getattr(packer, "type", None), "fields", ())
    block = getattr(getattr(packer, "type", None), "block_bytes", 0)
    if len(fields) < 2:
        return ""
    sizes = {"8": 1, "6": 2, "2": 4, "4": 8}
    labels, starts, at = [], [], 0
    for name, dtype, count in fields:
        labels.append(f" {name} {dtype}{f' x {count}' if count > 1 else ''} ")
        starts.append(at)
        at += sizes[dtype[-1]] * count
    assert at == block
    top = "".join(f"{start:<{len(label) + 1}}" for start, label in zip(starts, labels, strict=True)) + str(at)
    rule = "+" + "+".join("-" * len(label) for label in labels) + "+"
    return "\n".join([top, rule, "|" + "|".join(labels) + "|", rule])
