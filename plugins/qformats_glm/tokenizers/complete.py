"""The tokenizer files of a GLM repository, completed so that Transformers needs none of its code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from qformats.errors import CheckpointError, UnsupportedModelError
from qformats.folder import chat_templates
from qformats.vocabularies import parse, parse_ranks
from qformats.work.files import parse_json

from .chatglm2 import CODE_SOP, SOP, chatglm2
from .glm4 import glm4
from .icetk import icetk
from .vocabulary import Built

__all__ = ["ICE_TEXT", "completed"]

ICE_TEXT = "ice_text.model"
"""Vocabulary of GLM-130B and ChatGLM-6B."""
_MODEL = "tokenizer.model"
_IMAGES = 20000
"""Ids of image tokens where they were kept: in GLM-130B and the first release of ChatGLM-6B."""
_FIRST_RELEASE = 150000
"""Fewest rows of a ChatGLM-6B that has them."""
_LARGEST = 1 << 24
_REPLACED = (
    "auto_map",
    "tokenizer_class",
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_template",
)
_LISTS = ("special_tokens_map.json", "added_tokens.json")
_USER = "<|user|>"
_SPEAKING = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")


def completed(
    files: Mapping[str, bytes], config: Mapping[str, Any], source: object, code: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Add a tokenizer.json and a chat template where a repository has only a vocabulary and code.

    Parameters
    ----------
    files : mapping of str to bytes
        The repository's tokenizer files. Those that have a tokenizer.json, or no vocabulary, are returned as they are.
    config : mapping
        Its config.json.
    source : object
        Its name, for messages.
    code : mapping of str to bytes
        Its Python files, which are searched for the names of tokens and never run.

    Returns
    -------
    dict of str to bytes
        Also tokenizer_config.json, and generation_config.json where an answer ends with one of several tokens.

    Raises
    ------
    CheckpointError
        If a file is damaged.
    UnsupportedModelError
        If the vocabulary is none of those of the GLM models.
    """
    name = next((name for name in (ICE_TEXT, _MODEL) if name in files), None)
    if "tokenizer.json" in files or name is None:
        return dict(files)
    settings = _object(files, "tokenizer_config.json", source)
    listed = _listed(settings, f"{source}/tokenizer_config.json")
    built = _built(files, name, config, settings, listed, code, f"{source}/{name}")
    known = set(built.special.values())
    more = {index: entry for index, entry in listed.items() if index not in known}
    kept = {key: value for key, value in settings.items() if key not in _REPLACED}
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
    kept |= {"clean_up_tokenization_spaces": False, "extra_special_tokens": {}, **built.roles}
    found = {file: data for file, data in files.items() if file not in _LISTS}
    own = {name: text.replace(CODE_SOP, SOP) for name, text in chat_templates(files, source).items()}
    if "default" not in own and built.template:
        own["default"] = _shipped(built.template)
    for file in [file for file in found if file.endswith(".jinja")]:
        del found[file]
    if own:
        kept["chat_template"] = (
            own["default"]
            if [*own] == ["default"]
            else [{"name": name, "template": text} for name, text in own.items()]
        )
    found["tokenizer.json"] = _json(built.tokenizer_json(more))
    found["tokenizer_config.json"] = _json(kept, indent=2)
    generation = _object(files, "generation_config.json", source)
    if "eos_token_id" not in generation:
        ends = list(built.ends)
        generation["eos_token_id"] = ends if len(ends) > 1 else ends[0]
        found["generation_config.json"] = _json(generation, indent=2)
    return found


def _built(
    files: Mapping[str, bytes],
    name: str,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    listed: Mapping[int, tuple[str, bool]],
    code: Mapping[str, bytes],
    file: str,
) -> Built:
    data = bytes(files[name])
    if name == ICE_TEXT:
        chat = config.get("model_type") != "glm-130b"
        return icetk(parse(data, file), file, images=_images(config, settings, file, chat=chat), chat=chat)
    if "ffn_hidden_size" not in config:
        raise UnsupportedModelError(
            f"{file}: vocabulary", name, [ICE_TEXT], "ChatGLM-6B has its vocabulary in that file"
        )
    if _is_tiktoken(data):
        return glm4(parse_ranks(data, file), listed, file)
    called = [config.get("_name_or_path"), settings.get("name_or_path"), settings.get("_name_or_path")]
    roles = any(isinstance(name, str) and "chatglm3" in name.lower() for name in called)
    texts = [
        data for name, data in (*files.items(), *code.items()) if name in _SPEAKING or name.endswith(".py")
    ]
    roles = roles or any(_USER.encode() in text for text in texts)
    return chatglm2(parse(data, file), file, roles=roles)


def _is_tiktoken(data: bytes) -> bool:
    first = data[:200].split(b"\n", 1)[0].split()
    return len(first) == 2 and first[1].isdigit()


def _images(config: Mapping[str, Any], settings: Mapping[str, Any], file: str, *, chat: bool) -> int:
    rows = config.get("vocab_size")
    usual = _IMAGES if not chat or (isinstance(rows, int) and rows >= _FIRST_RELEASE) else 0
    found = settings.get("num_image_tokens", usual)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < _LARGEST:
        raise CheckpointError(
            file, f"num_image_tokens of tokenizer_config.json is {found!r}", "a count of ids"
        )
    return found


def _listed(settings: Mapping[str, Any], file: str) -> dict[int, tuple[str, bool]]:
    """Text and special flag of ``added_tokens_decoder``, by id."""
    entries = settings.get("added_tokens_decoder") or {}
    if not isinstance(entries, dict):
        raise CheckpointError(file, "added_tokens_decoder is not an object", "ids and their tokens")
    found = {}
    for key, entry in entries.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not key.isascii() or not key.isdigit() or len(key) > 8:
            raise CheckpointError(
                file, f"added_tokens_decoder has the entry {key!r}", "an id and its content"
            )
        found[int(key)] = (text, bool(entry.get("special")))
    return found


def _object(files: Mapping[str, bytes], name: str, source: object) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        found = parse_json(bytes(files[name]))
    except ValueError as error:
        raise CheckpointError(f"{source}/{name}", f"not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{source}/{name}", f"a JSON {type(found).__name__}", "a JSON object")
    return found


def _shipped(name: str) -> str:
    return resources.files(__package__).joinpath("templates", f"{name}.jinja").read_text("utf-8")


def _json(value: Any, indent: int | None = None) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=indent).encode() + b"\n"
