"""The caches of ``datasets`` and of the hub's client: where a data set's test split lies, if it is there.

``datasets`` keeps Arrow files, ``OWNER___NAME/CONFIG/VERSION/HASH/NAME-test.arrow``; the client keeps the repository's
own files, ``datasets--OWNER--NAME/snapshots/COMMIT/CONFIG/test-00000-of-00001.parquet``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from qformats.comparing.tasks.corpora import DataSet

__all__ = ["cached", "caches"]

_SPLIT = re.compile(r"(^|[-_/])test([-_./]|$)")
_ROWS = (".parquet", ".arrow")


def caches() -> tuple[Path, Path]:
    """Folders of the two caches, as the environment says; they need not exist."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    home = Path(os.environ.get("HF_HOME", HF_HOME)).expanduser()
    hub = Path(HF_HUB_CACHE) if "HF_HOME" not in os.environ else home / "hub"
    return (
        Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser(),
        Path(os.environ.get("HF_HUB_CACHE", hub)).expanduser(),
    )


def cached(data_set: DataSet) -> list[Path]:
    """Files of a data set's test split, in their order; empty if it is in neither cache."""
    arrow, hub = caches()
    return _prepared(arrow, data_set) or _downloaded(hub, data_set)


def _prepared(cache: Path, data_set: DataSet) -> list[Path]:
    """Arrow files that ``datasets`` made; the newest, if it made them several times."""
    wanted = data_set.name.replace("/", "___").lower()
    homes = [folder for folder in _folders(cache) if folder.name.lower() == wanted]
    made = [
        build
        for home in homes
        for config in _folders(home)
        # A hash follows the name where options were given.
        if re.fullmatch(re.escape(data_set.config) + "(-[0-9a-f]{16})?", config.name)
        for version in _folders(config)
        for build in _folders(version)
        if (build / "dataset_info.json").is_file()
    ]
    for build in sorted(made, key=lambda folder: folder.stat().st_mtime, reverse=True):
        found = sorted(file for file in build.glob("*.arrow") if re.search(r"-test(-|\.)", file.name))
        if found:
            return found
    return []


def _downloaded(cache: Path, data_set: DataSet) -> list[Path]:
    """Files of the repository's main revision, or of the only one."""
    home = cache / ("datasets--" + data_set.name.replace("/", "--"))
    snapshots = list(_folders(home / "snapshots"))
    main = home / "refs" / "main"
    if main.is_file():
        commit = main.read_text().strip()
        snapshots.sort(key=lambda folder: folder.name != commit)
    for snapshot in snapshots:
        config = snapshot / data_set.config
        files = sorted(file for file in config.rglob("*") if file.suffix in _ROWS and file.is_file())
        found = [file for file in files if _SPLIT.search(file.relative_to(config).as_posix())]
        if found:
            return found
    return []


def _folders(path: Path) -> Iterator[Path]:
    return (each for each in sorted(path.iterdir()) if each.is_dir()) if path.is_dir() else iter(())
