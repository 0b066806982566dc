"""The JSON object beside each 4-bit weight, which tells its shape and how it was quantized.

Written as bitsandbytes does (keys in its order, Python's separators), then padded with spaces to a fixed length:
the offset prints with a varying number of digits, and no size of an output may depend on data. JSON allows spaces at
the end, and bitsandbytes reads them. Source: bitsandbytes:bitsandbytes/functional.py (``QuantState.as_dict``).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

from qformats.errors import ConfigError
from qformats.work.files import parse_json

__all__ = ["BLOCK_SIZES", "KEY", "LENGTH", "LONGEST", "NESTED_BLOCK", "QuantState"]

KEY = "weight.quant_state.bitsandbytes__"
"""Field that holds it; the type (``nf4``, ``fp4``) follows."""
LENGTH = 256
"""Bytes of the field as written; the longest text has 245."""
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256
"""Scales that share a scale where they are quantized themselves."""
LONGEST = 1 << 16
"""Bytes read of one from another program."""
_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_NESTED = ("nested_blocksize", "nested_dtype", "nested_offset")


@dataclass(frozen=True)
class QuantState:
    """Content of the object.

    Attributes
    ----------
    kind : str
        ``nf4`` or ``fp4``.
    block_size : int
        Elements that share a scale.
    dtype : str
        Short name of what the weight was before, and of what bitsandbytes decodes it to.
    shape : tuple of int
        ``(N, K)``.
    offset : float or None
        Added to scales that are quantized themselves, weight units, a float32 number; ``None`` where they are plain.
    """

    kind: str
    block_size: int
    dtype: str
    shape: tuple[int, int]
    offset: float | None = None

    def to_bytes(self) -> bytes:
        """Text of the object, padded to :data:`LENGTH` bytes."""
        content: dict[str, Any] = {
            "quant_type": self.kind,
            "blocksize": self.block_size,
            "dtype": _DTYPES[self.dtype],
            "shape": list(self.shape),
        }
        if self.offset is not None:
            content |= dict(zip(_NESTED, (NESTED_BLOCK, "float32", self.offset), strict=True))
        return json.dumps(content).encode().ljust(LENGTH)

    @classmethod
    def parse(cls, data: bytes, kind: str) -> QuantState:
        """Read and check the object of a file.

        Parameters
        ----------
        data : bytes
            Content of the field.
        kind : str
            Type that the field's name gives.

        Raises
        ------
        ConfigError
            Naming the key that is missing, unknown or has an impossible value.
        """
        key = KEY + kind
        try:
            content = parse_json(data)
        except ValueError as error:
            raise ConfigError(key, data[:40], f"a JSON object ({error})") from error
        if not isinstance(content, dict):
            raise ConfigError(key, content, "a JSON object")
        expected = ["quant_type", "blocksize", "dtype", "shape"]
        if any(name in content for name in _NESTED):
            expected += _NESTED
        if sorted(content) != sorted(expected):
            raise ConfigError(f"keys of {key}", sorted(content), ", ".join(expected))

        def check(name: str, good: bool, allowed: str) -> None:
            if not good:
                raise ConfigError(f"{name} in {key}", content[name], allowed)

        block, shape = content["blocksize"], content["shape"]
        check("quant_type", content["quant_type"] == kind, repr(kind))
        check("blocksize", _whole(block) and block in BLOCK_SIZES, f"one of {BLOCK_SIZES}")
        names = {name: short for short, name in _DTYPES.items()}
        check("dtype", isinstance(content["dtype"], str) and content["dtype"] in names, ", ".join(names))
        sizes = isinstance(shape, list) and len(shape) == 2 and all(_whole(n) and n > 0 for n in shape)
        check("shape", sizes, "two positive whole numbers (out_features, in_features)")
        offset = None
        if len(expected) > 4:
            nested = content["nested_blocksize"]
            check("nested_blocksize", _whole(nested) and nested == NESTED_BLOCK, str(NESTED_BLOCK))
            check("nested_dtype", content["nested_dtype"] == "float32", "'float32'")
            offset = _float32(content["nested_offset"])
            check("nested_offset", offset is not None, "a finite float32 number")
        return cls(kind, block, names[content["dtype"]], (shape[0], shape[1]), offset)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _float32(value: object) -> float | None:
    """Nearest float32 of a JSON number; ``None`` if it is not a number, or too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        (nearest,) = struct.unpack("<f", struct.pack("<f", value))
    except (OverflowError, struct.error):
        return None
    return float(nearest) if math.isfinite(nearest) else None
