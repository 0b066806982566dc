"""HTML and SVG as values: whatever is not markup already is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["Html", "Node", "clean", "el", "join", "text"]

_VOID = frozenset({"meta", "link", "br", "hr", "input"})
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff\ufffe\uffff]"
)


class Html(str):
    """Markup that is finished: it is not escaped again."""

    __slots__ = ()


Node: TypeAlias = "Html | str | int | Iterable[Node] | None"
"""What an element may hold; ``None`` holds nothing."""


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    if 0xD800 <= code <= 0xDFFF or code > 0xFFFD:
        return "\ufffd"
    return f"⟨U+{code:04X}⟩"


def clean(value: object) -> str:
    """The text with control characters made visible, so that none of them can reorder or cut the text around it.

    Tokens may hold any of them. Halves of surrogate pairs, which UTF-8 cannot write, become replacement characters.
    """
    return _CONTROL.sub(_visible, str(value))


def text(value: object) -> Html:
    """Escaped text, for content and for attributes in double quotes."""
    return Html(html.escape(clean(value)))


def join(*nodes: Node) -> Html:
    """Several nodes, one after another."""
    parts: list[str] = []
    for node in nodes:
        if node is None:
            continue
        if isinstance(node, Html):
            parts.append(node)
        elif isinstance(node, str | int):
            parts.append(text(node))
        else:
            parts.append(join(*node))
    return Html("".join(parts))


def el(tag: str, /, *children: Node, **attributes: object) -> Html:
    """Build an element.

    Parameters
    ----------
    tag : str
        Its name; never from data.
    *children : Node
        Its content.
    **attributes : object
        By name, where ``_`` stands for ``-`` and a trailing one is dropped (``class_``, ``aria_label``). ``True`` gives
        the name alone; ``None`` and ``False`` leave the attribute out.

    Returns
    -------
    Html
        The element.
    """
    written = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(key if value is True else f'{key}="{text(value)}"')
    opening = f"<{' '.join(written)}>"
    return Html(opening if tag in _VOID else f"{opening}{join(*children)}</{tag}>")
