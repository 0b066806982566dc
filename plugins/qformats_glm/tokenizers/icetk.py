"""GLM-130B and ChatGLM-6B: a SentencePiece unigram model behind the ids of images, spaces and line ends as tokens.

Source: the models' tokenizer classes and icetk.
"""

from __future__ import annotations

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import (
    MODEL_TYPES,
    UNIGRAM,
    Piece,
    PieceType,
    SentencePieceModel,
    sentencepiece_unigram_sections,
)

from .vocabulary import NEVER, Built

__all__ = ["icetk"]

_COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
_LONGEST = 80
"""Spaces that one token stands for at most."""
_BLANKS = [f"<|blank_{count}|>" for count in range(_LONGEST, 1, -1)]


def icetk(model: SentencePieceModel, file: str, *, images: int, chat: bool) -> Built:
    """Build the tokenizer of an ``ice_text.model``.

    Parameters
    ----------
    model : SentencePieceModel
        The vocabulary; special tokens, blanks and bytes are added to a file that lacks them, as icetk does.
    file : str
        Its name, for messages.
    images : int
        Ids of image tokens, which come before those of text: 20000 in GLM-130B and the first release of ChatGLM-6B.
    chat : bool
        Whether it belongs to ChatGLM-6B.

    Raises
    ------
    CheckpointError
        If a token that the models' code needs is missing.
    UnsupportedModelError
        If it is another kind of model.
    """
    if model.model_type != UNIGRAM or not model.add_dummy_prefix or not model.remove_extra_whitespaces:
        kind = MODEL_TYPES.get(model.model_type, f"type {model.model_type}")
        found = kind if model.model_type != UNIGRAM else "unigram with other rules for spaces"
        raise UnsupportedModelError(f"{file}: SentencePiece model", found, ["unigram, as icetk has it"])
    pieces = list(model.pieces)
    texts = {piece.text for piece in pieces}
    if "[gMASK]" not in texts:
        pieces += _appended()
    ids = {piece.text: images + at for at, piece in enumerate(pieces)}
    needed = ("<unk>", "</s>", "<pad>", "<n>", "[MASK]", "[gMASK]", "<sop>", "<eop>", "<|tab|>", *_BLANKS)
    missing = [text for text in needed if text not in ids]
    if missing or len(ids) < len(pieces):
        problem = f"lacks the token {missing[0]}" if missing else "has a token twice"
        raise CheckpointError(file, problem, "the tokens of ChatGLM-6B or GLM-130B, each once")
    special = {piece.text: ids[piece.text] for piece in pieces if piece.type == PieceType.CONTROL}
    special["<unk>"] = ids["<unk>"]
    spelled = [("\n", "<n>"), ("\t", "<|tab|>")]
    spelled += [(" " * count, blank) for count, blank in zip(range(_LONGEST, 1, -1), _BLANKS, strict=True)]
    # No text contains the NUL in the names of image tokens: normalization takes it away.
    before_text = [(f"\0image {at}", NEVER) for at in range(images)]
    return Built(
        sentencepiece_unigram_sections(
            before_text + _scored(pieces),
            ids["<unk>"],
            charsmap=model.charsmap,
            before=[_replace(text, token) for text, token in spelled],
            after=[_replace(token, text) for text, token in spelled],
        ),
        special,
        "chatglm" if chat else "",
        after=("[gMASK]", "<sop>"),
        roles={
            "bos_token": "<sop>",
            "eos_token": "<eop>",
            "unk_token": "<unk>",
            "pad_token": "<pad>",
            "mask_token": "[MASK]",
        },
        ends=(ids["<eop>"],) if chat else (ids["<eop>"], ids["</s>"]),
    )


def _replace(text: str, by: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": text}, "content": by}


def _appended() -> list[Piece]:
    """Pieces that icetk adds to its file when it is loaded."""
    found = [Piece(text, 0.0, PieceType.CONTROL) for text in _COMMANDS]
    found += [Piece("<|tab|>", 0.0, PieceType.USER_DEFINED)]
    found += [Piece(text, 0.0, PieceType.USER_DEFINED) for text in reversed(_BLANKS)]
    return found + [Piece(f"<0x{byte:02X}>", 0.0, PieceType.BYTE) for byte in range(256)]


def _scored(pieces: list[Piece]) -> list[tuple[str, float]]:
    """Give each piece the score that SentencePiece counts with.

    A user-defined piece competes with its length in bytes times the best score, less 0.1; control pieces and bytes
    do not come from text.
    """
    import numpy as np

    best = max(piece.score for piece in pieces if piece.type == PieceType.NORMAL)
    found = []
    for piece in pieces:
        score = float(np.float32(piece.score))
        if piece.type == PieceType.USER_DEFINED:
            score = len(piece.text.encode()) * best - 0.1
        elif piece.type != PieceType.NORMAL:
            score = NEVER
        found.append((piece.text, score))
    return found
