"""Damage of every kind to the files of a model: to their structure where it is known, and to their bytes."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qformats.errors import QFormatsError
from qformats_gguf.cursor import SCALARS
from qformats_gguf.metadata import ValueType
from qformats_gguf.reader import read

__all__ = ["JUNK", "mutate"]

_DEEP: Any = "x"
for _ in range(900):
    _DEEP = [_DEEP]

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 4096, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, 0.5, 1.0, 2.5, 1e-9, 1e39, 1e300, -1e300, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "0",
        "-1",
        "1e400",
        "nan",
        "\ud800",
        "a\udcffb",
        "a\0b",
        "../../x",
        "a/b",
        "/etc/passwd",
        "é" * 70,
    ),
    *([], [None], [1], ["x"], [[]], [2**70], [float("nan")], {}, {"a": 1}, {"type": "x"}, {"x": {"y": []}}),
    *("x" * 100_000, [0] * 5000, _DEEP),
)
"""Values that no program expects where they come to stand."""
_BYTES = (0, 1, 0x7F, 0x80, 0xFF)


def mutate(rng: random.Random, folder: Path) -> str:
    """Damage one file of a model in one way; says which and how."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix != ".py")
    file = rng.choice(files)
    change = _BY_SUFFIX.get(file.suffix, _bytes)
    if rng.random() < 0.12:
        change = _bytes
    try:
        how = change(rng, file)
    except (QFormatsError, ValueError, RecursionError, struct.error):
        # Damaged before: it has no structure any more.
        how = _bytes(rng, file)
    return f"{file.relative_to(folder)}: {how}"


def _bytes(rng: random.Random, file: Path) -> str:
    data = bytearray(file.read_bytes())
    if not data or rng.random() < 0.15:
        file.write_bytes(bytes(data[: rng.randrange(len(data) + 1)]))
        return "cut"
    # Heads and ends of files hold their structure.
    for _ in range(rng.randint(1, 8)):
        end = rng.choice((16, 200, 4000, len(data)))
        at = rng.randrange(min(end, len(data)))
        data[at if rng.random() < 0.7 else -at - 1] = rng.choice((*_BYTES, rng.randrange(256)))
    file.write_bytes(bytes(data))
    return "bytes"


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    pairs = (
        value.items() if isinstance(value, dict) else enumerate(value[:40]) if isinstance(value, list) else ()
    )
    for key, item in list(pairs)[:300]:
        found += _places(item, (*at, key))
    return found


def _spoil(rng: random.Random, value: Any) -> tuple[Any, str]:
    """Replace, drop, double or rename something inside a JSON value."""
    value = copy.deepcopy(value)
    places = _places(value)
    # Few of the many places lie high up, and those matter most.
    high = [place for place in places if len(place) <= 2]
    place = rng.choice(high if rng.random() < 0.5 else places)
    junk = rng.choice(JUNK)
    shown = f"{place} = {repr(junk)[:60] if junk is not _DEEP else 'deep'}"
    if not place:
        return junk, shown
    node = value
    for key in place[:-1]:
        node = node[key]
    how = rng.random()
    if how < 0.1:
        del node[place[-1]]
        return value, f"{place} deleted"
    if how < 0.2 and isinstance(node, dict):
        node[junk if isinstance(junk, str) else str(rng.random())] = node.pop(place[-1])
        return value, f"{place} renamed"
    if how < 0.3 and isinstance(node[place[-1]], int) and not isinstance(node[place[-1]], bool):
        junk = rng.choice((float(node[place[-1]]), str(node[place[-1]]), -node[place[-1]], [node[place[-1]]]))
        shown = f"{place} = {junk!r}"
    node[place[-1]] = junk
    return value, shown


def _encoded(rng: random.Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8)
    if rng.random() < 0.05 and text.startswith("{") and '"' in text:
        # A key twice: the last one counts.
        text = '{"model_type": 5, "model_type": "llama", ' + text[1:] if len(text) > 2 else text
    return text.encode("utf-8", "surrogatepass")


def _json(rng: random.Random, file: Path) -> str:
    value, how = _spoil(rng, json.loads(file.read_bytes()))
    file.write_bytes(_encoded(rng, value))
    return how


def _safetensors(rng: random.Random, file: Path) -> str:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    value, how = _spoil(rng, json.loads(data[8 : 8 + length]))
    head = _encoded(rng, value)
    head += b" " * (-len(head) % 8)
    body = data[8 + length :]
    if rng.random() < 0.3:
        # Weights of other values: scales that are NaN, codes out of range.
        body = bytearray(body)
        for _ in range(50):
            at = rng.randrange(len(body) - 4)
            body[at : at + 4] = rng.choice((b"\xff" * 4, b"\0\0\x80\x7f", b"\0\x7c\0\xfc", b"\0" * 4))
        return _write(file, struct.pack("<Q", length) + data[8 : 8 + length] + bytes(body), "weights")
    return _write(file, struct.pack("<Q", len(head)) + head + body, how)


def _write(file: Path, data: bytes, how: str) -> str:
    file.write_bytes(data)
    return how


def _gguf(rng: random.Random, file: Path) -> str:
    """Another type, another value or another number of elements for one key; or another entry for one tensor."""
    with read(file) as old:
        pairs = [(key, value.type, value.data, value.item) for key, value in old.metadata.items()]
        entries = [
            [tensor.name, list(reversed(tensor.shape)), tensor.type_id, tensor.offset - old.data_start]
            for tensor in old.tensors.values()
        ]
        body = file.read_bytes()[old.data_start :]
    how = ""
    if rng.random() < 0.75:
        at = rng.randrange(len(pairs))
        key, kind, data, item = pairs[at]
        if rng.random() < 0.1:
            del pairs[at]
            how = f"{key} deleted"
        elif rng.random() < 0.1:
            pairs[at] = (key + rng.choice(("x", ".0", "\0", "é")), kind, data, item)
            how = f"{key} renamed"
        elif kind is ValueType.ARRAY and rng.random() < 0.5:
            data = list(data)
            place = rng.randrange(len(data)) if data else 0
            if data and item is not ValueType.STRING:
                item = rng.choice([*(kind for kind in SCALARS if kind is not ValueType.BOOL)])
                data = [_number(item, each) for each in data]
            if data:
                data[place] = _any(rng, item)
            data = data[: rng.choice((0, 1, len(data), len(data), len(data)))]
            pairs[at] = (key, kind, data, item)
            how = f"{key}[{place}]"
        else:
            kind = rng.choice([*ValueType])
            item = rng.choice([*SCALARS, ValueType.STRING]) if kind is ValueType.ARRAY else None
            data = (
                [_any(rng, item) for _ in range(rng.choice((0, 1, 2, 5)))]
                if item is not None
                else _any(rng, kind)
            )
            pairs[at] = (key, kind, data, item)
            how = f"{key} = {kind.name} {repr(data)[:60]}"
    else:
        entry = rng.choice(entries)
        field = rng.randrange(4)
        names = (
            "",
            "x",
            "a\0b",
            "../x",
            "token_embd.weight",
            "output.weight",
            "blk.0.attn_q.weight",
            "é" * 31,
        )
        sizes = (0, 1, 2, 31, 32, 64, 2**31, 2**32, 2**63, 2**64 - 1)
        if field == 0:
            entry[0] = rng.choice(names)
        elif field == 1:
            entry[1] = [rng.choice((*sizes, *entry[1])) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4, 5)))]
        elif field == 2:
            entry[2] = rng.choice((*range(45), 2**31, 2**32 - 1))
        else:
            entry[3] = rng.choice((0, 1, 32, 2**31, 2**63, 2**64 - 32))
        how = f"tensor {entry!r}"
    head = [b"GGUF", struct.pack("<IQQ", rng.choice((2, 3)), len(entries), len(pairs))]
    for key, kind, data, item in pairs:
        head += [_text(key), struct.pack("<I", kind)]
        if kind is ValueType.ARRAY:
            assert item is not None
            head += [struct.pack("<IQ", item, len(data)), *(_scalar(item, each) for each in data)]
        else:
            head.append(_scalar(kind, data))
    for name, shape, type_id, offset in entries:
        head += [_text(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_id, offset)]
    start = b"".join(head)
    if rng.random() < 0.15:
        changed = bytearray(body)
        for _ in range(30):
            at = rng.randrange(len(changed) - 2)
            changed[at : at + 2] = rng.choice((b"\0\x7c", b"\xff\xff", b"\0\xfc", b"\0\0"))
        body = bytes(changed)
        how += ", weights"
    return _write(file, start + bytes(-len(start) % 32) + body, how)


def _any(rng: random.Random, kind: ValueType | None) -> Any:
    if kind is ValueType.STRING:
        return rng.choice(
            ("", "x", "\udcff\udcfe", "a\0b", "../x", "a b", "é" * 200, "yarn", "llama", "gpt2", "1e9")
        )
    if kind in (ValueType.F32, ValueType.F64):
        return rng.choice((0.0, -1.0, 1e-9, 3e38, float("nan"), float("inf"), float("-inf"), 1.5, 10000.0))
    return rng.choice((0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))


def _number(kind: ValueType, value: Any) -> Any:
    if kind in (ValueType.F32, ValueType.F64):
        return float(value)
    return int(value) if value == value and abs(value) < 2**62 else 0


def _scalar(kind: ValueType, value: Any) -> bytes:
    if kind is ValueType.STRING:
        return _text(str(value))
    if kind is ValueType.ARRAY:
        return struct.pack("<IQ", ValueType.U32, 0)
    if kind in (ValueType.F32, ValueType.F64):
        return struct.pack("<f" if kind is ValueType.F32 else "<d", float(value))
    size = int(SCALARS[kind][-1])
    return (int(value) % (1 << 8 * size)).to_bytes(size, "little")


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


_BY_SUFFIX: dict[str, Callable[[random.Random, Path], str]] = {
    ".json": _json,
    ".safetensors": _safetensors,
    ".gguf": _gguf,
}
