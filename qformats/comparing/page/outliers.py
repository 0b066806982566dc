"""The picture of outlier dimensions: a line for each input, a mark for each dimension."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qformats.comparing.page import _asset, _hash
from qformats.comparing.page.markup import Html, clean, el, join
from qformats.work.writing import check_place, write_text

__all__ = ["outlier_page", "write_outlier_page"]

_LEFT, _RIGHT, _LINE, _TOP = 260, 740, 16, 26
"""Where the lines begin, how long they are, and how far apart, in the picture's units."""


def write_outlier_page(report: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a report (``OutlierReport.to_dict()``) as an HTML file that needs no other.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    target = Path(path)
    check_place(target)
    write_text(target, outlier_page(report))


def outlier_page(report: Mapping[str, Any]) -> str:
    """The page's text, which depends on the report alone."""
    style = _asset("page.css")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href="data:,"),
        el("title", f"{report['model']}, outlier dimensions · qformats"),
        Html(f"<style>{style}</style>"),
    )
    told = (
        f"{report['chunks']:,} chunks of {report['chunk_size']:,} tokens of {clean(report['text'])}. A "
        f"mark is a dimension in which an activation reaches {report['threshold']:g}; the darker, the larger the share "
        "of the tokens."
    )
    body = el(
        "body",
        el("header", el("p", "qformats outliers", class_="overline"), el("h1", el("bdi", report["model"]))),
        el("main", el("p", report["verdict"]), el("figure", _picture(report)), el("p", told), _table(report)),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _picture(report: Mapping[str, Any]) -> Html:
    inputs = report["inputs"]
    height = _TOP + _LINE * len(inputs) + 8
    lines = []
    for number, each in enumerate(inputs):
        y = _TOP + _LINE * number
        label = each["name"].removesuffix(".weight")
        middle = y + _LINE // 2
        lines.append(
            el("text", label, x=_LEFT - 8, y=y + 12, text_anchor="end", font_size=11, fill="var(--ink)")
        )
        lines.append(
            el(
                "line",
                x1=_LEFT,
                x2=_LEFT + _RIGHT,
                y1=middle,
                y2=middle,
                stroke="var(--grid)",
                stroke_width=1,
            )
        )
        for outlier in each["outliers"]:
            x = _LEFT + _RIGHT * outlier["dimension"] / each["dimensions"]
            part = 0.35 + 0.65 * outlier["tokens"]
            tip = f"{label}: dimension {outlier['dimension']}, {outlier['tokens']:.1%} of the tokens"
            lines.append(
                el(
                    "rect",
                    el("title", tip),
                    x=f"{x:.1f}",
                    y=y + 2,
                    width=3,
                    height=_LINE - 4,
                    fill="var(--heat)",
                    fill_opacity=f"{part:.2f}",
                )
            )
    axis = el("text", "first dimension to last", x=_LEFT, y=14, font_size=11, fill="var(--soft)")
    return el(
        "svg",
        axis,
        *lines,
        viewBox=f"0 0 {_LEFT + _RIGHT + 8} {height}",
        role="img",
        aria_label="Outlier dimensions",
    )


def _table(report: Mapping[str, Any]) -> Html:
    head = el(
        "tr", *(el("th", name, scope="col") for name in ("input of", "dimensions", "outliers", "share"))
    )
    rows = [
        el(
            "tr",
            el("td", each["name"].removesuffix(".weight")),
            el("td", f"{each['dimensions']:,}"),
            el("td", f"{len(each['outliers']):,}"),
            el("td", f"{each['share']:.2%}"),
        )
        for each in report["inputs"]
    ]
    return el("table", el("thead", head), el("tbody", join(*rows)))
