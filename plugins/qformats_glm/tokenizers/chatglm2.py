"""ChatGLM2 and ChatGLM3: SentencePiece BPE, followed by special tokens that only the models' code names."""

from __future__ import annotations

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import BPE, MODEL_TYPES, PieceType, SentencePieceModel, sentencepiece_bpe_sections

from .vocabulary import Built

__all__ = ["CODE_SOP", "SOP", "chatglm2"]

CODE_SOP, SOP = "[gMASK]sop", "[gMASK]<sop>"
"""Start of a chat as ChatGLM's code spells it, and as here.

Transformers finds added tokens anywhere in a text: one that is spelled ``sop`` would cut "philosophy" in three.
"""
_COMMANDS = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def chatglm2(model: SentencePieceModel, file: str, *, roles: bool) -> Built:
    """Build the tokenizer of a ``tokenizer.model``.

    Parameters
    ----------
    model : SentencePieceModel
        The vocabulary; the special tokens follow it.
    file : str
        Its name, for messages.
    roles : bool
        Whether the model is ChatGLM3, which has a token for each role.

    Raises
    ------
    CheckpointError
        If a token that ChatGLM's code needs is missing.
    UnsupportedModelError
        If it is another kind of model, or normalizes text.
    """
    if model.model_type != BPE or model.charsmap or model.remove_extra_whitespaces or not model.byte_fallback:
        kind = MODEL_TYPES.get(model.model_type, f"type {model.model_type}")
        found = f"{kind}{' that normalizes text' if model.charsmap or model.remove_extra_whitespaces else ''}"
        raise UnsupportedModelError(
            f"{file}: SentencePiece model", found, ["bpe with bytes, without normalization"]
        )
    texts = [piece.text for piece in model.pieces]
    vocabulary = {text: index for index, text in enumerate(texts)}
    named = {role: texts[model.ids[role]] for role in ("unk", "bos", "eos") if role in model.ids}
    if len(named) < 3 or len(vocabulary) < len(texts):
        raise CheckpointError(
            file, f"has the roles {', '.join(named) or 'none'}", "unk, bos and eos, and each token once"
        )
    special = {text: len(texts) + at for at, text in enumerate(_COMMANDS + (_ROLES if roles else ()))}
    special |= {
        text: index for index, text in enumerate(texts) if model.pieces[index].type == PieceType.CONTROL
    }
    special[named["unk"]] = model.ids["unk"]
    normal = {piece.text: piece.score for piece in model.pieces if piece.type == PieceType.NORMAL}
    ends = [model.ids["eos"]]
    if roles:
        ends += [special["<|user|>"], special["<|observation|>"]]
    return Built(
        sentencepiece_bpe_sections(vocabulary, normal, named["unk"], prefix=model.add_dummy_prefix),
        special,
        "chatglm3" if roles else "chatglm2",
        before=("[gMASK]", "<sop>"),
        roles={
            "bos_token": named["bos"],
            "eos_token": named["eos"],
            "unk_token": named["unk"],
            "pad_token": named["unk"],
        },
        ends=tuple(ends),
    )
