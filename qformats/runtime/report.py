"""How a checkpoint's weights were loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qformats.runtime.layer import PackedLayer
from qformats.work.shown import Shown, nbytes

__all__ = ["LoadReport", "LoadedWeight", "report_of"]


@dataclass(frozen=True)
class LoadedWeight:
    """One quantized weight of a model.

    Attributes
    ----------
    name : str
        Of the module.
    format : str
        ``family:variant``.
    nbytes : int
        In memory; 0 if it shares the memory of another weight.
    note : str
        How it is used; if not by the shared kernels, why.
    """

    name: str
    format: str
    nbytes: int
    note: str


@dataclass(frozen=True, repr=False)
class LoadReport(Shown):
    """How a checkpoint's weights were loaded.

    Attributes
    ----------
    weights : tuple of LoadedWeight
        Those that the checkpoint holds quantized, in the model's order.
    dense_nbytes : int
        Bytes of everything else.
    """

    weights: tuple[LoadedWeight, ...]
    dense_nbytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of the model in memory."""
        return self.dense_nbytes + sum(weight.nbytes for weight in self.weights)

    def _shown_facts(self) -> dict[str, str]:
        return {
            "weights": f"{len(self.weights):,} quantized weights",
            "formats": ", ".join(dict.fromkeys(weight.format for weight in self.weights)),
            "bytes": nbytes(self.nbytes),
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        return [("used", "weights"), *((note, f"{len(names):,}") for note, names in self.notes.items())]

    @property
    def notes(self) -> dict[str, list[str]]:
        """Names of the weights by how they are used."""
        found: dict[str, list[str]] = {}
        for weight in self.weights:
            found.setdefault(weight.note, []).append(weight.name)
        return found


def report_of(model: Any, decoded: Iterable[LoadedWeight]) -> LoadReport:
    """Report of a model that is loaded.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    decoded : iterable of LoadedWeight
        Weights that were quantized and are not packed any more.
    """
    packed: list[LoadedWeight] = []
    plain: dict[int, int] = {}
    for name, module in model.named_modules():
        held = list(module.parameters(recurse=False))
        if isinstance(module, PackedLayer):
            nbytes = 0 if module.is_tied else module.nbytes
            packed.append(LoadedWeight(name, module.packer.name, nbytes, module.kernel_note))
            # Codes that are a parameter are counted above.
            codes = module._parameters.get("weight")
            held = [parameter for parameter in held if parameter is not codes]
        else:
            held += module.buffers(recurse=False)
        # Tied parameters are one tensor in two places.
        plain |= {id(tensor): tensor.nbytes for tensor in held}
    return LoadReport((*packed, *decoded), sum(plain.values()))
