"""Arcee's models as GGUF files, and back."""

from pathlib import Path

import qformats


@qformats.hookimpl
def qformats_gguf_register_architectures() -> list[Path]:
    """One file for each architecture."""
    return [Path(__file__).with_name("arcee.toml")]
