"""The Hugging Face folder: ``config.json``, weights in safetensors or ``.bin`` shards, tokenizer files.

One loader serves every format that lives in such folders: packers declare their stored fields and their
``quantization_config``, and never read or write safetensors themselves.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qformats.errors import ConfigError
from qformats.folder.adapter import STARTS, base_name
from qformats.folder.adapter_checkpoint import AdapterCheckpoint
from qformats.folder.archive import plain_records
from qformats.folder.carried import carried
from qformats.folder.chat import chat_templates
from qformats.folder.config_class import config_class
from qformats.folder.conv1d import is_conv1d
from qformats.folder.experts import Share, is_stack, shares
from qformats.folder.fit import Fit, belonging, fitted, predicts
from qformats.folder.json_object import read_json
from qformats.folder.model import FolderCheckpoint
from qformats.folder.outline import Outline, outline
from qformats.folder.restack import listed, restacked
from qformats.folder.shards import unpickling_error
from qformats.folder.write import lay_out_folder
from qformats.interfaces.checkpoint import Checkpoint
from qformats.interfaces.layout import Assignment, Draft, Layout, OutputFile
from qformats.interfaces.loader import Loader
from qformats.interfaces.option import Option, size
from qformats.interfaces.packer import Packer
from qformats.numbers.dtypes import FLOATS
from qformats.work.files import parse_json

__all__ = [
    "STARTS",
    "AdapterCheckpoint",
    "FolderCheckpoint",
    "HuggingFaceFolder",
    "Share",
    "base_name",
    "chat_templates",
    "config_class",
    "lay_out_folder",
    "plain_records",
    "predicts",
    "read_json",
    "shares",
    "unpickling_error",
]


class HuggingFaceFolder(Loader):
    """Reads and writes Hugging Face folders.

    Examples
    --------
    >>> import qformats
    >>> from qformats.folder import HuggingFaceFolder
    >>> HuggingFaceFolder().detect(qformats.open("demo").path)
    True
    """

    name = "huggingface"
    summary = "folder with config.json and safetensors (or .bin) weights"
    generic = True
    takes_vocabularies = True
    options = (
        Option(
            "max-shard-size",
            "largest weight file when writing, such as 2GB (default 5GB)",
            flag=True,
            metavar="SIZE",
        ),
        Option("plain-dtype", "f32, f16 or bf16 for unquantized tensors (default: what most of them have)"),
        Option(
            "quantization-config",
            "JSON object: entries that override the quantization_config of a folder to read",
        ),
    )

    def detect(self, path: Path) -> bool:
        """Whether the folder holds a config.json."""
        return path.is_dir() and (path / "config.json").is_file()

    def open(self, path: Path, options: Mapping[str, str]) -> Checkpoint:
        """Open a folder: config and headers only."""
        found = FolderCheckpoint(path, declared=_entries(options.get("quantization-config", "{}")))
        own = belonging(found, found.spare)
        found.tensors = {**found.tensors, **{name: found.spare[name] for name in own}}
        why = "a bias of zeros, which the tool that quantized the model has added"
        for name in found.spare.keys() - own:
            found.left_out |= dict.fromkeys(found.spare[name].names, why)
        return found

    def outline(self, config: Mapping[str, Any], path: Path) -> Checkpoint | None:
        """Names and shapes of Transformers' own class for this configuration."""
        return outline(config, path)

    def draft(self, source: Checkpoint, options: Mapping[str, str]) -> list[Draft]:
        """Every tensor under its canonical name; linear weights may be quantized, the rest keep their numbers."""
        plain = _plain_dtype(source, options.get("plain-dtype"))
        drafts = []
        model_type = str(source.config.get("model_type", ""))
        prefix = _fit(source).prefix
        tied = f"{prefix}lm_head.weight" not in source.tensors
        for stored, tensor in source.tensors.items():
            name = stored.removeprefix(prefix)
            role = _role(name)
            keep, why = None, ""
            if len(tensor.shape) != 2 or _NOT_LINEAR.search(name) or not name.endswith(".weight"):
                dtype = tensor.packer.dense_dtype or "f32"
                # Readers compute in one dtype, and mixing them in a folder makes some of them fail.
                keep = f"dense:{plain if dtype in FLOATS else dtype}"
                why = role.replace("_", " ") if role else "not a linear weight"
            matrix = len(tensor.shape) == 2 and name.endswith(".weight")
            drafts.append(
                Draft(
                    name,
                    tensor,
                    role,
                    keep,
                    why,
                    tied=tied and role == "token_embedding",
                    dense_transposed=len(tensor.shape) == 2 and is_conv1d(model_type, name),
                    cast_along=True,
                    linear=matrix and not _NO_LAYER.search(name),
                    plain=f"dense:{plain}",
                )
            )
        return drafts

    def joined(self, assignments: Sequence[Assignment], source: Checkpoint) -> list[Assignment]:
        """Experts stacked as the model's class reads them, unless one of them is quantized; numbers for activations."""
        # A vocabulary has no configuration.
        if not assignments:
            return []
        return [*restacked(assignments, source.config), *carried(assignments, source)]

    def lay_out(
        self,
        source: Checkpoint,
        assignments: Sequence[Assignment],
        default: Packer,
        target: Path,
        options: Mapping[str, str],
    ) -> Layout:
        """Shards of safetensors, their index, config.json and tokenizer files; of a vocabulary, only the latter."""
        if not source.tensors:
            content = source.tokenizer_files().items()
            return Layout(tuple(OutputFile(name, len(data), data) for name, data in content), folder=True)
        _warn_of_mixture(assignments, default)
        limit = size(options, "max-shard-size", "5GB")
        layout = lay_out_folder(source, assignments, default, limit)
        told = (*_left_plain(assignments, default, source.config), *listed(assignments, source.config))
        return replace(layout, notes=(*layout.notes, *told, *_fit(source).notes))


def _fit(source: Checkpoint) -> Fit:
    """What the model's class says about its tensors; an outline has them from the class itself."""
    return Fit() if isinstance(source, Outline) else fitted(source)


def _entries(text: str) -> dict[str, Any]:
    """Entries of a ``quantization_config``, as users write them."""
    try:
        parsed = parse_json(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ConfigError("quantization-config", text, """a JSON object such as {"bits": 4}""")
    return parsed


def _plain_dtype(source: Checkpoint, wanted: str | None) -> str:
    """Dtype of the tensors that are not quantized: the one asked for, or that of most of their weights."""
    if wanted is not None:
        if wanted not in _PLAIN:
            raise ConfigError("plain-dtype", wanted, "one of " + ", ".join(_PLAIN))
        return wanted
    weights = dict.fromkeys(_PLAIN, 0)
    for name, tensor in source.tensors.items():
        if len(tensor.shape) != 2 or _NOT_LINEAR.search(name):
            dtype = tensor.packer.dense_dtype or "f32"
            weights[dtype if dtype in weights else "f32"] += tensor.numel
    # Of two with as many, the wider one.
    return max(weights, key=lambda dtype: weights[dtype])


_PLAIN = ("f32", "f16", "bf16")
_TABLES = r"shared|wte|wpe|embed_\w+|\w*embeddings?|tok_embeddings|\w*norm\w*|ln_\w+"
_NO_LAYER = re.compile(rf"(?:^|\.)(?:{_TABLES})\.weight$")
"""Matrices that are not weights of a linear layer."""
_HEADS = r"lm_head|score|router(?:\.layer)?|gate(?:\.wg)?|shared_expert_gate"
_NOT_LINEAR = re.compile(rf"(?:^|\.)(?:{_TABLES}|{_HEADS})\.weight$")
"""These, and the linear layers that every quantizer leaves out: heads and routers."""


def _left_plain(
    assignments: Sequence[Assignment], default: Packer, config: Mapping[str, Any]
) -> tuple[str, ...]:
    """What to say of experts in stacks that are not known to consist of matrices, which no format of folders holds."""
    stacks = [
        a
        for a in assignments
        if a.packer.dense_dtype
        and is_stack(a.draft.name, a.draft.source.shape)
        and not shares(a.draft.name, 1, config)
    ]
    if not default.quantizes or not stacks:
        return ()
    weights = sum(a.draft.source.numel for a in stacks)
    share = 100 * weights / max(1, sum(a.draft.source.numel for a in assignments))
    plain = " and ".join(sorted({str(a.packer.dense_dtype) for a in stacks}))
    return (
        f"{share:.0f} % of the weights stay {plain}: this model keeps its experts stacked, {stacks[0].draft.name} for "
        f"example, and {default.name} holds one matrix at a time",
    )


def _warn_of_mixture(assignments: Sequence[Assignment], default: Packer) -> None:
    weights = [a for a in assignments if a.draft.step is None]
    found = {a.packer.dense_dtype for a in weights if a.packer.dense_dtype in FLOATS}
    if default.quantizes and len(found) > 1:
        warnings.warn(
            f"unquantized tensors have several dtypes ({', '.join(sorted(map(str, found)))}), and Transformers may "
            "refuse to compute with them: -O plain-dtype=f16 converts them to one",
            UserWarning,
            stacklevel=2,
        )


def _role(name: str) -> str | None:
    if name == "lm_head.weight":
        return "output"
    if name.rsplit(".", 2)[-2:] in (["embed_tokens", "weight"], ["wte", "weight"]):
        return "token_embedding"
    return None
