"""Laying out a Hugging Face folder: which shard holds which tensor, at which offset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qformats.errors import ConfigError, ShapeError
from qformats.folder.carried import declared as with_steps
from qformats.folder.carried import dropped
from qformats.folder.classes import embedding_class
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.layout import Assignment, Layout, OutputFile, Placement
from qformats.interfaces.packer import Packer
from qformats.numbers.dtypes import SAFETENSORS, SIZES
from qformats.registry import registry

__all__ = ["lay_out_folder"]

_ALIGNMENT = 8
"""safetensors pads its header with spaces to this many bytes."""
_OF_THE_SOURCE = ("quantization_config", "torch_dtype", "dtype", "transformers_weights")
"""Keys of config.json that say how the source is stored."""
_EMBED_WITH = (
    'python -c "import sys; from transformers import pipeline; '
    "print(pipeline('feature-extraction', sys.argv[1])('Hello')[0][0])\" {target}"
)
_RUN_WITH = (
    'python -c "import sys; from transformers import pipeline; '
    "print(pipeline('text-generation', sys.argv[1])('Hello'))\" {target}"
)


@dataclass(frozen=True)
class _Field:
    """One stored field of one tensor, with its name in the file."""

    tensor: int
    field: str
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        count = SIZES[self.dtype]
        for dim in self.shape:
            count *= dim
        return count


def lay_out_folder(
    source: Checkpoint,
    assignments: Sequence[Assignment],
    default: Packer,
    max_shard_size: int,
    *,
    config: Mapping[str, Any] | None = None,
    tokenizer: Mapping[str, bytes] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> Layout:
    """Every file of a folder, with exact sizes.

    Parameters
    ----------
    source : Checkpoint
        Gives config.json and the tokenizer files.
    assignments : sequence of Assignment
        Tensors and their formats.
    default : Packer
        Format of the export; gives ``quantization_config``.
    max_shard_size : int
        Bytes of tensors that a shard may hold; a single larger tensor gets its own shard.
    config : mapping, optional
        config.json, if not the source's own with the new dtype and ``quantization_config``.
    tokenizer : mapping of str to bytes, optional
        Tokenizer files by name, if not the source's own.
    extra_files : mapping of str to bytes, optional
        More files of the folder, by name.

    Raises
    ------
    ConfigError
        If there is a quantized format other than `default` among them, or `default` is quantized and none has it.
    ShapeError
        If the stored fields would not determine a shape.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder import lay_out_folder
    >>> from qformats.interfaces import Assignment, Draft, dense
    >>> model = qformats.open("demo")
    >>> assignments = [Assignment(Draft(name, tensor), dense("f16")) for name, tensor in model.tensors.items()]
    >>> layout = lay_out_folder(model, assignments, dense("f16"), max_shard_size=5_000_000)
    >>> [file.name for file in layout.files][:4]
    ['config.json', 'model-00001-of-00003.safetensors', 'model-00002-of-00003.safetensors',
    'model-00003-of-00003.safetensors']
    """
    family = registry().family(default)
    for assignment in assignments:
        packer = assignment.packer
        one = packer.family == default.family and family.mixes
        if packer.quantizes and packer.name != default.name and not one:
            raise ConfigError(
                f"type of {assignment.draft.name}",
                packer.name,
                "plain numbers" + ("" if default.dense_dtype else f" or {default.name}"),
                "a folder's config.json can declare only one quantized format",
            )
    if default.quantizes and not any(assignment.packer.quantizes for assignment in assignments):
        notes = [assignment.note for assignment in assignments if assignment.note and not assignment.kept]
        raise ConfigError(
            "format", default.name, "one that holds a tensor of this model", notes[0] if notes else None
        )
    groups = _shard([_fields(i, assignment) for i, assignment in enumerate(assignments)], max_shard_size)
    single = len(groups) == 1
    names = [
        "model.safetensors" if single else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
        for i in range(len(groups))
    ]
    written = dict(config) if config is not None else _config(source, assignments, default)
    files = [_json_file("config.json", written)]
    files += [_safetensors(name, group) for name, group in zip(names, groups, strict=True)]
    if not single:
        where = {f.name: name for name, group in zip(names, groups, strict=True) for f in group}
        total = sum(f.nbytes for group in groups for f in group)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        files.append(_json_file("model.safetensors.index.json", index))
    tokenizer = source.tokenizer_files() if tokenizer is None else tokenizer
    declared = written.get("quantization_config")
    more = family.extra_files(default, declared) if default.quantizes and declared else {}
    for name, content in {**tokenizer, **more, **(extra_files or {})}.items():
        files.append(OutputFile(name, len(content), content))
    runs = default.dense_dtype is not None and tokenizer
    packed = [a.draft.name.removesuffix(".weight") for a in assignments if a.packer.quantizes]
    steps = any(a.draft.step is not None and a.draft.step.role == "input" for a in assignments)
    limits = family.limits(packed) or ("" if steps else family.without_steps()) if packed else ""
    return Layout(
        tuple(files),
        folder=True,
        run_with=(_EMBED_WITH if embedding_class(source.config) else _RUN_WITH) if runs else "",
        notes=(*((limits,) if limits else ()), *dropped(source, declared)),
    )


def _fields(index: int, assignment: Assignment) -> list[_Field]:
    packer, draft = assignment.packer, assignment.draft
    if packer.dense_dtype is not None:
        return [
            _Field(index, field, draft.name, shape, dtype)
            for field, (shape, dtype) in packer.stored(draft.source.shape).items()
        ]
    module = draft.name.removesuffix(".weight")
    stored = packer.stored(draft.source.shape)
    if not registry().family(packer).locates:
        # Only the shapes of the fields will tell the shape of the weight.
        told = packer.weight_shape(stored)
        if told != tuple(draft.source.shape):
            expected = f"one that {packer.name}'s fields determine; they would give {told}"
            raise ShapeError(draft.name, draft.source.shape, expected)
    return [
        _Field(index, field, f"{module}.{field}", shape, dtype) for field, (shape, dtype) in stored.items()
    ]


def _shard(tensors: list[list[_Field]], limit: int) -> list[list[_Field]]:
    groups: list[list[_Field]] = [[]]
    filled = 0
    for fields in tensors:
        size = sum(f.nbytes for f in fields)
        if groups[-1] and filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1] += fields
        filled += size
    return groups


def _safetensors(name: str, fields: list[_Field]) -> OutputFile:
    # Wide dtypes first, as the library writes them, so that every tensor is aligned to its dtype.
    ordered = sorted(fields, key=lambda f: -SIZES[f.dtype])
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for f in ordered:
        span = [offset, offset + f.nbytes]
        entries[f.name] = {"dtype": SAFETENSORS[f.dtype], "shape": list(f.shape), "data_offsets": span}
        offset += f.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    placements = tuple(
        Placement(f.tensor, f.field, len(header) + entries[f.name]["data_offsets"][0], f.nbytes)
        for f in ordered
    )
    return OutputFile(name, len(header) + offset, header, placements)


def _config(source: Checkpoint, assignments: Sequence[Assignment], default: Packer) -> dict[str, Any]:
    keys = {key for family in registry().families() for key in family.config_keys}
    config = {k: v for k, v in source.config.items() if k not in (*_OF_THE_SOURCE, *keys)}
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    weights = dict.fromkeys(names, 0)
    for assignment in assignments:
        if assignment.packer.dense_dtype in weights and assignment.draft.step is None:
            weights[assignment.packer.dense_dtype] += assignment.draft.source.numel
    if any(weights.values()):
        # The dtype of most weights; of two with as many, the wider one.
        config["dtype"] = names[max(weights, key=lambda name: weights[name])]
    if default.quantizes:
        packed: dict[str, Packer] = {}
        plain: list[str] = []
        for assignment in assignments:
            name = assignment.draft.name.removesuffix(".weight")
            if assignment.packer.quantizes:
                packed[name] = assignment.packer
            elif assignment.draft.linear:
                plain.append(name)
        family, dtype = registry().family(default), str(config.get("dtype", "float32"))
        if {packer.name for packer in packed.values()} <= {default.name}:
            declared = family.to_config(
                default, dense_modules=plain, packed_modules=list(packed), dtype=dtype
            )
        else:
            declared = family.to_mixed_config(default, packed, dense_modules=plain, dtype=dtype)
        declared = with_steps(declared, family, assignments, source)
        config |= dict.fromkeys((*family.config_keys, "quantization_config"), declared)
    return config


def _json_file(name: str, content: dict[str, Any]) -> OutputFile:
    # Lone surrogates, which UTF-8 cannot hold, become the escapes that JSON has for them.
    text = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    return OutputFile(name, len(text), text)
