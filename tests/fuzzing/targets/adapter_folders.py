"""Adapters as PEFT saves them, opened and laid out for llama.cpp."""

from __future__ import annotations

from pathlib import Path

from qformats.folder import AdapterCheckpoint
from qformats_gguf.adapters import adapter_drafts, adapter_metadata

from .target import Target, each

__all__ = ["TARGETS"]


def _adapter(folder: Path) -> None:
    adapter = AdapterCheckpoint(folder)
    options = {"base": str(folder / "config.json")}

    def drafts() -> None:
        each(*(draft.source.read for draft in adapter_drafts(adapter, options)))

    each(
        lambda: adapter.architecture,
        drafts,
        lambda: adapter_metadata(adapter, options),
        *(tensor.read for tensor in adapter.tensors.values()),
    )


TARGETS = (
    Target("adapter", _adapter, weights={"adapter_config.json": 4, ".safetensors": 4, ".bin": 4}, heavy=True),
)
