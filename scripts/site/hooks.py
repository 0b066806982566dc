"""What the site needs beside the pages: files outside docs/ that pages link to, and lists of folders in the menu.

A link such as ``../qformats/interfaces/family.py`` leads to the file in the repository. In the site it leads to a page
with the text of that file, so that nothing has to be looked up elsewhere.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LANGUAGES = {
    ".py": "python",
    ".toml": "toml",
    ".yml": "yaml",
    ".yaml": "yaml",
    ".json": "json",
    ".sh": "bash",
}
FETCHED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^"'> ]+""")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of a folder in the place of ``folder/*`` in the menu, and all others in that of ``*``."""
    named = {page for section in config.nav or [] for pages in section.values() for page in pages}
    others = sorted(path.name for path in DOCS.glob("*.md") if path.name not in named)
    config.nav = [
        {
            title: [page for entry in pages for page in _listed(entry, others)]
            for title, pages in section.items()
        }
        for section in config.nav or []
    ]
    return config


def _listed(entry: str, others: list[str]) -> list[str]:
    if entry == "*":
        return others
    if not entry.endswith("/*"):
        return [entry]
    folder = DOCS / entry.removesuffix("/*")
    pages = sorted([*folder.glob("*.md"), *folder.glob("*/README.md")])
    return [path.relative_to(DOCS).as_posix() for path in pages]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file or folder that a page links to and that is no page itself."""
    for page in [file for file in files if file.is_documentation_page()]:
        for target in LINK.findall(_prose(page.content_string)):
            path = _outside(page.src_uri, target)
            if path is not None and files.get_file_from_path(_address(path)) is None:
                shown = File.generated(config, _address(path), content=_shown(path))
                shown.inclusion = InclusionLevel.NOT_IN_NAV
                files.append(shown)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to files outside to their pages, and show the files of an example below its text."""
    source = page.file.src_uri

    def led(match: re.Match[str]) -> str:
        path = _outside(source, match[1])
        return (
            match[1] if path is None else posixpath.relpath(_address(path), posixpath.dirname(source) or ".")
        )

    parts, last = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [LINK.sub(led, markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    text = "".join([*parts, LINK.sub(led, markdown[last:])])
    if re.fullmatch(r"examples/[^/]+/README\.md", source):
        text += "\n\n## Its files\n" + _files(DOCS / posixpath.dirname(source))
    return text


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that fetches anything from elsewhere when it is read."""
    if found := FETCHED.search(output):
        raise PluginError(
            f"{page.file.src_uri} would fetch {found[0]!r} when it is read; pages need no network"
        )
    return output


def _prose(text: str) -> str:
    return FENCE.sub("", text)


def _outside(source: str, target: str) -> Path | None:
    """The file of the repository that a link leads to, if it is not a file of the site."""
    path = (DOCS / posixpath.dirname(source) / target).resolve()
    if not path.exists() or not path.is_relative_to(ROOT):
        return None  # MkDocs says so
    if path.is_dir() and (path / "README.md").is_file() and path.is_relative_to(DOCS):
        return path / "README.md"
    inside = path.is_relative_to(DOCS) and (path.suffix == ".md" or path.suffix in (".svg", ".png"))
    return None if inside else path


def _address(path: Path) -> str:
    if path.is_relative_to(DOCS) and path.suffix == ".md":
        return path.relative_to(DOCS).as_posix()
    return f"source/{path.relative_to(ROOT).as_posix().replace('.', '_')}.md"


def _shown(path: Path) -> str:
    if path.is_dir():
        return f"# `{path.relative_to(ROOT).as_posix()}/`\n" + _files(path)
    return f"# `{path.relative_to(ROOT).as_posix()}`\n\n{_fenced(path)}"


def _files(folder: Path) -> str:
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in LANGUAGES]
    kept = [p for p in kept if not {"build", "__pycache__"} & set(p.parts) and ".egg-info" not in str(p)]
    return "".join(f"\n### `{path.relative_to(folder).as_posix()}`\n\n{_fenced(path)}\n" for path in kept)


def _fenced(path: Path) -> str:
    return f"````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text(encoding='utf-8').rstrip()}\n````"
