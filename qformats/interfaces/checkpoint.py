"""A model on disk: its configuration, its tokenizer, and tensors that are read when asked for."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qformats.errors import QFormatsError
from qformats.interfaces.activations import Scheme, Step
from qformats.interfaces.importance import Importance
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import FLOATS
from qformats.work.cards import front_matter
from qformats.work.files import Fingerprint
from qformats.work.guard import Guarded
from qformats.work.shown import Shown, bits, nbytes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "ReplacedTensors"]


class Checkpoint(Shown, Guarded, ABC):
    """A model on disk. Opened by a loader from headers alone; weights stay on disk until read.

    Attributes
    ----------
    path : Path
        What was opened.
    name : str
        What to call the model.
    container : str
        Name of the loader that opened it.
    fingerprint : Fingerprint or None
        Of `files` when it was opened by :func:`qformats.open`.
    tensors : mapping of str to StoredTensor
        By canonical name, in file order.
    left_out : mapping of str to str
        Tensors of the files that are not among `tensors`, by their names there, and why: a copy, a table that every
        reader computes.
    calibration : str
        What a quantizer calibrated its weights on, for reports; empty for a model as it is on disk.
    calibration_sha256 : str
        Of the tokens of that text, for reports.
    decided_by : mapping of str to str
        What else decided weights that a quantizer has prepared, for records: a checksum of its text, threads, device.
    importance : Importance or None
        Importance of the columns of its weights, in an export that was given importance matrices.
    declaration : mapping
        What its folder declares about quantization; empty if it declares nothing.
    declared_by : str
        Family that this is of.
    schemes : tuple of Scheme
        How activations are quantized while the model runs, as its folder declares it.
    steps : mapping of Step to StoredTensor
        Numbers that it keeps for that, under their names in the folder.
    notes : tuple of str
        What was left out or decided when the model was opened, for its user: a sentence each, without the full stop.

    Examples
    --------
    >>> import qformats
    >>> model = qformats.open("demo")
    >>> model.container, model.architecture, model.parameters, len(model.tensors)
    ('huggingface', 'llama', 4983040, 39)
    >>> model.read("model.norm.weight").shape
    torch.Size([256])
    """

    guarded = ("architecture", "config", "tokenizer_files", "files", "metadata", "card", "read")
    role = "model"

    path: Path
    name: str = "model"
    container: str
    fingerprint: Fingerprint | None = None
    tensors: Mapping[str, StoredTensor]
    left_out: Mapping[str, str] = MappingProxyType({})
    calibration: str = ""
    calibration_sha256: str = ""
    decided_by: Mapping[str, str] = MappingProxyType({})
    importance: Importance | None = None
    declaration: Mapping[str, Any] = MappingProxyType({})
    declared_by: str = ""
    schemes: tuple[Scheme, ...] = ()
    steps: Mapping[Step, StoredTensor] = MappingProxyType({})
    notes: tuple[str, ...] = ()

    @property
    @abstractmethod
    def architecture(self) -> str:
        """Name of the architecture in the container (``llama``)."""

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Configuration in the form of Transformers' ``config.json``."""

    @abstractmethod
    def tokenizer_files(self) -> dict[str, bytes]:
        """Tokenizer as the files of a Hugging Face folder, by file name; empty if there is none."""

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that the model was read from; their sizes and times identify the source of an export."""

    @property
    def card(self) -> Mapping[str, Any]:
        """What a model card says about the model in its front matter: license, language, pipeline_tag and the like.

        By default that of the README.md in the model's folder.

        Raises
        ------
        CheckpointError
            If its front matter cannot be read.
        """
        return front_matter(self.path / "README.md") if self.path.is_dir() else {}

    def reading_through(self, wrap: Callable[[StoredTensor], StoredTensor]) -> Checkpoint:
        """The same model, with every tensor of its files read by what `wrap` makes of it.

        A loader that keeps tensors elsewhere than in `tensors` overrides this.
        """
        other = copy.copy(self)
        other.tensors = {name: wrap(tensor) for name, tensor in self.tensors.items()}
        return other

    @property
    def stored_names(self) -> Collection[str]:
        """Name of every tensor in the files.

        An export accounts for each of them: it is written, or left out for a reason. A loader that can leave
        something out when it reads a model overrides this with what the files say.
        """
        return [*self.tensors, *self.left_out]

    @property
    def in_own_names(self) -> Mapping[str, StoredTensor]:
        """Tensors under the container's names, with rows in its order.

        So two files are compared if of one of them nothing else is known. A loader that renames tensors, or moves
        rows, overrides this.
        """
        return self.tensors

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the container says about the model, for people to read."""
        return self.config

    @property
    def parameters(self) -> int:
        """Number of weights in all tensors; indices, masks and packed words of an unknown format are none."""
        integers = self.integers
        return sum(tensor.numel for name, tensor in self.tensors.items() if name not in integers)

    @property
    def integers(self) -> Mapping[str, str]:
        """Plain tensors of whole numbers, by name, and their dtypes: no format says that they mean weights."""
        plain = {name: tensor.stored_packer.dense_dtype for name, tensor in self.tensors.items()}
        return {name: dtype for name, dtype in plain.items() if dtype is not None and dtype not in FLOATS}

    @property
    def nbytes(self) -> int:
        """Stored bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Mean stored bits per weight."""
        return self.nbytes * 8 / max(1, self.parameters)

    def _shown_facts(self) -> dict[str, str]:
        try:
            architecture = self.architecture
        except QFormatsError:
            architecture = "unknown architecture"
        return {
            "name": self.name,
            "architecture": architecture,
            "container": self.container,
            "tensors": f"{len(self.tensors):,} tensors",
            "weights": f"{self.parameters:,} weights",
            "bytes": nbytes(self.nbytes),
            "bits": bits(self.nbytes, self.parameters),
            "path": str(self.path),
        }

    def _shown_rows(self) -> list[tuple[str, ...]]:
        counts = Counter(tensor.stored_format for tensor in self.tensors.values())
        rows: list[tuple[str, ...]] = [("format", "tensors", "weights", "bytes")]
        for name, count in counts.most_common():
            held = [tensor for tensor in self.tensors.values() if tensor.stored_format == name]
            weights, stored = sum(t.numel for t in held), sum(t.nbytes for t in held)
            rows.append((name, f"{count:,}", f"{weights:,}", f"{stored:,}"))
        return rows

    def read(self, name: str) -> Tensor:
        """Values of one tensor.

        Returns
        -------
        Tensor
            float32, the tensor's shape.
        """
        return self.tensors[name].dequantize()


class ReplacedTensors(Checkpoint):
    """A model with some tensors different from those in its files: quantized already, or with something added.

    Parameters
    ----------
    source : Checkpoint
        The model as it is.
    replaced : mapping of str to StoredTensor
        Tensors that replace the source's, by canonical name.
    calibration : str
        What they were calibrated on, such as ``"128 x 2,048 tokens of corpus.txt"``.

    Examples
    --------
    >>> import qformats
    >>> from qformats.interfaces import ReplacedTensors
    >>> model = qformats.open("demo")
    >>> renamed = model.tensors["lm_head.weight"]
    >>> ReplacedTensors(model, {"model.embed_tokens.weight": renamed}).read("model.embed_tokens.weight").shape
    torch.Size([2048, 256])
    """

    def __init__(
        self, source: Checkpoint, replaced: Mapping[str, StoredTensor], calibration: str = ""
    ) -> None:
        self.source = source
        self.path, self.name, self.container = source.path, source.name, source.container
        self.tensors = {
            name: replace(replaced[name], names=replaced[name].names | tensor.names)
            if name in replaced
            else tensor
            for name, tensor in source.tensors.items()
        }
        self.left_out, self.notes = source.left_out, source.notes
        self.declaration, self.declared_by = source.declaration, source.declared_by
        self.schemes, self.steps = source.schemes, source.steps
        self.fingerprint = source.fingerprint
        self.calibration = calibration or source.calibration
        self.calibration_sha256 = source.calibration_sha256
        self.decided_by = source.decided_by
        self.importance = source.importance

    @property
    def architecture(self) -> str:
        """The source's."""
        return self.source.architecture

    @cached_property
    def config(self) -> dict[str, Any]:
        """The source's."""
        return self.source.config

    def tokenizer_files(self) -> dict[str, bytes]:
        """The source's."""
        return self.source.tokenizer_files()

    @property
    def files(self) -> list[Path]:
        """The source's: everything else follows from them."""
        return self.source.files

    @property
    def card(self) -> Mapping[str, Any]:
        """The source's."""
        return self.source.card

    @property
    def stored_names(self) -> Collection[str]:
        """The source's."""
        return self.source.stored_names

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The source's."""
        return self.source.metadata
