"""Special ids, and tokens added around a text.

Source: ggml-org/llama.cpp:gguf-py/gguf/vocab.py (``SpecialVocab``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metadata import Metadata, boolean, u32
from . import chatglm
from .added import ROLES, token_text
from .ends import end_ids, place_ends
from .files import TokenizerFiles
from .vocabulary import Vocabulary

__all__ = ["ID_KEYS", "special_metadata"]

ID_KEYS: Mapping[str, str] = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",  # spelt so by the format
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "fim_pre": "tokenizer.ggml.fim_pre_token_id",
    "fim_suf": "tokenizer.ggml.fim_suf_token_id",
    "fim_mid": "tokenizer.ggml.fim_mid_token_id",
    "fim_pad": "tokenizer.ggml.fim_pad_token_id",
    "fim_rep": "tokenizer.ggml.fim_rep_token_id",
    "fim_sep": "tokenizer.ggml.fim_sep_token_id",
}
"""Metadata key of each special role, in llama.cpp's order."""

_GLM4_ROLES = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>"}
_GLM_ROLES: Mapping[str, Mapping[str, str]] = {
    "chatglm-bpe": _GLM4_ROLES,
    "glm4": _GLM4_ROLES,
    "glm5": _GLM4_ROLES,
    chatglm.PRE: {"bos": "<s>", "eos": "</s>", "eot": "<|user|>", "unk": "<unk>"},
}
"""Tokens of GLM's vocabularies that have a role by default, by name of the pre-tokenizer."""


def special_metadata(
    files: TokenizerFiles,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    *,
    add_bos: bool,
    add_sep: bool,
    as_roberta: bool = False,
) -> Metadata:
    """Find the special ids and the ``add_*`` flags.

    Parameters
    ----------
    files : TokenizerFiles
        The folder.
    config : mapping
        The model's config.json.
    vocabulary : Vocabulary
        The tokens; ids beyond are dropped. The loader has rules for some pre-tokenizers.
    add_bos : bool
        Whether BOS is put before a text if the folder does not say.
    add_sep : bool
        What the loader assumes for ``add_sep_token``.
    as_roberta : bool
        Whether the model's class, and no file, says that RoBERTa's tokens go around a text and between two.
    """
    settings, ids, pre = files.settings(), vocabulary.ids, vocabulary.pre
    roles: dict[str, str | None] = {role: token_text(settings.get(f"{role}_token")) for role in ID_KEYS}
    flags: dict[str, bool] = {}
    for processor in _processors(files):
        _apply(processor, roles, flags)
    for role in ("bos", "eos", "sep"):
        said = settings.get(f"add_{role}_token")
        if isinstance(said, bool):
            flags.setdefault(role, said)
    flags = {"bos": add_bos, "eos": False} | flags
    if as_roberta:
        flags |= dict.fromkeys(("bos", "eos", "sep"), True)
    if vocabulary.model == "bert":
        # The loader puts the first role's token before a text; llama.cpp's converter names both so.
        roles["bos"], roles["eos"] = roles["bos"] or roles["cls"], roles["eos"] or roles["sep"]
    if pre in _GLM_ROLES:
        for role, default in _GLM_ROLES[pre].items():
            if default in ids and roles[role] is None and _configured(config, files, role) is None:
                roles[role] = default
        flags["bos"] = False
    found: dict[str, int] = {}
    for role, text in roles.items():
        index = ids.get(text) if text is not None else None
        if index is None and role in ROLES:
            index = _configured(config, files, role)
        if index is not None and 0 <= index < len(vocabulary.tokens):
            found[role] = index
    listed: Metadata = {}
    if vocabulary.model == "bert":
        # Nothing is written with a vocabulary of WordPiece, and so nothing ends.
        if found.get("cls") == found.get("bos"):
            found.pop("cls", None)
    else:
        more, listed = place_ends(
            end_ids(config, files), found, vocabulary.tokens, vocabulary.types, source=files.source
        )
        found |= more
    values = {key: u32(found[role]) for role, key in ID_KEYS.items() if role in found} | listed
    for role in ("bos", "eos"):
        # llama.cpp stops the process if it is to add a token that it does not know.
        values[f"tokenizer.ggml.add_{role}_token"] = boolean(flags[role] and role in found)
    if flags.get("sep", False) or add_sep:
        values["tokenizer.ggml.add_sep_token"] = boolean(flags.get("sep", False))
    return values


def _configured(config: Mapping[str, Any], files: TokenizerFiles, role: str) -> int | None:
    text = config.get("text_config")
    for section in (config, text, files.json("generation_config.json")):
        value = section.get(f"{role}_token_id") if isinstance(section, Mapping) else None
        if isinstance(value, list) and value:
            # Several tokens may end a text; the first is the main one.
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


def _processors(files: TokenizerFiles) -> list[Mapping[str, Any]]:
    outer = (files.json("tokenizer.json") or {}).get("post_processor")
    if not isinstance(outer, Mapping):
        return []
    inner = outer.get("processors")
    return [part for part in (inner if isinstance(inner, list) else [outer]) if isinstance(part, Mapping)]


def _apply(processor: Mapping[str, Any], roles: dict[str, str | None], flags: dict[str, bool]) -> None:
    kind = processor.get("type")
    if kind == "ByteLevel":
        flags.setdefault("bos", False)
        flags.setdefault("eos", False)
    elif kind == "RobertaProcessing":
        flags.update(bos=True, eos=True, sep=True)
        for role, fallback in (("cls", "bos"), ("sep", "eos")):
            roles[role] = roles[role] or _first(processor.get(role))
            roles[fallback] = roles[fallback] or roles[role]
    elif kind == "BertProcessing":
        for role in ("cls", "sep"):
            roles[role] = roles[role] or _first(processor.get(role))
    elif kind == "TemplateProcessing":
        single = processor.get("single")
        steps = [_special(step) for step in single] if isinstance(single, list) else []
        if len(steps) < 2:
            # Nothing but the text.
            flags.setdefault("bos", False)
            flags.setdefault("eos", False)
            return
        first, last = steps[0], steps[-1]
        if first is not None:
            roles["bos"] = roles["bos"] or first
            flags["bos"] = first in (roles["bos"], roles["cls"])
        if last is not None:
            if roles["eos"] not in (None, last):
                # A text and a turn end with different tokens.
                role = "eot" if roles["eot"] is None else "eom"
                roles[role] = roles["eos"]
            roles["eos"] = last
            flags["eos"] = True
        if _separated(processor.get("pair"), first, last, (roles["sep"], roles["eos"])):
            flags["sep"] = True


def _separated(pair: Any, first: str | None, last: str | None, separators: tuple[str | None, ...]) -> bool:
    """Whether a token comes between two texts besides the one that ends a text."""
    steps = list(pair) if isinstance(pair, list) else []
    texts = [at for at, step in enumerate(steps) if isinstance(step, Mapping) and "Sequence" in step]
    if len(texts) != 2 or (first and _special(steps[0]) != first) or (last and _special(steps[-1]) != last):
        return False
    between = [_special(step) for step in steps[texts[0] + 1 : texts[1]]]
    return len(between) == (2 if last else 1) and all(text in separators for text in between)


def _first(entry: Any) -> str | None:
    """Text of a pair of text and id."""
    return entry[0] if isinstance(entry, list) and entry and isinstance(entry[0], str) else None


def _special(step: Any) -> str | None:
    token = step.get("SpecialToken") if isinstance(step, Mapping) else None
    text = token.get("id") if isinstance(token, Mapping) else None
    return text if isinstance(text, str) else None
