"""Reading and writing SentencePiece's model files, protocol buffers of few fields.

Source: google/sentencepiece:src/sentencepiece_model.proto and the protocol buffers encoding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from qformats.errors import CheckpointError

__all__ = ["BPE", "MODEL_TYPES", "UNIGRAM", "Piece", "PieceType", "SentencePieceModel", "parse", "serialize"]

MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
UNIGRAM, BPE = 1, 2

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class PieceType(IntEnum):
    """Values of a piece's ``type``.

    Examples
    --------
    >>> from qformats.vocabularies import PieceType
    >>> PieceType(4).name
    'USER_DEFINED'
    """

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One piece: its text, its score and its type (`PieceType`).

    Examples
    --------
    >>> from qformats.vocabularies import Piece, PieceType
    >>> Piece("the", -3.5, PieceType.NORMAL).score
    -3.5
    """

    text: str
    score: float
    type: int


@dataclass
class SentencePieceModel:
    """The relevant parts of a model.

    Attributes
    ----------
    pieces : list of Piece
        In the order of their ids.
    model_type : int
        Key of `MODEL_TYPES`; the default is unigram, as in the format.
    byte_fallback : bool
        Unknown characters become byte pieces.
    add_dummy_prefix : bool
        A space is put before the text.
    suffix_whitespace : bool
        Spaces belong to the word before them.
    remove_extra_whitespaces : bool
        Spaces at both ends are dropped, and several become one.
    charsmap : bytes
        Precompiled table of Unicode normalization; empty for none.
    ids : dict of str to int
        Ids of ``unk``, ``bos``, ``eos``, ``pad`` where they exist.

    Examples
    --------
    >>> from qformats.vocabularies import BPE, Piece, SentencePieceModel
    >>> model = SentencePieceModel([Piece("<unk>", 0.0, 2), Piece("a", -1.0, 1)], model_type=BPE, ids={"unk": 0})
    >>> model.add_dummy_prefix, len(model.pieces)
    (True, 2)
    """

    pieces: list[Piece] = field(default_factory=list)
    model_type: int = 1
    byte_fallback: bool = False
    add_dummy_prefix: bool = True
    suffix_whitespace: bool = False
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    ids: dict[str, int] = field(default_factory=dict)


_ROLE_FIELDS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}
_ROLE_PIECES = {45: "unk", 46: "bos", 47: "eos", 48: "pad"}


class _Malformed(ValueError):
    pass


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise _Malformed("ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise _Malformed(f"number of more than 10 bytes before byte {at}")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    """Field number, wire type, number (varints) and content (all others) of each field."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        value, length = 0, 0
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            length, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Malformed(f"wire type {wire} before byte {at}")
        if number == 0 or length > len(data) - at:
            raise _Malformed(f"field {number} of {length} bytes at byte {at} of {len(data)}")
        yield number, wire, value, data[at : at + length]
        at += length


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _piece(data: memoryview) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, wire, value, content in _fields(data):
        if (number, wire) == (1, _BYTES):
            text = bytes(content).decode("utf-8")
        elif (number, wire) == (2, _FIXED32):
            (score,) = struct.unpack("<f", content)
        elif (number, wire) == (3, _VARINT):
            kind = value
    if not 1 <= kind <= 6:
        raise _Malformed(f"piece {text!r} of type {kind}")
    return Piece(text, score, kind)


def _trainer(model: SentencePieceModel, data: memoryview) -> None:
    for number, wire, value, _ in _fields(data):
        if wire != _VARINT:
            continue
        if number == 3:
            model.model_type = value
        elif number == 24:
            model.suffix_whitespace = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number in _ROLE_FIELDS:
            model.ids[_ROLE_FIELDS[number]] = _signed(value)


def _normalizer(model: SentencePieceModel, data: memoryview) -> None:
    for number, wire, value, content in _fields(data):
        if (number, wire) == (2, _BYTES):
            model.charsmap = bytes(content)
        elif (number, wire) == (3, _VARINT):
            model.add_dummy_prefix = bool(value)
        elif (number, wire) == (4, _VARINT):
            model.remove_extra_whitespaces = bool(value)


def parse(data: bytes, file: str) -> SentencePieceModel:
    """Read a tokenizer.model.

    Parameters
    ----------
    data : bytes
        Content of the file.
    file : str
        Its name, for messages.

    Raises
    ------
    CheckpointError
        If it is not a SentencePiece model.

    Examples
    --------
    >>> from qformats.vocabularies import Piece, SentencePieceModel, parse, serialize
    >>> data = serialize(SentencePieceModel([Piece("<unk>", 0.0, 2), Piece("a", -1.0, 1)]))
    >>> parse(data, "tokenizer.model").pieces[1].text
    'a'
    """
    # The format's defaults for what the file leaves out.
    model = SentencePieceModel(ids={"unk": 0, "bos": 1, "eos": 2, "pad": -1}, remove_extra_whitespaces=True)
    try:
        for number, wire, _, content in _fields(memoryview(data)):
            if wire != _BYTES:
                continue
            if number == 1:
                model.pieces.append(_piece(content))
            elif number == 2:
                _trainer(model, content)
            elif number == 3:
                _normalizer(model, content)
    except (_Malformed, UnicodeDecodeError) as error:
        hint = None
        first = data[:200].split(b"\n", 1)[0].split()
        if len(first) == 2 and first[1].isdigit():
            hint = "it looks like tiktoken: save the tokenizer with Transformers to get a tokenizer.json"
        raise CheckpointError(file, f"not readable ({error})", "a SentencePiece model", hint=hint) from error
    if not model.pieces:
        raise CheckpointError(file, "no pieces", "a SentencePiece model")
    model.ids = {role: index for role, index in model.ids.items() if 0 <= index < len(model.pieces)}
    return model


def _number(value: int) -> bytes:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number_field(number: int, value: int) -> bytes:
    return _number(number << 3 | _VARINT) + _number(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _number(number << 3 | _BYTES) + _number(len(value)) + value


def serialize(model: SentencePieceModel) -> bytes:
    """Write a tokenizer.model that the sentencepiece library loads.

    Parameters
    ----------
    model : SentencePieceModel
        With exactly one piece of type UNKNOWN, as the library demands.

    Examples
    --------
    >>> from qformats.vocabularies import Piece, SentencePieceModel, serialize
    >>> b"<unk>" in serialize(SentencePieceModel([Piece("<unk>", 0.0, 2)]))
    True
    """
    out = [
        _bytes_field(
            1,
            _bytes_field(1, piece.text.encode("utf-8"))
            + _number(2 << 3 | _FIXED32)
            + struct.pack("<f", piece.score)
            + _number_field(3, piece.type),
        )
        for piece in model.pieces
    ]
    trainer = (
        _number_field(3, model.model_type)
        + _number_field(4, len(model.pieces))
        + _number_field(24, model.suffix_whitespace)
        + _number_field(35, model.byte_fallback)
    )
    for number, role in _ROLE_FIELDS.items():
        trainer += _number_field(number, model.ids.get(role, -1))
    for number, role in _ROLE_PIECES.items():
        if role in model.ids:
            trainer += _bytes_field(number, model.pieces[model.ids[role]].text.encode("utf-8"))
    out.append(_bytes_field(2, trainer))
    normalizer = (
        _bytes_field(1, b"user_defined" if model.charsmap else b"identity")
        + (_bytes_field(2, model.charsmap) if model.charsmap else b"")
        + _number_field(3, model.add_dummy_prefix)
        + _number_field(4, model.remove_extra_whitespaces)
        + _number_field(5, True)
    )
    out.append(_bytes_field(3, normalizer))
    return b"".join(out)
