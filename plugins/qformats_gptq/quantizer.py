"""The quantizer ``gptq``: for every format that has a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats import Checkpoint, Packer, QuantizedTensor, Quantizer
from qformats.calibration import OPTIONS, Layer, Moments, Rounded, Settings, calibrate
from qformats.errors import ConfigError
from qformats.interfaces import Option, number, switch

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.work.progress import Progress
    from qformats_gptq.algorithm import Method

__all__ = ["GPTQ"]


class GPTQ(Quantizer):
    """Rounds each column of a weight so that it makes up for the errors of those before it, by calibration on text."""

    name = "gptq"
    summary = "calibrated on text to change each layer's output least (GPTQ), for any format"
    prepares = True
    options = (
        *OPTIONS,
        Option("damping", "share of its mean to add to the Hessian's diagonal (0.01)"),
        Option("act-order", "start with the columns whose inputs are largest: yes or no (yes)"),
        Option("search", "search for the best range of every block: yes or no (yes)"),
        Option("rounds", "how often to fit scales to codes and choose codes again (4)"),
        Option(
            "correct",
            "compensate for the errors of earlier layers: yes or no (yes); doubles the runs of the model",
        ),
    )

    def quantize(self, weight: Tensor, packer: Packer, importance: Tensor | None = None) -> QuantizedTensor:
        """Quantize a weight without calibration: every input counts alone, so there is nothing to make up for."""
        if packer.grid is None:
            raise ConfigError("format", packer.name, "a quantized format")
        return packer.grid.quantize(weight, importance)

    def prepare(
        self,
        source: Checkpoint,
        formats: Mapping[str, Packer],
        work: Path,
        progress: Progress,
    ) -> Checkpoint:
        """Calibrate a model: its blocks' linear layers in their new formats, the rest as it was.

        See :meth:`qformats.Quantizer.prepare`; `work` keeps one file per finished block.

        Raises
        ------
        ConfigError
            If a format shares scales among several rows: they are chosen row by row here.
        """
        for packer in formats.values():
            if packer.grid is not None and packer.grid.block_rows != 1:
                shared = f"{packer.grid.block_rows or 'all'} rows"
                hint = f"Add --quantizer {packer.default_quantizer}"
                raise ConfigError(
                    "quantizer", self.name, f"another for {packer.name}, where {shared} share a scale", hint
                )
        method = _method(self.given)
        return calibrate(
            source,
            formats,
            work,
            Settings.parse(self.given),
            partial(_round, method),
            identity={"quantizer": self.name, "method": repr(method)},
            drift=method.correct,
            progress=progress,
        )


def _method(options: Mapping[str, str]) -> Method:
    from qformats_gptq.algorithm import Method

    return Method(
        damping=number(options, "damping", 0.01, 1e-6, 1.0, whole=False),
        reorder=switch(options, "act-order", True),
        search=switch(options, "search", True),
        rounds=number(options, "rounds", 4, 0, 100),
        correct=switch(options, "correct", True),
    )


def _round(
    method: Method, layers: Sequence[Layer], moments: Moments, tell: Callable[[str], None]
) -> Iterator[Rounded]:
    """What :func:`qformats.calibration.calibrate` calls for layers with one input."""
    from qformats_gptq.algorithm.hessian import factor
    from qformats_gptq.algorithm.layer import solve_layer

    if not layers:
        return
    hessian = factor(moments.release(), method.damping, reorder=method.reorder)
    if hessian.damping > method.damping:
        tell(
            f"damping raised from {method.damping:g} to {hessian.damping:g} for {layers[0].name}: "
            "its inputs are linearly dependent; more samples may help"
        )
    for layer in layers:
        grid: Any = layer.packer.grid
        found = solve_layer(layer.weight, grid, hessian, method, moments.drift)
        yield Rounded(found.quantized, found.loss, found.signal, hessian.damping)
