"""What makes one embedding of a text out of those of its tokens: modules.json of a folder, ``pooling_type`` in GGUF.

Source: ggml-org/llama.cpp:conversion/base.py (``_try_set_pooling_type``), sentence-transformers' saved models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qformats.errors import CheckpointError, Described, UnsupportedModelError
from qformats.work.files import parse_json
from qformats_gguf.metadata import Keys, Metadata, boolean, u32

__all__ = ["from_metadata", "to_metadata"]

_MODULES = "modules.json"
_KINDS = {1: ("mean_tokens", "mean"), 2: ("cls_token", "cls"), 3: ("lasttoken", "lasttoken")}
"""Values of ``pooling_type``, and what sentence-transformers calls them: ending of a flag, and newer word."""
_NORMALIZED = "qformats.embedding.normalized"
_CLASSES = "sentence_transformers.models."


def to_metadata(prefix: str, files: Mapping[str, bytes], source: str) -> Metadata:
    """Keys for the modules of sentence-transformers that come after a model; none if there are none.

    Raises
    ------
    CheckpointError
        If a file is malformed.
    UnsupportedModelError
        If tokens are pooled in a way that llama.cpp does not have.
    """
    if _MODULES not in files:
        return {}
    modules = _json(files, _MODULES, list, source)
    if not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{source}/{_MODULES}", "modules that are no objects", "a list of objects")
    kinds = {str(module.get("type")).rpartition(".")[2]: str(module.get("path")) for module in modules}
    found: Metadata = {}
    if "Pooling" in kinds:
        found[prefix + "pooling_type"] = u32(_kind(files, f"{kinds['Pooling']}/config.json", source))
    if "Normalize" in kinds:
        # llama.cpp's programs normalize unless they are told not to; no key says it.
        found[_NORMALIZED] = boolean(True)
    return found


def from_metadata(metadata: Metadata, source: str) -> dict[str, bytes]:
    """Files by which sentence-transformers pools as llama.cpp does; none if the file does not say how."""
    keys = Keys(metadata, source)
    arch = keys.text("general.architecture", "")
    kind = keys.integer(f"{arch}.pooling_type", 0)
    if kind not in _KINDS:
        return {}
    width = keys.integer(f"{arch}.embedding_length", minimum=1)
    flags = {f"pooling_mode_{flag}": number == kind for number, (flag, _) in _KINDS.items()}
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    if keys.flag(_NORMALIZED, False):
        modules.append(("2_Normalize", "Normalize"))
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": _CLASSES + cls}
        for number, (path, cls) in enumerate(modules)
    ]
    content = {_MODULES: listed, "1_Pooling/config.json": {"word_embedding_dimension": width, **flags}}
    return {name: json.dumps(value, indent=2).encode() + b"\n" for name, value in content.items()}


def _kind(files: Mapping[str, bytes], name: str, source: str) -> int:
    if name not in files:
        raise CheckpointError(f"{source}/{name}", f"is missing, although {_MODULES} names it")
    given = _json(files, name, dict, source)
    chosen = [key for key, value in given.items() if key.startswith("pooling_mode_") and value is True]
    word = given.get("pooling_mode")
    found = [
        number
        for number, (flag, newer) in _KINDS.items()
        if chosen == [f"pooling_mode_{flag}"] or (not chosen and word == newer)
    ]
    if not found:
        what = Described(" and ".join(chosen) or f"pooling_mode {word!r}")
        raise UnsupportedModelError(f"{source}/{name}: pooling", what, [word for _, word in _KINDS.values()])
    return found[0]


def _json(files: Mapping[str, bytes], name: str, kind: type, source: str) -> Any:
    try:
        value = parse_json(files[name].decode("utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{source}/{name}", f"not readable as JSON ({error})") from error
    if not isinstance(value, kind):
        raise CheckpointError(f"{source}/{name}", "JSON of another kind", f"a {kind.__name__}")
    return value
