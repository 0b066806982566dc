"""Damage to what torch.save writes: operations of the pickle, records of the archive, and its directory."""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from functools import lru_cache
from random import Random

from . import blobs

__all__ = ["change"]

_CALLS = (
    *(
        b"cfuzzing.watch\nsprung\n",
        b"cos\nsystem\n",
        b"cposix\nsystem\n",
        b"cbuiltins\neval\n",
        b"cbuiltins\nexec\n",
    ),
    *(
        b"cbuiltins\nopen\n",
        b"cbuiltins\ngetattr\n",
        b"csubprocess\nPopen\n",
        b"cnumpy\nload\n",
        b"ctorch\nload\n",
    ),
    *(
        b"ctorch.hub\nload\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nSize\n",
    ),
    *(b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nBFloat16Storage\n"),
    *(b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n", b"ctorch._utils\n_rebuild_sparse_tensor\n"),
    *(
        b"c_codecs\nencode\n",
        b"cnumpy.core.multiarray\n_reconstruct\n",
        b"ctorch\nTensor\n",
        b"ctorch\ndevice\n",
    ),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch._utils\n_rebuild_wrapper_subclass\n"),
)
_PIECES = (
    *(
        b")",
        b"(",
        b"}",
        b"]",
        b"R",
        b"\x81",
        b"b",
        b"s",
        b"u",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"N",
        b"\x88",
        b"Q",
    ),
    *(
        b"h\0",
        b"q\xff",
        b"0",
        b"1",
        b"2",
        b".",
        b"K\x01",
        b"M\xff\xff",
        b"J\xff\xff\xff\x7f",
        b"\x8a\x08" + b"\x7f" * 8,
    ),
    *(
        b"\x8a\x09" + b"\xff" * 8 + b"\0",
        b"\x8b\xff\xff\xff\x7f",
        b"X\x02\0\0\0id",
        b"X\xff\xff\xff\x7f",
        b"G" + b"\x7f" * 8,
    ),
    *(
        b"\x8d" + b"\xff" * 8,
        b"r\xff\xff\xff\x7f",
        b"\x94",
        b"\x93",
        b"\x92",
        b"P0\n",
        b"I99999999999999\n",
        b"e",
        b"a",
        b"o",
    ),
)


@lru_cache(maxsize=256)
def _operations(data: bytes) -> tuple[bytes, ...]:
    """A pickle in pieces, one an operation; what follows the first thing that is none is the last one."""
    starts: list[int] = []
    try:
        for _, _, position in pickletools.genops(data):
            starts.append(position or 0)
    except Exception:
        # pickletools has no end of ways to say that this is not a pickle.
        pass
    if not starts:
        return (data,)
    return tuple(data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True))


def _pickle(rng: Random, data: bytes) -> bytes:
    pieces = [*_operations(data)]
    at, how = rng.randrange(len(pieces)), rng.random()
    if how < 0.15:
        del pieces[at]
    elif how < 0.3:
        pieces.insert(at, rng.choice(pieces))
    elif how < 0.4:
        other = rng.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif how < 0.55:
        pieces.insert(at, rng.choice(_PIECES))
    elif how < 0.65:
        # A call, of something with an argument.
        pieces.insert(
            at, rng.choice(_CALLS) + rng.choice((b")R", b"X\x02\0\0\0id\x85R", b"K\x01\x85R", b")\x81", b""))
        )
    elif how < 0.75:
        named = [number for number, piece in enumerate(pieces) if piece[:1] in (b"c", b"\x93")]
        if named:
            pieces[rng.choice(named)] = rng.choice(_CALLS)
    elif how < 0.9:
        # Numbers and texts: sizes, strides, offsets, names of storages.
        numbers = [
            number for number, piece in enumerate(pieces) if piece[:1] in b"KMJX\x8a\x8c" and len(piece) > 1
        ]
        if numbers:
            chosen = rng.choice(numbers)
            pieces[chosen] = _argument(rng, pieces[chosen])
    else:
        pieces[at] = blobs.change(rng, pieces[at])
    return b"".join(pieces)


def _argument(rng: Random, piece: bytes) -> bytes:
    if piece[:1] in b"X\x8c":
        new = rng.choice(
            (b"", b"x", b"0", b"1", b"cpu", b"cuda:0", b"meta", b"../../secret", b"storage", b"\xff", b"99")
        )
        return b"X" + struct.pack("<I", len(new)) + new
    value = blobs.integer(rng, int.from_bytes(piece[1:], "little") if len(piece) < 10 else None)
    if rng.random() < 0.2:
        value = -value
    raw = value.to_bytes((value.bit_length() // 8) + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


@lru_cache(maxsize=256)
def _records(data: bytes) -> tuple[tuple[str, bytes], ...] | None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(each.file_size > len(data) for each in archive.infolist()):
                return None
            return tuple((each.filename, archive.read(each)) for each in archive.infolist())
    except Exception:
        # zipfile has a type for each way an archive can be wrong.
        return None


def change(rng: Random, data: bytes) -> bytes:
    """Change one thing of an archive, or of a bare pickle."""
    if rng.random() < 0.08:
        return blobs.change(rng, data)
    if data[:2] != b"PK":
        return _pickle(rng, data)
    records = _records(data)
    how = rng.random()
    if records is None or how < 0.2:
        return _directory(rng, data)
    changed = [list(each) for each in records]
    pickled = [each for each in changed if each[0].endswith(".pkl")]
    if pickled and how < 0.85:
        pickled[0][1] = _pickle(rng, bytes(pickled[0][1]))
    elif changed:
        chosen = rng.choice(changed)
        what = rng.random()
        if what < 0.25:
            changed.remove(chosen)
        elif what < 0.5:
            chosen[0] = rng.choice(
                ("../secret", "x/data/0", "archive/data.pkl", chosen[0] + "x", "", "a\0b", "/x")
            )
        elif what < 0.6:
            changed.append([*chosen])
        else:
            chosen[1] = blobs.change(rng, bytes(chosen[1]))
    out = io.BytesIO()
    squeezed = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", squeezed) as archive:
        for name, content in changed:
            archive.writestr(zipfile.ZipInfo(name), content, squeezed)
    return out.getvalue()


def _directory(rng: Random, data: bytes) -> bytes:
    """Change a number in the headers of a zip file."""
    marks = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"]
    mark, found = rng.choice(marks), []
    at = data.find(mark)
    while at >= 0 and len(found) < 60:
        found.append(at)
        at = data.find(mark, at + 4)
    if not found:
        return blobs.change(rng, data)
    at = rng.choice(found) + rng.randrange(4, 48)
    width = rng.choice((2, 4))
    old = int.from_bytes(data[at : at + width], "little")
    return (
        data[:at]
        + (blobs.integer(rng, old) % (1 << 8 * width)).to_bytes(width, "little")
        + data[at + width :]
    )
