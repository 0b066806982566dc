"""A comparison as one page: everything in one file, nothing fetched, readable without its script."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib.resources import files
from pathlib import Path

from qformats.comparing.page.markup import Html, clean, el, join
from qformats.comparing.page.numbers import count
from qformats.comparing.page.sections import sections
from qformats.comparing.report import CompareReport
from qformats.work.writing import check_place, write_text

__all__ = ["page", "write_page"]


def write_page(report: CompareReport, path: str | os.PathLike[str]) -> None:
    """Write a report as an HTML file that needs no other.

    Parameters
    ----------
    report : CompareReport
        What to show.
    path : path
        The file; replaced if it exists, and only by a whole page.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    target = Path(path)
    check_place(target)
    write_text(target, page(report))


def page(report: CompareReport) -> str:
    """The page's text, which depends on the report alone."""
    style, script = _asset("page.css"), _asset("page.js")
    found = sections(report)
    # Nothing may be fetched, and no other script or style may run: whatever a token or a name holds stays text.
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="generator", content=clean(f"qformats {report.version}".strip())),
        # A page without an icon makes browsers ask its server for one.
        el("link", rel="icon", href="data:,"),
        el("title", f"{report.base.name}, compared · qformats"),
        Html(f"<style>{style}</style>"),
    )
    links = [el("li", el("a", section.title, href=f"#{section.key}")) for section in found]
    body = el(
        "body",
        el("a", "Skip to the verdict", href="#verdict", class_="skip"),
        el(
            "header",
            el(
                "div",
                el("p", "qformats compare", class_="overline"),
                el("button", "Dark", type="button", id="theme", hidden=True),
                class_="top",
            ),
            el("h1", _title(report)),
            el("nav", el("ul", *links), aria_label="Sections"),
        ),
        el(
            "main",
            *(
                el(
                    "section",
                    el("h2", section.title, id=f"{section.key}-title"),
                    section.body,
                    id=section.key,
                    aria_labelledby=f"{section.key}-title",
                )
                for section in found
            ),
        ),
        Html(f'<script type="module">{script}</script>'),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _title(report: CompareReport) -> Html:
    return join(el("bdi", report.base.name), f", compared with {count(len(report.models), 'other')}")


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """Hash by which the policy allows an inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
