"""Front matter of model cards: YAML between two lines of dashes, at the top of a README.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError
from qformats.work.files import refuse_link_out

__all__ = ["front_matter"]

_LARGEST = 1 << 20
"""Bytes of a card that is looked at; the hub shows no longer ones."""


def front_matter(card: Path) -> dict[str, Any]:
    """What a card says about its model; nothing if there is no card, or no front matter.

    Raises
    ------
    CheckpointError
        If the file cannot be read, or its front matter is not YAML with names and values.
    """
    if not card.is_file():
        return {}
    refuse_link_out(card, card.parent)
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    expected = "front matter in YAML, names and values"
    try:
        if card.stat().st_size > _LARGEST:
            raise CheckpointError(card, f"has more than {_LARGEST:,} bytes", "a model card")
        return dict(metadata_load(card) or {})
    except OSError as error:
        raise CheckpointError(card, f"cannot be read ({error.strerror or error})", expected) from error
    except (ValueError, YAMLError, RecursionError) as error:
        raise CheckpointError(card, "has front matter that cannot be read", expected) from error
