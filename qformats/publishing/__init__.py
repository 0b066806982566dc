"""A publisher's run: one model in many formats, written in one read, with a model card and checksums.

Each format is an ordinary export; what is read of the source serves all of them. The files are named as on the Hugging
Face hub.
"""

from __future__ import annotations

from qformats.publishing.plans import plan_all
from qformats.publishing.report import Published, PublishReport
from qformats.publishing.run import Settings, planned, publish

__all__ = ["PublishReport", "Published", "Settings", "plan_all", "planned", "publish"]
