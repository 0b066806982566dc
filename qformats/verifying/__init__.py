"""Whether a model on disk is whole: its files, its tensors, its vocabulary, and where it comes from."""

from __future__ import annotations

from qformats.verifying.report import Derivation, Finding, VerifyReport
from qformats.verifying.run import verify

__all__ = ["Derivation", "Finding", "VerifyReport", "verify"]
