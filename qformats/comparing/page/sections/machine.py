"""Speed and memory, and how everything was measured."""

from __future__ import annotations

from qformats.comparing.page.markup import Html, Node, el, join
from qformats.comparing.page.numbers import count, decimal, share, size
from qformats.comparing.page.tables import Column, Entry, table
from qformats.comparing.report import CompareReport, ModelResult, SpeedResult

__all__ = ["method", "speed"]


def speed(report: CompareReport) -> Html | None:
    """A table of what was timed; ``None`` if nothing was."""
    timed = [(m, m.speed) for m in (report.base, *report.models) if m.speed is not None]
    if not timed:
        return None
    fastest = max(s.tokens_per_second for _, s in timed) or 1
    columns = [
        Column("Model", "", numeric=False),
        Column("Device", "The device it ran on.", numeric=False),
        Column("Tokens/s", "Generated tokens per second, one sequence at a time."),
        Column("Of most", "Share of what reading the weights once per token allows, at the speed of a copy."),
        Column("Prompt tokens/s", "Tokens per second of a prompt read in one go."),
        Column("Load", "Seconds from opening the files until the model can run."),
        Column("Peak memory", "Most memory taken while it ran."),
    ]
    rows = []
    for m, s in timed:
        share_ = el("rect", width=f"{100 * s.tokens_per_second / fastest:.1f}%", height="100%")
        bar = el("svg", share_, class_="chance", aria_hidden="true")
        rows.append(
            [
                Entry(m.name),
                Entry(s.device),
                Entry(join(bar, decimal(s.tokens_per_second)), s.tokens_per_second),
                _share_of_most(s),
                Entry(decimal(s.prompt_tokens_per_second), s.prompt_tokens_per_second),
                Entry(f"{decimal(s.load_seconds)} s", s.load_seconds),
                Entry(size(s.peak_bytes), s.peak_bytes),
            ]
        )
    return table("On this machine", columns, rows, "speeds")


def _share_of_most(found: SpeedResult) -> Entry:
    most = found.most_tokens_per_second
    if not most:
        return Entry("")
    reached = found.tokens_per_second / most
    return Entry(f"{100 * reached:.0f} %", reached)


def method(report: CompareReport) -> Html:
    """The text, the models and the machine."""
    parts: list[Node] = []
    text = report.text
    if text is not None:
        parts.append(
            el(
                "p",
                f"The text is {text.source}: {count(text.characters, 'character')}, {count(text.tokens, 'token')}. "
                f"It is read in {count(text.windows, 'window')} of {count(text.window_length, 'token')}; the second "
                f"half of each is scored, {count(text.scored, 'token')} in all, as llama.cpp does it, so that the "
                "numbers can be compared with published ones. ± is one standard error.",
            )
        )
    about = [join(el("dt", el("bdi", m.name)), el("dd", _about(m))) for m in (report.base, *report.models)]
    machine = [join(el("dt", key), el("dd", value)) for key, value in report.machine.items() if value]
    if report.version:
        machine.append(join(el("dt", "qformats"), el("dd", report.version)))
    parts += [el("h3", "The models"), el("dl", *about, class_="facts-list")]
    if machine:
        parts += [el("h3", "The machine"), el("dl", *machine, class_="facts-list")]
    return join(*parts)


def _about(model: ModelResult) -> str:
    made = f"made on the fly with {model.quantizer} from" if model.tried else "read from"
    held = ", ".join(f"{name} {share(n, sum(model.formats.values()))}" for name, n in model.formats.items())
    what = f"{made} {model.path} ({model.container}), {count(model.parameters, 'weight')}"
    return f"{what}: {held}." if held else f"{what}."
