"""From GGUF metadata to the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.vocabularies import EVERY, added_token, around

from .. import sampling
from ..metadata import Keys, Metadata, ValueType, string
from . import chatglm, rebuild_spm, rebuild_unigram, rebuild_wordpiece, unigram
from .ends import INTEGERS, default_ends, stored_ends
from .pretokenizers import BY_NAME, DEFAULT, PRE_TOKENIZERS, SPLITTERS, PreTokenizer
from .special import ID_KEYS
from .spm import ALWAYS, FIRST
from .surroundings import stored_flags
from .templates import TEMPLATE, clean_name
from .vocabulary import UNIGRAM, TokenType, padding_token

__all__ = ["from_gguf", "special_ids"]

_KINDS = {
    "gpt2": "gpt2 (byte-level BPE)",
    "llama": "llama (SentencePiece BPE)",
    "bert": "bert (WordPiece)",
    UNIGRAM: "t5 (SentencePiece unigram)",
}
_F32_MAX = 3.4028234e38


def special_ids(metadata: Metadata) -> dict[str, int]:
    """Find the special ids for config.json.

    Parameters
    ----------
    metadata : Metadata
        Key-value section of a GGUF file.

    Returns
    -------
    dict of str to int
        ``bos_token_id``, ``eos_token_id``, ``pad_token_id``, as far as the file has them. Ids outside the
        vocabulary (some writers put 4294967295 for none) count as absent.
    """
    size = len(_strings(metadata, "tokenizer.ggml.tokens", "GGUF metadata"))
    roles = _roles(metadata, size)
    return {f"{role}_token_id": roles[role] for role in ("bos", "eos", "pad") if role in roles}


def from_gguf(
    metadata: Metadata, *, source: str = "", max_length: int | None = None, pre: str | None = None
) -> dict[str, bytes]:
    """Rebuild the tokenizer files of a Hugging Face folder.

    Parameters
    ----------
    metadata : Metadata
        Key-value section of a GGUF file.
    source : str
        Name of the file, for messages.
    max_length : int, optional
        The model's context length, for ``model_max_length``.
    pre : str, optional
        Pre-tokenizer to assume instead of the one the file names.

    Returns
    -------
    dict of str to bytes
        tokenizer.json, tokenizer_config.json, special_tokens_map.json; where they apply also tokenizer.model,
        generation_config.json, chat_template.jinja and additional_chat_templates/NAME.jinja.

    Raises
    ------
    CheckpointError
        If the metadata is incomplete or contradicts itself.
    UnsupportedModelError
        If the tokenizer is of another kind than byte-level BPE, SentencePiece BPE or unigram, or WordPiece, or splits
        text in a way that tokenizer.json cannot express.
    """
    file = source or "GGUF metadata"
    model = _text(metadata, "tokenizer.ggml.model", file)
    if model not in _KINDS:
        raise UnsupportedModelError(f"{file}: tokenizer.ggml.model", model, _KINDS.values())
    if model == "bert":
        return _wordpiece(metadata, file, max_length)
    tokens = _tokens(metadata, file)
    own = model == "llama" and metadata.get("tokenizer.ggml.pre") == string(chatglm.PRE)
    if own:
        tokens = [chatglm.spelled(text, gguf=False) for text in tokens]
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), int(TokenType.NORMAL), file)
    row = _row(metadata, pre, file) if model == "gpt2" else None
    roles, ugm = _roles(metadata, len(tokens)), model == UNIGRAM
    if ugm:
        roles = rebuild_unigram.usual_roles(roles, len(tokens))
    add_bos = _flag(metadata, "add_bos_token", row.add_bos if row else not ugm, file) and "bos" in roles
    add_eos = _flag(metadata, "add_eos_token", ugm, file) and "eos" in roles
    # Older converters gave padding the type of an unknown token.
    padding = (TokenType.UNUSED, TokenType.UNKNOWN)
    kept = {
        token: index
        for index, token in enumerate(tokens)
        if types[index] not in padding or token != padding_token(index)
    }
    special = {index for role, index in roles.items() if not role.startswith("fim_")}
    flags = stored_flags(metadata, len(tokens))
    added = [
        added_token(index, tokens[index], special=types[index] != TokenType.USER_DEFINED or index in special)
        | flags.get(index, {})
        for index in kept.values()
        if types[index] in (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED) or index in special
    ]
    files: dict[str, bytes] = {}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    if row is not None:
        body = _byte_level(metadata, row, kept, file)
        prefix = _flag(metadata, "add_space_prefix", False, file, default_none=True)
    elif ugm:
        prefix = _flag(metadata, "add_space_prefix", False, file)
        body = _unigram(metadata, tokens, types, roles.get("unk", -1), prefix, file)
        settings["model_input_names"] = rebuild_unigram.INPUTS
    else:
        scores = _numbers(metadata, "tokenizer.ggml.scores", len(tokens), 0.0, file)
        prefix = _flag(metadata, "add_space_prefix", True, file)
        said = metadata.get(rebuild_spm.PREPEND_SCHEME)
        scheme = said.data if said in (string(ALWAYS), string(FIRST)) else EVERY
        body = rebuild_spm.tokenizer_json(
            tokens, types, scores, kept, roles, prefix=bool(prefix), scheme=scheme
        )
        settings["added_tokens_decoder"] = rebuild_spm.added_decoder(added, scores)
        model_file = rebuild_spm.model_file(tokens, types, scores, kept, roles, prefix=bool(prefix))
        if model_file is not None:
            files["tokenizer.model"] = model_file
    first = [(tokens[roles["bos"]], roles["bos"])] if add_bos else []
    last = [(tokens[roles["eos"]], roles["eos"])] if add_eos else []
    wrapped = around(first, last)
    twice = _flag(metadata, "add_sep_token", bool(row and row.add_sep), file) and add_eos
    if wrapped and (ugm or twice):
        wrapped = rebuild_unigram.around_two(first, last, twice=twice)
    body |= {"added_tokens": added, "post_processor": wrapped if wrapped else body.get("post_processor")}
    files["tokenizer.json"] = _json({"version": "1.0", "truncation": None, "padding": None} | body, file)
    named = {f"{role}_token": tokens[index] for role, index in roles.items()}
    settings |= named | {
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
    }
    if prefix is not None:
        settings["add_prefix_space"] = prefix
    if max_length is not None:
        settings["model_max_length"] = max_length
    files["tokenizer_config.json"] = _json(settings, file, indent=2)
    basic = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    by_role = {f"{role}_token": tokens[roles[role]] for role in basic if role in roles}
    files["special_tokens_map.json"] = _json(by_role, file, indent=2)
    ends = stored_ends(metadata, len(tokens))
    generation: dict[str, Any] = {f"{role}_token_id": roles[role] for role in ("bos", "pad") if role in roles}
    if ends == []:
        # Said, so that the file exists and Transformers does not look into config.json.
        generation["eos_token_id"] = None
    elif ends := ends or default_ends(roles, tokens, types):
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    generation |= sampling.from_metadata(metadata, file)
    if generation:
        files["generation_config.json"] = _json(generation, file, indent=2)
    templates = _templates(metadata, file)
    if own:
        templates = {
            name: chatglm.spelled(text.decode(), gguf=False).encode() for name, text in templates.items()
        }
    return files | templates


def _unigram(
    metadata: Metadata, tokens: list[str], types: list[Any], unknown: int, prefix: bool, file: str
) -> dict[str, Any]:
    table = metadata.get(unigram.CHARSMAP)
    charsmap = b""
    if table is not None:
        if table.type != ValueType.ARRAY or table.item not in (ValueType.U8, ValueType.I8):
            raise CheckpointError(file, f"{unigram.CHARSMAP} is not a list of bytes", "a list of bytes")
        charsmap = bytes(int(each) & 0xFF for each in table.data)
        unigram.normalizer(charsmap, file)
    return rebuild_unigram.tokenizer_json(
        tokens,
        types,
        _numbers(metadata, "tokenizer.ggml.scores", len(tokens), 0.0, file),
        unknown,
        charsmap=charsmap,
        removes_spaces=_flag(metadata, "remove_extra_whitespaces", False, file),
        prefix=prefix,
        first=metadata.get(rebuild_spm.PREPEND_SCHEME) == string(FIRST),
        file=file,
    )


def _wordpiece(metadata: Metadata, file: str, max_length: int | None) -> dict[str, bytes]:
    # The one that goes on with a word and has no letters is no fault here.
    tokens = _tokens(metadata, file, named=False)
    types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), int(TokenType.NORMAL), file)
    found = rebuild_wordpiece.content(
        tokens,
        types,
        rebuild_wordpiece.usual_roles(_roles(metadata, len(tokens)), len(tokens)),
        stored_flags(metadata, len(tokens)),
        file,
        lowercase=_flag(metadata, "normalizer.lowercase", True, file),
        strip_accents=_flag(metadata, "normalizer.strip_accents", False, file, default_none=True),
        max_length=max_length,
    )
    return {
        name: _json(value, file, indent=None if name == "tokenizer.json" else 2)
        for name, value in found.items()
    }


def _row(metadata: Metadata, pre: str | None, file: str) -> PreTokenizer:
    # Files older than the key do not name one; the loader then assumes this.
    found = pre or (
        _text(metadata, "tokenizer.ggml.pre", file) if "tokenizer.ggml.pre" in metadata else DEFAULT
    )
    row = BY_NAME.get(found)
    if row is None or row.splitter is None:
        raise UnsupportedModelError(
            f"{file}: pre-tokenizer",
            found,
            (known.name for known in PRE_TOKENIZERS if known.splitter),
            "--pre NAME rebuilds the tokenizer as one of these",
        )
    return row


def _byte_level(metadata: Metadata, row: PreTokenizer, kept: Mapping[str, int], file: str) -> dict[str, Any]:
    merges = []
    for rank, merge in enumerate(_strings(metadata, "tokenizer.ggml.merges", file)):
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or not right:
            raise CheckpointError(file, f"merge {rank} is {merge!r}", "two tokens")
        for token in (left, right, left + right):
            if token not in kept:
                raise CheckpointError(file, f"merge {rank} needs {token!r}", "a token of the vocabulary")
        merges.append([left, right])
    steps = list(SPLITTERS[row.splitter or DEFAULT].steps)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": row.ignore_merges,
            "vocab": dict(kept),
            "merges": merges,
        },
    }


def _templates(metadata: Metadata, file: str) -> dict[str, bytes]:
    files = {}
    for key in metadata:
        if key == TEMPLATE:
            name = "chat_template.jinja"
        elif key.startswith(TEMPLATE + "."):
            name = f"additional_chat_templates/{clean_name(key.removeprefix(TEMPLATE + '.'))}.jinja"
        else:
            continue
        files[name] = _encode(_text(metadata, key, file), f"{file}: {key}")
    return files


def _json(value: Any, file: str, indent: int | None = None) -> bytes:
    return _encode(json.dumps(value, ensure_ascii=False, indent=indent), file) + b"\n"


def _encode(text: str, file: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CheckpointError(file, "a string of the tokenizer is not UTF-8", "UTF-8") from error


def _roles(metadata: Metadata, size: int) -> dict[str, int]:
    found = {}
    for role, key in ID_KEYS.items():
        value = metadata.get(key)
        if value is not None and value.type in INTEGERS:
            index = int(value.data)
            if 0 <= index < size:
                found[role] = index
    return found


def _text(metadata: Metadata, key: str, file: str) -> str:
    return Keys(metadata, file).text(key)


def _flag(metadata: Metadata, key: str, default: bool, file: str, *, default_none: bool = False) -> Any:
    return Keys(metadata, file).flag(f"tokenizer.ggml.{key}", None if default_none else default)


def _strings(metadata: Metadata, key: str, file: str) -> list[str]:
    return list(Keys(metadata, file).strings(key))


def _tokens(metadata: Metadata, file: str, *, named: bool = True) -> list[str]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens", file)
    if named:
        # llama.cpp's name for empty tokens.
        tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    for index, token in enumerate(tokens):
        try:
            token.encode("utf-8")
        except UnicodeEncodeError:
            told = f"token {index} of tokenizer.ggml.tokens is {token!r}"
            hint = "files of Hugging Face tokenizers hold no other bytes"
            raise CheckpointError(file, told, "UTF-8", hint=hint) from None
    if not tokens:
        raise CheckpointError(file, "tokenizer.ggml.tokens is empty", "a vocabulary")
    if len(set(tokens)) != len(tokens):
        raise CheckpointError(file, "tokenizer.ggml.tokens holds a token twice", "unique tokens")
    return tokens


def _numbers(metadata: Metadata, key: str, size: int, default: float, file: str) -> list[Any]:
    """One number for each token: whole where the default is, else one that float32 can hold."""
    keys = Keys(metadata, file)
    if key not in metadata:
        return [default] * size
    found: list[Any] = keys.integers(key) if isinstance(default, int) else keys.numbers(key, largest=_F32_MAX)
    if len(found) < size:
        raise CheckpointError(file, f"{key} has {len(found)} entries", f"{size} numbers, one per token")
    return found[:size]
