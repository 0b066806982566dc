"""Outlier dimensions: inputs of linear layers that are far larger than the others, as LLM.int8 counts them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformats.calibration.importance import INCLUDED, run_inputs
from qformats.errors import ConfigError
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.importance import ColumnSums
from qformats.work.progress import Progress

if TYPE_CHECKING:
    pass

__all__ = ["InputOutliers", "OutlierReport", "measure_outliers"]

_NUMBER = re.compile(r"\.(\d+)\.")
"""Of a block, in a canonical name."""
_LAYERS, _POSITIONS = 0.25, 0.06
"""Shares of the layers and of the positions in which a feature is an outlier, by the criterion of LLM.int8's paper
(arXiv 2208.07339, section 4)."""


@dataclass(frozen=True)
class InputOutliers:
    """The input of one matrix.

    Attributes
    ----------
    name : str
        Its canonical name.
    dimensions, tokens : int
        Width of the input, and how often it was seen.
    outliers : mapping of int to float
        Dimensions that reach the threshold anywhere, and at what share of the tokens.

    Examples
    --------
    >>> from qformats.calibration import InputOutliers
    >>> InputOutliers("model.layers.0.mlp.up_proj.weight", 256, 1000, {7: 0.5}).share
    0.00390625
    """

    name: str
    dimensions: int
    tokens: int
    outliers: Mapping[int, float]

    @property
    def share(self) -> float:
        """Share of the dimensions that are outliers."""
        return len(self.outliers) / self.dimensions


@dataclass(frozen=True)
class OutlierReport:
    """Outliers of every input of the matrices in a model's blocks.

    Attributes
    ----------
    model, text : str
        What was measured, on what.
    threshold : float
        Magnitude from which an activation is an outlier.
    chunks, chunk_size : int
        Pieces of the text, and tokens of each.
    width : int
        Dimensions of the hidden states.
    inputs : tuple of InputOutliers
        In the order of the model.

    Examples
    --------
    >>> from qformats.calibration import InputOutliers, OutlierReport
    >>> seen = InputOutliers("model.layers.0.mlp.up_proj.weight", 256, 1000, {7: 0.5})
    >>> OutlierReport("mine", "text.txt", 6.0, 2, 500, 256, (seen,)).features
    {7: (1.0, 0.5)}
    """

    model: str
    text: str
    threshold: float
    chunks: int
    chunk_size: int
    width: int
    inputs: tuple[InputOutliers, ...]

    @property
    def features(self) -> dict[int, tuple[float, float]]:
        """Outlier features of the hidden states by LLM.int8's criterion: shares of blocks and positions of each.

        Of inputs that are as wide as the hidden states, a feature reaches the threshold in at least 25 % of the blocks,
        and there at 6 % of the positions or more on average.
        """
        blocks: dict[str, dict[int, float]] = {}
        for each in self.inputs:
            if each.dimensions != self.width:
                continue
            found = blocks.setdefault(_NUMBER.split(each.name)[1], {})
            for at, part in each.outliers.items():
                found[at] = max(part, found.get(at, 0.0))
        features = {}
        for feature in sorted({at for found in blocks.values() for at in found}):
            shares = [found[feature] for found in blocks.values() if feature in found]
            layers, positions = len(shares) / len(blocks), sum(shares) / len(shares)
            if layers >= _LAYERS and positions >= _POSITIONS:
                features[feature] = (layers, positions)
        return features

    @property
    def verdict(self) -> str:
        """Who can use int8 activations, in a sentence or two."""
        touched = [each for each in self.inputs if each.outliers]
        if not touched:
            return (
                f"No activation reaches {self.threshold:g} on this text: 8-bit activations need no outlier columns, "
                "and LLM.int8 would multiply everything in 8 bits."
            )
        most = max(touched, key=lambda each: each.share)
        count = len(self.features)
        throughout = "is an outlier" if count == 1 else "are outliers"
        return (
            f"The inputs of {len(touched)} of {len(self.inputs)} matrices reach {self.threshold:g}. LLM.int8 keeps "
            f"these columns in 16 bits, at most {most.share:.1%} of an input ({most.name}); programs that round all "
            "activations to 8 bits with one scale for each token lose precision there. "
            f"{count or 'None'} of {self.width:,} features {throughout} throughout the model."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "model": self.model,
            "text": self.text,
            "threshold": self.threshold,
            "chunks": self.chunks,
            "chunk_size": self.chunk_size,
            "verdict": self.verdict,
            "features": [
                {"dimension": at, "layers": layers, "positions": positions}
                for at, (layers, positions) in self.features.items()
            ],
            "inputs": [
                {
                    "name": each.name,
                    "dimensions": each.dimensions,
                    "tokens": each.tokens,
                    "share": each.share,
                    "outliers": [{"dimension": at, "tokens": part} for at, part in each.outliers.items()],
                }
                for each in self.inputs
            ],
        }


def measure_outliers(
    source: Checkpoint,
    text: str = "",
    *,
    threshold: float = 6.0,
    chunks: int | None = None,
    chunk_size: int = 512,
    device: str | None = None,
    compute_dtype: str = "f32",
    activation_memory: int = 2 * 10**9,
    verify: bool = False,
    progress: Progress | None = None,
) -> OutlierReport:
    """Count, for each matrix in a model's blocks, the input dimensions whose activations reach a threshold on a text.

    The model runs once, block by block, as for :func:`~qformats.calibration.measure_importance`, whose arguments and
    errors these are.

    Parameters
    ----------
    source, text, chunks, chunk_size, device, compute_dtype, activation_memory, verify, progress
        See there.
    threshold : float
        Magnitude from which an activation is an outlier; LLM.int8 takes 6.

    Raises
    ------
    ConfigError
        Also if the threshold is not above 0.

    Examples
    --------
    >>> import qformats
    >>> from qformats.calibration import measure_outliers
    >>> report = measure_outliers(qformats.open("demo"), threshold=3.0, chunks=2, chunk_size=32, device="cpu")
    >>> len(report.inputs), report.inputs[0].dimensions, len(report.inputs[0].outliers)
    (28, 256, 0)
    """
    if not 0 < threshold < float("inf"):
        raise ConfigError("threshold", threshold, "a magnitude above 0, such as 6")
    from qformats.calibration.inputs import InputsThatReach

    sums, (count, size) = run_inputs(
        source,
        text,
        lambda block: InputsThatReach(block, threshold),
        chunks=chunks,
        chunk_size=chunk_size,
        device=device,
        compute_dtype=compute_dtype,
        activation_memory=activation_memory,
        verify=verify,
        progress=progress,
    )
    inputs = tuple(_input(name, each) for name, each in sums.items())
    config = source.config.get("text_config") or source.config
    width = int(config.get("hidden_size") or config.get("n_embd") or inputs[0].dimensions)
    return OutlierReport(source.name, text or INCLUDED, threshold, count, size, width, inputs)


def _input(name: str, sums: ColumnSums) -> InputOutliers:
    tokens = int(sums.counts.sum())
    reached = sums.squares.sum(0)
    outliers = {int(at): float(reached[at]) / tokens for at in reached.nonzero()[0]} if tokens else {}
    return InputOutliers(name, int(sums.squares.shape[1]), tokens, outliers)
