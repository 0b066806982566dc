"""Experts of models that stack them on disk (gpt-oss, Llama 4, Granite), as a matrix each, and stacked again.

Such a model has one tensor for a matrix of all experts, or for two of them. Quantized, every matrix is a weight by
itself, under a name of its own; so it is here, whatever holds it. Plain folders are written stacked, as the model's
class reads them.

Names of single matrices are those that other programs write and read: of gpt-oss and Llama 4 what llm-compressor makes
of their experts (llm-compressor:src/llmcompressor/modeling/moe), of Granite what vLLM calls them
(vllm:model_executor/models/granitemoe.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qformats.errors import CheckpointError
from qformats.interfaces.dense import dense
from qformats.interfaces.packer import PackedTensor
from qformats.interfaces.stored import StoredTensor
from qformats.numbers.dtypes import FLOATS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Share",
    "as_listed",
    "is_stack",
    "matrices_of",
    "matrix_shapes",
    "part_of",
    "share_of",
    "shares",
    "stacked",
    "stacked_shapes",
]

_SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class _Layout:
    """How a model stacks its experts.

    Attributes
    ----------
    owner : str
        What the names of its stacks have in front, as the end of a module's name.
    stacks : mapping of str to tuple of str
        Matrices of an expert in each stack, in the order of their rows.
    biases : mapping of str to tuple of str
        The same of their biases.
    turned : bool
        Whether the matrices are ``[in, out]``.
    alternating : bool
        Whether their rows follow each other in turn, and not matrix after matrix.
    """

    owner: str
    stacks: Mapping[str, tuple[str, ...]]
    biases: Mapping[str, tuple[str, ...]]
    turned: bool
    alternating: bool


_GATED = {"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}
_GPT_OSS = _Layout(
    "mlp.",
    _GATED,
    {f"{name}_bias": labels for name, labels in _GATED.items()},
    turned=True,
    alternating=True,
)
_LLAMA4 = _Layout("feed_forward.", _GATED, {}, turned=True, alternating=False)
_GRANITE = _Layout(
    "block_sparse_moe.",
    {"input_linear.weight": ("w1", "w3"), "output_linear.weight": ("w2",)},
    {},
    turned=False,
    alternating=False,
)
_LAYOUTS: Mapping[str, _Layout] = {
    "gpt_oss": _GPT_OSS,
    **dict.fromkeys(("llama4_text", "llama4"), _LLAMA4),
    **dict.fromkeys(("granitemoe", "granitemoeshared", "granitemoehybrid"), _GRANITE),
}
"""By ``model_type``."""


@dataclass(frozen=True)
class Share:
    """Which part of a stack a matrix of an expert is, or its bias.

    Attributes
    ----------
    stack : str
        Name of the stack on disk.
    name : str
        Of the matrix or bias.
    expert : int
        Which one.
    part, parts : int
        Which matrix of the expert, and how many of them the stack holds.
    label : str
        What the matrix is called within an expert.
    turned, alternating : bool
        How matrices lie in the stack.

    Examples
    --------
    >>> from qformats.folder.experts import share_of
    >>> share = share_of("model.layers.0.mlp.experts.3.up_proj.weight", {"model_type": "gpt_oss"})
    >>> share.stack, share.expert, share.part, share.parts
    ('model.layers.0.mlp.experts.gate_up_proj', 3, 1, 2)
    """

    stack: str
    name: str
    expert: int
    part: int
    parts: int
    label: str
    turned: bool
    alternating: bool

    def of(self, expert: Tensor) -> Tensor:
        """Its numbers among those of all matrices of an expert in the stack: a view, ``[out, in]`` or ``[out]``."""
        return part_of(expert, self.part, self.parts, turned=self.turned, alternating=self.alternating)

    def shape(self, expert: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape, by that of all matrices of an expert in the stack."""
        rows, *columns = expert[::-1] if self.turned else expert
        return (rows // self.parts, *columns)

    def whole(self, own: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of :meth:`shape`."""
        rows, *columns = own
        found = (rows * self.parts, *columns)
        return found[::-1] if self.turned else found


def part_of(expert: Tensor, part: int, parts: int, *, turned: bool, alternating: bool) -> Tensor:
    """One of several matrices that are joined in an expert's, or one of their biases: a view.

    Parameters
    ----------
    expert : Tensor
        ``(parts * out, in)``, or ``(in, parts * out)`` if `turned`; ``(parts * out,)`` of biases.
    part, parts : int
        Which one, and of how many.
    turned, alternating : bool
        See :class:`Share`.

    Returns
    -------
    Tensor
        ``(out, in)`` or ``(out,)``.

    Examples
    --------
    >>> import torch
    >>> from qformats.folder.experts import part_of
    >>> part_of(torch.arange(6), 1, 2, turned=False, alternating=True).tolist()
    [1, 3, 5]
    """
    rows = expert.transpose(0, 1) if turned and expert.ndim == 2 else expert
    if alternating:
        return rows[part::parts]
    size = rows.shape[0] // parts
    return rows[part * size : (part + 1) * size]


def _layout(config: Mapping[str, Any]) -> _Layout | None:
    """How the model of this configuration stacks its experts; None if each has tensors of its own, or who knows."""
    text = config.get("text_config")
    kinds = [config.get("model_type"), text.get("model_type") if isinstance(text, Mapping) else None]
    return next((_LAYOUTS[kind] for kind in kinds if isinstance(kind, str) and kind in _LAYOUTS), None)


_STACK = re.compile(r"(?:^|\.)experts\.|(?:^|[._])(?:in|out)put_linear\.weight$")


def is_stack(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor stacks matrices of experts, of whatever model.

    Examples
    --------
    >>> from qformats.folder.experts import is_stack
    >>> is_stack("model.layers.0.mlp.experts.fc1.weight", (4, 64, 96)), is_stack("mixer.conv1d.weight", (96, 1, 4))
    (True, False)
    """
    return len(shape) == 3 and _STACK.search(name) is not None


def shares(name: str, count: int, config: Mapping[str, Any]) -> list[Share]:
    """What a tensor of a folder consists of, if it stacks so many experts: all matrices of the first, and so on.

    Empty if a model of this configuration has no such stack.

    Examples
    --------
    >>> from qformats.folder.experts import shares
    >>> found = shares("model.layers.0.block_sparse_moe.input_linear.weight", 2, {"model_type": "granitemoe"})
    >>> [share.name.removeprefix("model.layers.0.block_sparse_moe.") for share in found]
    ['experts.0.w1.weight', 'experts.0.w3.weight', 'experts.1.w1.weight', 'experts.1.w3.weight']
    """
    layout = _layout(config)
    if layout is None:
        return []
    for stacks, ending in ((layout.stacks, "weight"), (layout.biases, "bias")):
        for stack, labels in stacks.items():
            if not name.endswith(f".{layout.owner}{stack}"):
                continue
            owner = name.removesuffix(stack)
            return [
                Share(
                    name,
                    f"{owner}experts.{expert}.{label}.{ending}",
                    expert,
                    part,
                    len(labels),
                    label,
                    layout.turned and ending == "weight",
                    layout.alternating,
                )
                for expert in range(count)
                for part, label in enumerate(labels)
            ]
    return []


_LISTED = re.compile(r"(.*\.)experts\.(0|[1-9]\d*)\.(\w+)\.(weight|bias)")


def share_of(name: str, config: Mapping[str, Any]) -> Share | None:
    """Where a matrix of an expert, or its bias, lies in the stack that a model of this configuration has on disk."""
    layout = _layout(config)
    found = _LISTED.fullmatch(name) if layout is not None else None
    if layout is None or found is None or not found[1].endswith(f".{layout.owner}"):
        return None
    for stack, labels in (layout.stacks if found[4] == "weight" else layout.biases).items():
        if found[3] in labels:
            return Share(
                f"{found[1]}{stack}",
                name,
                int(found[2]),
                labels.index(found[3]),
                len(labels),
                found[3],
                layout.turned and found[4] == "weight",
                layout.alternating,
            )
    return None


def matrices_of(tensor: StoredTensor, config: Mapping[str, Any]) -> list[StoredTensor]:
    """Matrices of experts, or their biases, in a plain tensor of a folder; the tensor itself if it stacks none."""
    if len(tensor.shape) < 2 or tensor.packer.quantizes:
        return [tensor]
    found = shares(tensor.name, tensor.shape[0], config)
    if not found or (len(tensor.shape) == 3) != (found[0].name.endswith(".weight")):
        return [tensor]
    return [_matrix(tensor, share) for share in found]


def _matrix(tensor: StoredTensor, share: Share) -> StoredTensor:
    shape = share.shape(tensor.shape[1:])

    def load(start: int, stop: int) -> PackedTensor:
        read = tensor.load(share.expert, share.expert + 1)
        ((field, values),) = read.fields.items()
        part = share.of(values[0])[start:stop].contiguous()
        return PackedTensor(read.packer, tuple(part.shape), {field: part})

    nbytes = tensor.nbytes // max(1, tensor.rows) // share.parts
    return replace(tensor, name=share.name, shape=shape, nbytes=nbytes, load=load, step=1)


_OTHER = {
    # unsloth, and GPTQModel up to 4.0; GPTQModel since.
    "gate_up_projs": ("gate_proj", "up_proj"),
    "gate_up": ("gate_proj", "up_proj"),
    "down_projs": ("down_proj",),
    "down": ("down_proj",),
}
"""What other programs call lists of gpt-oss's matrices, and the matrices in each."""
_OTHER_NAME = re.compile(rf"(.*\.mlp\.)experts\.({'|'.join(_OTHER)})\.(0|[1-9]\d*)\.(weight|bias)")
_RENAMED = ((".mlp.experts.experts.", ".mlp.experts."), (".mlp.router.linear.", ".mlp.router."))
"""llm-compressor up to 0.9 has a list in the module of the experts, unsloth a linear layer in that of the router."""


def as_listed(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Tensors of gpt-oss that another program has put into lists of its own, packed or not, under their names here.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor
        Of a folder.
    config : mapping
        Its config.json.
    """
    if _layout(config) is not _GPT_OSS:
        return dict(tensors)
    import numpy as np

    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        match = _OTHER_NAME.fullmatch(name)
        labels = _OTHER[match[2]] if match else ()
        if match is None or not tensor.shape or tensor.rows % len(labels):
            for before, after in _RENAMED:
                name = name.replace(before, after)
            found[name] = tensor.renamed(name)
            continue
        for part, label in enumerate(labels):
            own = f"{match[1]}experts.{match[3]}.{label}.{match[4]}"
            # Rows of gate and up follow each other in turn, as in the model's stacks.
            rows = np.arange(part, tensor.rows, len(labels), dtype=np.intp)
            found[own] = (tensor.take_rows(rows) if len(labels) > 1 else tensor).renamed(own)
    return found


def matrix_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Shapes by canonical name of tensors as a model's class has them on disk; the inverse of :func:`stacked_shapes`.

    Examples
    --------
    >>> from qformats.folder.experts import matrix_shapes
    >>> matrix_shapes({"model.layers.0.mlp.experts.down_proj": (1, 16, 8)}, {"model_type": "gpt_oss"})
    {'model.layers.0.mlp.experts.0.down_proj.weight': (8, 16)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        parts = shares(name, shape[0], config) if shape else []
        found |= {share.name: share.shape(shape[1:]) for share in parts} or {name: shape}
    return found


def stacked_shapes(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], source: Any
) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's tensors as its class reads them: those of matrices of experts become those of stacks.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        By canonical name.
    config : mapping
        config.json.
    source : Path
        The model, for messages.

    Raises
    ------
    CheckpointError
        If a matrix of an expert is missing, or unlike those of others.

    Examples
    --------
    >>> from qformats.folder.experts import stacked_shapes
    >>> shapes = {f"model.layers.0.mlp.experts.{n}.down_proj.weight": (8, 16) for n in range(4)}
    >>> stacked_shapes(shapes, {"model_type": "gpt_oss"}, "model")
    {'model.layers.0.mlp.experts.down_proj': (4, 16, 8)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for stack, parts in _grouped(shapes, config).items():
        if isinstance(parts, str):
            found[stack] = shapes[parts]
            continue
        count = _count(stack, parts, source)
        own = {shapes[share.name] for share in parts}
        if len(own) > 1:
            named = ", ".join(map(str, sorted(own)))
            raise CheckpointError(source, f"experts of shapes {named}", "one for all", tensor=parts[0].name)
        found[stack] = (count, *parts[0].whole(own.pop()))
    return found


def _grouped(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str | list[Share]]:
    """Names by themselves, and the shares of each stack, in the order of the first of each."""
    found: dict[str, str | list[Share]] = {}
    for name in names:
        share = share_of(name, config)
        if share is None:
            found[name] = name
            continue
        parts = found.setdefault(share.stack, [])
        assert not isinstance(parts, str)
        parts.append(share)
    return found


def _count(stack: str, parts: Sequence[Share], source: Any) -> int:
    """Experts in a stack, if all its matrices are there."""
    count = 1 + max(share.expert for share in parts)
    there = {(share.expert, share.part) for share in parts}
    lacking = [
        (expert, part)
        for expert in range(count)
        for part in range(parts[0].parts)
        if (expert, part) not in there
    ]
    if lacking:
        shown = " and ".join(f"part {part} of expert {expert}" for expert, part in lacking[:_SHOWN])
        told = f"lacks {shown} of {stack} ({len(lacking)} matrices are missing)"
        raise CheckpointError(source, told, "the matrices of every expert")
    return count


def stacked(parts: Sequence[tuple[Share, StoredTensor]]) -> StoredTensor:
    """The stack of these matrices, which are all of it, as plain numbers.

    Parameters
    ----------
    parts : sequence of (Share, StoredTensor)
        In any order. The stack has the dtype of plain ones that are alike; it is float32 otherwise.
    """
    first, tensor = parts[0]
    dtypes = {each.packer.dense_dtype for _, each in parts}
    alike = next(iter(dtypes)) if len(dtypes) == 1 else None
    plain = dense(alike if alike in FLOATS else "f32")
    experts = 1 + max(share.expert for share, _ in parts)
    whole = first.whole(tensor.shape)
    by_expert: list[list[tuple[Share, StoredTensor]]] = [[] for _ in range(experts)]
    for share, each in parts:
        by_expert[share.expert].append((share, each))

    def load(start: int, stop: int) -> PackedTensor:
        import torch

        from qformats.numbers.dtypes import torch_dtype

        shape = (stop - start, *whole)
        values = torch.empty(shape, dtype=torch_dtype(plain.dense_dtype or "f32"))
        for number, matrices in enumerate(by_expert[start:stop]):
            for share, each in matrices:
                read = each.read()
                own = next(iter(read.fields.values())) if alike == plain.dense_dtype else read.dequantize()
                share.of(values[number]).copy_(own)
        return PackedTensor(plain, shape, dict.fromkeys(plain.stored(shape), values))

    quantized = [each for _, each in parts if each.stored_packer.dense_dtype != plain.dense_dtype]
    return replace(
        tensor,
        name=first.stack,
        shape=(experts, *whole),
        packer=plain,
        nbytes=sum(each.nbytes for _, each in parts),
        load=load,
        step=1,
        origin=quantized[0].stored_packer if quantized else None,
        names=frozenset[str]().union(*(each.names for _, each in parts)),
    )
