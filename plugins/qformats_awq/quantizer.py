"""The quantizer ``awq``: for every format that has a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qformats import Checkpoint, Packer, QuantizedTensor, Quantizer
from qformats.calibration import OPTIONS, Layer, Moments, Rounded, Settings, SharedInput, calibrate
from qformats.errors import ConfigError
from qformats.interfaces import Option, number, switch

if TYPE_CHECKING:
    from torch import Tensor

    from qformats.work.progress import Progress
    from qformats_awq.search import Method

__all__ = ["AWQ"]


class AWQ(Quantizer):
    """Scales columns with large inputs up before they are rounded, and what is in front of them down."""

    name = "awq"
    summary = "columns with large inputs are rounded more finely (AWQ), calibrated on text, for any format"
    prepares = True
    options = (
        *OPTIONS,
        Option("grid", "exponents that are tried (20)", metavar="N"),
        Option(
            "duo-scaling", "divide factors by the size of weights too: yes, no or both, as is better (both)"
        ),
        Option("clip", "search for the best range of every block: yes or no (yes)"),
    )

    def quantize(self, weight: Tensor, packer: Packer, importance: Tensor | None = None) -> QuantizedTensor:
        """Quantize a weight without calibration, by the format's rule or the importance that is given."""
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
        """Calibrate a model: its blocks' linear layers scaled and in their new formats, and what is in front of them.

        See :meth:`qformats.Quantizer.prepare`; `work` keeps one file per finished block.
        """
        method = _method(self.given)
        return calibrate(
            source,
            formats,
            work,
            Settings.parse(self.given),
            _rounder(method),
            identity={"quantizer": self.name, "method": repr(method)},
            drift=False,
            progress=progress,
            scale=partial(_choose, method),
        )


def _method(options: Mapping[str, str]) -> Method:
    from qformats_awq.search import Method

    duo = options.get("duo-scaling", "both").strip().lower()
    if duo not in ("yes", "no", "both"):
        raise ConfigError("duo-scaling", duo, "yes, no or both")
    return Method(number(options, "grid", 20, 1, 1000), duo, switch(options, "clip", True))


def _choose(method: Method, shared: SharedInput) -> Tensor | None:
    from qformats_awq.search import choose

    return choose(shared, method)


def _rounder(method: Method) -> Callable[..., Iterator[Rounded]]:
    """What :func:`qformats.calibration.calibrate` calls for layers with one input."""

    def round_layers(
        layers: Sequence[Layer], moments: Moments, tell: Callable[[str], None]
    ) -> Iterator[Rounded]:
        from qformats_awq.ranges import output_error, with_best_ranges

        second = moments.second
        for layer in layers:
            weight, packer = layer.weight, layer.packer
            assert packer.grid is not None
            found = (
                with_best_ranges(weight, packer, second) if method.clip else packer.quantize_reference(weight)
            )
            change = found.dequantize() - weight
            yield Rounded(found, output_error(change, second), output_error(weight, second), 0.0)

    return round_layers
