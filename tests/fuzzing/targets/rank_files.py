"""Files of GLM's model-parallel ranks: one alone, and a folder of two."""

from __future__ import annotations

from pathlib import Path

from qformats_glm.ranks.archive import RankFile

from .gguf_files import read_model
from .target import Target, each

__all__ = ["TARGETS"]


def _rank(folder: Path) -> None:
    rank = RankFile(folder / "mp_rank_00_model_states.pt")
    each(
        *(
            (lambda name=name, rows=(entry.shape or (1,))[0]: rank.read(name, 0, rows))
            for name, entry in rank.entries.items()
        )
    )


TARGETS = (
    Target("rank", _rank, file="mp_rank_00_model_states.pt"),
    Target("ranks", read_model, weights={".pt": 3, "latest": 1, ".json": 3}, heavy=True),
)
