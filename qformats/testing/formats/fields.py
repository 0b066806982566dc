"""Checks of stored fields that are not what they should be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qformats.errors import PluginError, QFormatsError
from qformats.interfaces import PackedTensor, Packer
from qformats.testing.compare import same_values
from qformats.testing.failure import Mismatch, NotApplicable, expect, raised, reported
from qformats.testing.weights import random_bytes, sample, usual_shape

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_random_bytes", "check_wrong_fields_are_refused"]

_HINT = "Begin unpack and dequantize with self.checked(packed)"


@reported
def check_wrong_fields_are_refused(packer: Packer) -> None:
    """A field that is missing, or of another shape or dtype, raises ShapeError or ConfigError.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_wrong_fields_are_refused
    >>> check_wrong_fields_are_refused(qformats.packer("gguf:q4_0"))
    """
    if not packer.readable:
        raise NotApplicable("the format can only be copied")
    packed = sample(packer)
    for what, fields in _spoilt(packed.fields):
        spoilt = PackedTensor(packer, packed.shape, fields)
        for method, decode in _decoders(packer):
            error = _raised(decode, spoilt, f"{method} of fields with {what}")
            expect(error is not None, f"{method} gives values for fields with {what}", "ShapeError", _HINT)


def _spoilt(fields: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Fields of which one is wrong, and how."""
    import torch

    for name, value in fields.items():
        yield f"no {name}", {field: other for field, other in fields.items() if field != name}
        flat = value.reshape(-1)
        longer = torch.cat([flat, flat[:1]])
        other_dtype = torch.float32 if value.dtype == torch.float64 else torch.float64
        for what, other in (
            ("an element too many", longer),
            ("a dimension too many", value.unsqueeze(0)),
            ("another dtype", value.to(other_dtype)),
        ):
            yield f"{what} in {name}", {**fields, name: other}


def _decoders(packer: Packer) -> list[tuple[str, Callable[[PackedTensor], Any]]]:
    decoders: list[tuple[str, Callable[[PackedTensor], Any]]] = [("dequantize", packer.dequantize)]
    return [*decoders, ("unpack", packer.unpack)] if packer.spec.level else decoders


def _raised(decode: Callable[[PackedTensor], Any], packed: PackedTensor, what: str) -> QFormatsError | None:
    """What decoding raises; a failure if that is not one of the framework's own errors."""
    try:
        decode(packed)
    except PluginError as error:
        raise Mismatch(f"{what}: {raised(error)}", "ShapeError or ConfigError", _HINT) from error
    except QFormatsError as error:
        return error
    return None


@reported
def check_random_bytes(packer: Packer) -> None:
    """Any stored bytes decode, or are refused with one of qformats' own errors; nothing crashes.

    Examples
    --------
    >>> import qformats
    >>> from qformats.testing import check_random_bytes
    >>> check_random_bytes(qformats.packer("gguf:q4_0"))
    """
    if not packer.readable:
        raise NotApplicable("the format can only be copied")
    shape = usual_shape(packer)
    with warnings.catch_warnings():
        # A format may doubt such bytes.
        warnings.simplefilter("ignore")
        for what, packed in _damaged(packer, shape):
            _raised(lambda each: packer.from_stored(each.fields, shape), packed, f"from_stored of {what}")
            refused = [_raised(decode, packed, f"{name} of {what}") for name, decode in _decoders(packer)]
            if not any(refused):
                values = packer.dequantize(packed)
                kind = f"values of {values.dtype} and shape {tuple(values.shape)} for {what}"
                same = str(values.dtype) == "torch.float32" and tuple(values.shape) == shape
                expect(same, kind, f"float32, {shape}")
                if packer.spec.level:
                    same_values(packer.unpack(packed).dequantize(), values, f"unpacked values of {what}")


def _damaged(packer: Packer, shape: tuple[int, int]) -> Iterator[tuple[str, PackedTensor]]:
    import torch

    for seed in range(3):
        packed = random_bytes(packer, shape, seed)
        yield "random bytes", packed
        fixed = packer.fixed(shape, "f32")
        if fixed:
            yield (
                "random bytes in fields that are not fixed",
                PackedTensor(packer, shape, {**packed.fields, **fixed}),
            )
    for fill in (0, 255):
        fields = {
            name: torch.full_like(value.contiguous().reshape(-1).view(torch.uint8), fill)
            .view(value.dtype)
            .view(value.shape)
            for name, value in random_bytes(packer, shape).fields.items()
            if value.dtype != torch.bool or not fill
        }
        if len(fields) == len(packer.stored(shape)):
            yield f"bytes of {fill}", PackedTensor(packer, shape, fields)
    if packer.writable:
        whole = sample(packer, shape)
        for name, value in whole.fields.items():
            noise = random_bytes(packer, shape, 7).fields[name]
            if value.numel():
                yield f"random bytes in {name}", PackedTensor(packer, shape, {**whole.fields, name: noise})
