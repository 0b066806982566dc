"""A real browser for the page: Debian's Chromium, or another one of its family."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from oracles import absent
from playwright.sync_api import Browser, Page, sync_playwright

__all__ = ["Opened", "launched", "opened"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CONTRAST = """
() => {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 1;
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    // The browser mixes what lies on top of each other, whatever notation its colours are in.
    for (const colour of colours) { brush.fillStyle = colour; brush.fillRect(0, 0, 1, 1); }
    return [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) => v / 255);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = new Map();
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("title, desc, script")) continue;
    const style = getComputedStyle(element);
    const colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const backs = [];
    for (let each = element; each; each = each.parentElement) backs.unshift(getComputedStyle(each).backgroundColor);
    const key = [colour, ...backs].join("|");
    if (found.has(key)) continue;
    const ratio = [luminance(over(["white", ...backs])), luminance(over(["white", ...backs, colour]))];
    const [dark, light] = ratio.sort((a, b) => a - b);
    found.set(key, { text: node.data.trim().slice(0, 40), class: element.className.baseVal ?? element.className,
                     contrast: (light + 0.05) / (dark + 0.05) });
  }
  return [...found.values()];
}
"""
"""Contrast of every colour that visible text has with what is behind it, as WCAG 2 defines it."""


@dataclass
class Opened:
    """A page in the browser, and what went on behind it."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def executable() -> str:
    """Path of the browser; a machine without one skips the test."""
    found = os.environ.get("QFORMATS_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        absent("no Chromium is installed: apt-get install chromium (or set QFORMATS_CHROMIUM to one)")
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    """Start the browser, without a window."""
    path = executable()
    # Chromium's sandbox refuses to be root's, which containers often are.
    arguments = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, file: Path, scheme: str = "light", width: int = 1280, script: bool = True
) -> Iterator[Opened]:
    """Open a file as a reader does who has no network."""
    context = browser.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        java_script_enabled=script,
        reduced_motion="reduce",
        offline=True,
    )
    try:
        seen = Opened(context.new_page())
        seen.page.set_default_timeout(20_000)
        seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        seen.page.on("pageerror", lambda error: seen.complaints.append(f"error: {error}"))
        seen.page.on("request", lambda request: seen.requests.append(request.url))
        seen.page.goto(file.resolve().as_uri())
        yield seen
    finally:
        context.close()
