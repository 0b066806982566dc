"""Unigram models of SentencePiece, those of XLM-RoBERTa above all: to a GGUF vocabulary.

llama.cpp finds the way through a word whose pieces have the highest scores, as Transformers does. Before that it brings
Unicode into one form by the table that comes with the model (``precompiled_charsmap``), makes one space of several,
drops those at both ends and puts one before the text.

Sources: ggml-org/llama.cpp:conversion/bert.py (``_xlmroberta_set_vocab``), src/llama-vocab.cpp
(``llm_tokenizer_ugm_session``); huggingface/transformers:src/transformers/convert_slow_tokenizer.py.
"""

from __future__ import annotations

import base64
import binascii
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import UNIGRAM as TYPE
from qformats.vocabularies import SentencePieceModel, parse, using_library

from ..metadata import Metadata, ValueType, array, boolean
from .added import AddedToken, added_tokens, looks_special
from .files import TokenizerFiles
from .spm import ALWAYS, EVERY, FIRST, SPACE, flat
from .unlisted import with_unlisted
from .vocabulary import PAD_SCORE, UNIGRAM, TokenType, Vocabulary, padded_size, padding_token, with_rows

__all__ = [
    "CHARSMAP",
    "REMOVE_SPACES",
    "SENTENCEPIECE",
    "from_model_file",
    "from_tokenizer_json",
    "is_unigram",
    "normalizer",
    "normalizer_metadata",
]

CHARSMAP = "tokenizer.ggml.precompiled_charsmap"
REMOVE_SPACES = "tokenizer.ggml.remove_extra_whitespaces"
SENTENCEPIECE = "sentencepiece.bpe.model"
"""What XLM-RoBERTa's first files call their unigram model."""
_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_UNKNOWN, _BEHIND = 3, "<mask>"
_CLASSES = ("XLMRobertaTokenizer", "XLMRobertaTokenizerFast")
_SPLITS = "llama.cpp takes words apart at spaces, and puts one before the first"
_SEVERAL = ("Replace", "Regex", " {2,}")


def is_unigram(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds a unigram model."""
    model = tokenizer.get("model")
    return isinstance(model, Mapping) and model.get("type") == "Unigram"


def from_tokenizer_json(
    files: TokenizerFiles, config: Mapping[str, Any], pre: str | None
) -> tuple[Vocabulary, str]:
    """Read the vocabulary of a tokenizer.json that holds a unigram model, and where it puts a space.

    Raises
    ------
    CheckpointError
        If the file is malformed.
    UnsupportedModelError
        If it brings text into another form, or splits it otherwise, than llama.cpp does.
    """
    name = "tokenizer.json"
    tokenizer, path = files.json(name) or {}, files.path(name)
    model = tokenizer["model"]
    if model.get("byte_fallback"):
        hint = "llama.cpp's unigram tokenizer has no bytes for letters that it does not know"
        raise UnsupportedModelError(f"{path}: byte_fallback", True, ["false"], hint)
    pieces = _pieces(path, model.get("vocab"))
    scheme = _scheme(files, path, tokenizer)
    _refuse_other_spaces(path, _charsmap(files))
    unknown = model.get("unk_id")
    if not isinstance(unknown, int) or isinstance(unknown, bool) or not 0 <= unknown < len(pieces):
        raise CheckpointError(path, f"unk_id is {unknown!r}", "the id of the unknown token")
    vocabulary = files.vocabulary(name, {text: index for index, (text, _) in enumerate(pieces)})
    if len(vocabulary) != len(pieces):
        text = next(text for index, (text, _) in enumerate(pieces) if vocabulary[text] != index)
        raise CheckpointError(path, f"two ids have the token {text!r}", "unique tokens")
    added = added_tokens(files, vocabulary)
    return _build(files, path, pieces, unknown, added, config, pre), scheme


def from_model_file(
    files: TokenizerFiles, config: Mapping[str, Any], pre: str | None
) -> tuple[Vocabulary, str]:
    """Read the vocabulary of a folder of XLM-RoBERTa that has its SentencePiece model but no tokenizer.json.

    The pieces keep their order behind four tokens of the model's own; ``<mask>`` follows them.

    Raises
    ------
    CheckpointError
        If the file is malformed.
    UnsupportedModelError
        If it is another model's: each puts the pieces elsewhere.
    """
    path = files.path(SENTENCEPIECE)
    named = files.settings().get("tokenizer_class")
    if named not in _CLASSES and config.get("model_type") != "xlm-roberta":
        hint = "save the tokenizer with Transformers to get a tokenizer.json"
        raise UnsupportedModelError(f"{path}: tokenizer_class", named, _CLASSES, hint)
    model = _model(files)
    if model.model_type != TYPE or model.suffix_whitespace or model.byte_fallback:
        raise UnsupportedModelError(
            f"{path}: SentencePiece model", "another", ["unigram without bytes"], _SPLITS
        )
    if not model.add_dummy_prefix or not model.remove_extra_whitespaces:
        found = "spaces kept as they are"
        raise UnsupportedModelError(f"{path}: normalizer", found, ["one space before each word"], _SPLITS)
    _refuse_no_space(files)
    _refuse_other_spaces(path, model.charsmap)
    own = [(text, 0.0) for text in _FIRST]
    pieces = [*own, *((piece.text, piece.score) for piece in model.pieces[len(_FIRST) - 1 :]), (_BEHIND, 0.0)]
    vocabulary = {text: index for index, (text, _) in enumerate(pieces)}
    added = added_tokens(files, vocabulary)
    added |= {vocabulary[text]: AddedToken(text, special=True) for text in (*_FIRST, _BEHIND)}
    return _build(files, path, pieces, _UNKNOWN, added, config, pre), EVERY


def normalizer_metadata(files: TokenizerFiles) -> Metadata:
    """What becomes of a text before it is split."""
    values = {REMOVE_SPACES: boolean(True)}
    if table := _charsmap(files):
        values[CHARSMAP] = array(ValueType.U8, table)
    return values


def normalizer(charsmap: bytes, file: str) -> Any:
    """The tokenizers library's reading of a table.

    Raises
    ------
    CheckpointError
        If it cannot read it.
    """
    from tokenizers import normalizers

    found = "a precompiled_charsmap that the tokenizers library cannot read"
    with using_library(file, found, "a table of SentencePiece"):
        return normalizers.Precompiled(charsmap)


def _model(files: TokenizerFiles) -> SentencePieceModel:
    return parse(files.bytes(SENTENCEPIECE), files.path(SENTENCEPIECE))


def _charsmap(files: TokenizerFiles) -> bytes:
    tokenizer = files.json("tokenizer.json")
    if tokenizer is None:
        return _model(files).charsmap
    given = tokenizer.get("normalizer")
    steps = given.get("normalizers") if isinstance(given, Mapping) else None
    for step in steps if isinstance(steps, list) else [given]:
        if isinstance(step, Mapping) and step.get("type") == "Precompiled":
            try:
                return base64.b64decode(step.get("precompiled_charsmap") or "", validate=True)
            except (TypeError, ValueError, binascii.Error) as error:
                path = files.path("tokenizer.json")
                raise CheckpointError(path, "precompiled_charsmap is not base64", "a table") from error
    return b""


def _pieces(file: str, vocab: Any) -> list[tuple[str, float]]:
    if not isinstance(vocab, list):
        raise CheckpointError(
            file, f"a vocabulary of type {type(vocab).__name__}", "a list of tokens and scores"
        )
    found = []
    for index, entry in enumerate(vocab):
        text, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, 0.0)
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not isinstance(text, str) or not number or abs(score) > sys.float_info.max:
            raise CheckpointError(file, f"token {index} is {entry!r}", "a token and its score")
        found.append((text, float(score)))
    return found


def _scheme(files: TokenizerFiles, file: str, tokenizer: Mapping[str, Any]) -> str:
    """Where a space goes that the text does not have; warns where Transformers keeps spaces that llama.cpp drops."""
    _refuse_no_space(files)
    steps = flat(tokenizer.get("normalizer"), "normalizers")
    steps = steps[1:] if steps[:1] == [("other", "Precompiled")] else steps
    strips = ("Strip", False, True) in steps
    merges = any(step[:3] == _SEVERAL for step in steps)
    known = [("Strip", False, True), (*_SEVERAL, " "), (*_SEVERAL, SPACE)]
    strange = [step for step in steps if step not in known]
    if strange:
        expected = ["Precompiled, Strip on the right and Replace of several spaces"]
        raise UnsupportedModelError(f"{file}: normalizer", _named(strange[0]), expected, _SPLITS)
    before = flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    words = before[:1] == [("other", "WhitespaceSplit")]
    before = before[1:] if words else before
    if len(before) != 1 or before[0][:2] != ("Metaspace", SPACE) or before[0][2] not in (ALWAYS, FIRST):
        found = ", ".join(map(_named, before)) or "none"
        expected = ["Metaspace with a space before the text, with or without WhitespaceSplit"]
        raise UnsupportedModelError(f"{file}: pre_tokenizer", found, expected, _SPLITS)
    if not words and not (strips and merges):
        where = "before a special token or the end of a text"
        where = where if merges else f"{where}, and those that follow another one"
        warnings.warn(
            f"{file}: llama.cpp drops spaces {where}, for which Transformers has tokens here",
            UserWarning,
            stacklevel=3,
        )
    return EVERY if before[0][2] == ALWAYS else FIRST


def _refuse_no_space(files: TokenizerFiles) -> None:
    if files.settings().get("add_prefix_space") is False:
        raise UnsupportedModelError(f"{files.source}: add_prefix_space", False, ["true"], _SPLITS)


def _named(step: Sequence[Any]) -> str:
    return str(step[1] if step[0] == "other" else step[0])


def _refuse_other_spaces(file: str, charsmap: bytes) -> None:
    """Refuse a table that leaves line ends and the like, at which Transformers splits text and llama.cpp does not."""
    kept = "\n"
    if charsmap:
        table = normalizer(charsmap, file)
        # NEL, a line end of mainframes, is the one kind that SentencePiece's own table leaves.
        spaces = [chr(code) for code in range(0x3001) if chr(code).isspace() and code != 0x85]
        kept = next((each for each in spaces if table.normalize_str(each).strip(" ")), "")
    if kept:
        raise UnsupportedModelError(
            f"{file}: normalizer",
            f"a table that leaves U+{ord(kept):04X} in the text",
            ["a table of SentencePiece that makes every kind of white space a space (nmt_nfkc)"],
            _SPLITS,
        )


def _build(
    files: TokenizerFiles,
    file: str,
    pieces: Sequence[tuple[str, float]],
    unknown: int,
    added: Mapping[int, AddedToken],
    config: Mapping[str, Any],
    pre: str | None,
) -> Vocabulary:
    own = {text: index for index, (text, _) in enumerate(pieces)}
    added = with_unlisted(files, config, own, added)
    added = with_rows(config, len(pieces) - 1, added, file)
    size = padded_size(config, max([len(pieces) - 1, *added]), len({*own.values(), *added}), file)
    tokens = [padding_token(index) for index in range(size)]
    scores, types = [PAD_SCORE] * size, [int(TokenType.UNUSED)] * size
    for index, (text, score) in enumerate(pieces):
        if text != padding_token(index):
            tokens[index], scores[index], types[index] = text, score, TokenType.NORMAL
    for index, entry in added.items():
        if index < len(pieces) and pieces[index][0] != entry.text:
            found = f"added token {entry.text!r} has id {index}, which is {pieces[index][0]!r}"
            raise CheckpointError(file, found, "unique ids")
        control = entry.special or looks_special(entry.text)
        tokens[index], types[index] = entry.text, TokenType.CONTROL if control else TokenType.USER_DEFINED
        if index >= len(pieces):
            # Found in the raw text, whatever its score.
            scores[index] = 0.0
    types[unknown] = TokenType.UNKNOWN
    result = Vocabulary(UNIGRAM, pre or "default", tokens, types, scores)
    result.check(file)
    return result
