"""Parts of a plan: tensors before and after a format is chosen, and where their bytes go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformats.interfaces.activations import Step
from qformats.interfaces.stored import StoredTensor

if TYPE_CHECKING:
    from qformats.interfaces.packer import Packer

__all__ = ["Assignment", "Draft", "Layout", "OutputFile", "Placement"]


@dataclass(frozen=True)
class Draft:
    """One tensor of an output, before a format is chosen for it.

    Attributes
    ----------
    name : str
        Name in the output.
    source : StoredTensor
        Source of its rows, already permuted or transposed for the output.
    role : str or None
        ``"output"`` or ``"token_embedding"`` for the two tensors that users address by role.
    keep : str or None
        Format of a tensor that is not quantized (norms, biases, ...); ``None`` for those that are.
    why : str
        Reason for `keep`.
    tied : bool
        Whether the token embedding also serves as the output.
    dense_transposed : bool
        Whether the container stores this matrix as ``[in_features, out_features]`` while it is plain numbers.
    cast_along : bool
        Whether a tensor with `keep` still takes the dtype of an export to plain numbers.
    linear : bool
        Whether it is the weight of a linear layer, which readers of a quantized folder expect to be quantized unless
        its configuration says otherwise.
    left_out : str
        Why the output does not hold this tensor, for the plan and the summary; empty for those that are written.
    plain : str or None
        Format of plain numbers in which the container stores the tensor if the one chosen cannot hold it; ``None`` if
        its readers need all such tensors in one format.
    step : Step or None
        What a number for the activations of a module stands for; ``None`` for weights.

    Examples
    --------
    >>> import qformats
    >>> from qformats.interfaces import Draft
    >>> norm = qformats.open("demo").tensors["model.norm.weight"]
    >>> Draft("output_norm.weight", norm, keep="dense:f32", why="a norm").keep
    'dense:f32'
    """

    name: str
    source: StoredTensor
    role: str | None = None
    keep: str | None = None
    why: str = ""
    tied: bool = False
    dense_transposed: bool = False
    cast_along: bool = False
    linear: bool = False
    left_out: str = ""
    plain: str | None = None
    step: Step | None = None


@dataclass(frozen=True)
class Assignment:
    """A draft with the format it gets, and the reason if it is not the requested one.

    `kept` marks tensors that the container never quantizes, which is usual and not worth mentioning; `mixed` those
    whose format is the requested one or the container's choice, and follows from no rule of the user.

    Examples
    --------
    >>> import qformats
    >>> from qformats.interfaces import Assignment, Draft
    >>> head = qformats.open("demo").tensors["lm_head.weight"]
    >>> Assignment(Draft("lm_head.weight", head), qformats.packer("gguf:q8_0"), note="the output layer").packer.name
    'gguf:q8_0'
    """

    draft: Draft
    packer: Packer
    note: str = ""
    kept: bool = False
    mixed: bool = False


@dataclass(frozen=True)
class Placement:
    """Place of one field of one tensor in an output file.

    Attributes
    ----------
    tensor : int
        Index into the assignments.
    field : str
        Local name of the stored field.
    offset, nbytes : int
        Place in the file.

    Examples
    --------
    >>> from qformats.interfaces import Placement
    >>> Placement(tensor=0, field="blocks", offset=4096, nbytes=557056)
    Placement(tensor=0, field='blocks', offset=4096, nbytes=557056)
    """

    tensor: int
    field: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class OutputFile:
    """One file of an output: its exact size, the bytes known from the plan, and where tensors go.

    Attributes
    ----------
    name : str
        File name relative to the output folder, or the final name of a single file.
    size : int
        Exact bytes.
    header : bytes
        Content from offset 0 on; the whole content of a file without tensors.
    placements : tuple of Placement
        Fields to fill in.
    parts : tuple of (int, bytes)
        Offset and content of anything else the plan knows, such as the directory at the end of an archive.

    Examples
    --------
    >>> from qformats.interfaces import OutputFile, Placement
    >>> file = OutputFile("model.bin", 16, header=b"MINE", placements=(Placement(0, "weight", 8, 8),))
    >>> file.size, len(file.header)
    (16, 4)
    """

    name: str
    size: int
    header: bytes = b""
    placements: tuple[Placement, ...] = ()
    parts: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True)
class Layout:
    """Every file of an output.

    Attributes
    ----------
    files : tuple of OutputFile
        For a split model the file that readers open first comes first; it is put in place last.
    folder : bool
        Whether the target is a folder that holds the files, or the files lie beside each other under their names.
    run_with : str
        Command line that uses the result, with ``{target}`` for its path.
    notes : tuple of str
        What was decided besides, for the user: a sentence each, without the full stop.

    Examples
    --------
    >>> from qformats.interfaces import Layout, OutputFile
    >>> Layout((OutputFile("a", 16), OutputFile("b", 4)), folder=True).nbytes
    20
    """

    files: tuple[OutputFile, ...]
    folder: bool
    run_with: str = ""
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Exact bytes of all files."""
        return sum(file.size for file in self.files)
