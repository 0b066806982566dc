"""Checks of folders and files: what is declared is understood again, and a whole model comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from qformats.exporting.joint import Joint
from qformats.exporting.programs import NEIGHBOURS
from qformats.folder import HuggingFaceFolder
from qformats.interfaces import Family, ModuleFields, Packer
from qformats.registry import registry
from qformats.sources import open_model
from qformats.testing.compare import same_values
from qformats.testing.failure import Mismatch, NotApplicable, expect, reported
from qformats.testing.weights import sample, usual_shape, writable
from qformats.testing.writing import registered, written

if TYPE_CHECKING:
    from qformats.interfaces import StoredTensor

__all__ = ["check_checkpoint", "check_config_survives_json"]

_MODULE = "model.layers.0.mlp.down_proj"
_SIZES = (64, 128, 256, 512)
"""Hidden sizes of the model that is written, until the format can hold it."""


@reported
def check_config_survives_json(packer: Packer) -> None:
    """A folder's ``quantization_config``, through JSON, gives a format that reads its fields; so does a guessed one.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_config_survives_json
    >>> check_config_survives_json(qformats.packer("gptq:4bit-128g"))
    """
    if packer.dense_dtype is not None:
        raise NotApplicable("folders of plain numbers declare no format")
    if packer.container != HuggingFaceFolder.name:
        raise NotApplicable(f"the format lives in {packer.container}, which declares it in its own way")
    writable(packer)
    registered(packer)
    family, shape = registry().family(packer), usual_shape(packer)
    config = family.to_config(packer, dense_modules=["lm_head"], packed_modules=[_MODULE], dtype="bfloat16")
    told = json.loads(json.dumps(config))
    expect(told == config, f"a quantization_config that JSON changes: {config}", f"{told}")
    reader, detected = _detected(told)
    packed = sample(packer, shape)
    data = {name: field.contiguous() for name, field in packed.fields.items()}

    def read(name: str) -> bytes:
        import torch

        return bytes(data[name].reshape(-1).view(torch.uint8).numpy().tobytes())

    known = reader.suffixes(detected)
    lost = sorted(data.keys() - known)
    expect(not lost, f"fields that suffixes() lacks: {', '.join(lost)}", "all of " + ", ".join(data))
    module = ModuleFields(_MODULE, packer.stored(shape), read)
    located = reader.locate(detected, module)
    if located is None:
        raise Mismatch(f"a module of plain numbers, by {told}", f"one of {packer.name}")
    own, found = located
    expect(tuple(found) == shape, f"a weight of {tuple(found)} located", f"{shape}, as it was packed")
    values = own.dequantize(own.from_stored(data, shape))
    same_values(values, packer.dequantize(packed), f"values of a folder's fields, read as {own.name}")
    implied = reader.undeclared(module)
    if implied is not None:
        guessed = reader.detect(implied)
        again = None if guessed is None else reader.locate(guessed, module)
        named = "plain numbers" if again is None else f"{again[0].name} of {tuple(again[1])}"
        wanted = f"{own.name} of {shape}, as when it is declared"
        expect(named == f"{own.name} of {shape}", f"{named} by {implied}, which undeclared() says", wanted)


def _detected(config: dict[str, object]) -> tuple[Family, Packer]:
    """Who answers to a folder's configuration, as the reader of folders asks."""
    if config.get("quant_method") == "qformats":
        packer = registry().packer(str(config.get("format")))
        return registry().family(packer), packer
    for family in registry().families():
        detected = family.detect(config)
        if detected is not None:
            return family, detected
    raise Mismatch(f"no family that detects {config}", "its own family", "Override detect with to_config")


@reported
def check_checkpoint(packer: Packer, model: str | Path | None = None) -> None:
    """A whole model in this format is written into its container and read back: shapes, formats and values.

    `model` is exported instead of a tiny llama.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_checkpoint
    >>> check_checkpoint(qformats.packer("dense:f16"))
    """
    writable(packer)
    registered(packer)
    loader = registry().loader(packer.container)
    with written(loader, packer, model, hidden=_hidden(packer)) as done:
        before, after = done.source, open_model(done.target, {})
        formats = {tensor.packer.quantizes: tensor.format for tensor in after.tensors.values()}
        if packer.quantizes:
            expect(True in formats, f"only plain numbers in {done.target.name}", f"weights of {packer.name}")
        for name, stored in after.tensors.items():
            source = before.tensors.get(name)
            if source is None:
                raise Mismatch(f"a tensor {name!r} that was not written", "names of the model")
            expect(stored.shape == source.shape, f"{name!r} of shape {stored.shape}", f"{source.shape}")
            _same(_sharing(packer, name, before.tensors), stored, source)


def _sharing(packer: Packer, name: str, tensors: Mapping[str, StoredTensor]) -> Packer:
    """The format with the number per tensor that a weight shares with its neighbours, if they share one."""
    found = NEIGHBOURS.fullmatch(name)
    if not packer.joint or found is None:
        return packer
    parts = [
        tensor
        for other, tensor in tensors.items()
        if (each := NEIGHBOURS.fullmatch(other)) and (each[1], each.lastgroup) == (found[1], found.lastgroup)
    ]
    return Joint(parts).packer(packer)


def _hidden(packer: Packer) -> int:
    """Smallest hidden size whose rows the format can hold."""
    for hidden in _SIZES:
        if not any(
            packer.veto(shape) for shape in ((hidden, hidden), (hidden, 2 * hidden), (hidden // 2, hidden))
        ):
            return hidden
    raise NotApplicable(
        f"veto refuses the weights of a model with rows of {_SIZES[0]} to {_SIZES[-1]} columns"
    )


def _same(packer: Packer, stored: StoredTensor, source: StoredTensor) -> None:
    """What was read is what the format makes of what was written."""
    values = source.dequantize()
    if stored.packer.quantizes:
        found = f"{stored.name!r} in {stored.format}"
        expect(stored.packer.family == packer.family, found, packer.name)
        size = packer.nbytes(source.shape)
        expect(stored.nbytes == size, f"{stored.nbytes} bytes of {stored.name!r}", f"{size}")
        values = packer.dequantize(packer.encode_reference(values))
    elif stored.packer.dense_dtype == packer.dense_dtype:
        values = packer.dequantize(packer.encode_reference(values))
    same_values(stored.dequantize(), values, f"values of {stored.name!r} read back")
