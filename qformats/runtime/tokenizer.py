"""The tokenizer of a checkpoint, as Transformers uses it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qformats.errors import CheckpointError, Described, UnsupportedModelError
from qformats.folder.readiness import require_tokenizer
from qformats.interfaces.checkpoint import Checkpoint
from qformats.vocabularies import library_failed
from qformats.work.files import parse_json

__all__ = ["tokenizer"]


def tokenizer(source: Checkpoint) -> Any:
    """A Transformers tokenizer, with special tokens and chat template.

    ``tokenizer.json`` is used as it is written: some of Transformers' own classes rebuild it and lose a leading space.

    Parameters
    ----------
    source : Checkpoint
        The model, in any container.

    Raises
    ------
    CheckpointError
        If it has no tokenizer.
    UnsupportedModelError
        If its tokenizer needs code that only its repository has.
    """
    require_tokenizer(source)
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    content = source.tokenizer_files()
    with tempfile.TemporaryDirectory(prefix="qformats-") as folder:
        for name, data in content.items():
            file = Path(folder, name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        config = {key: value for key, value in _config(source).items() if key != "auto_map"}
        Path(folder, "config.json").write_text(json.dumps(config, default=str))
        own = "tokenizer.json" in content
        chosen: Any = PreTrainedTokenizerFast if own else AutoTokenizer
        try:
            loaded = chosen.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except BaseException as error:
            # Whatever a class finds wrong with its files; remote code is one of the reasons.
            if not library_failed(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            found = Described(f"one that cannot be loaded ({reason})")
            raise UnsupportedModelError(
                f"{source.path}: tokenizer",
                found,
                ["a tokenizer.json", "a tokenizer that Transformers has a class for"],
                "Export the model to a container with its own kind of tokenizer, and load that",
            ) from error
    if not own and type(loaded) is PreTrainedTokenizerFast:
        raise UnsupportedModelError(
            f"{source.path}: tokenizer",
            Described(f"a vocabulary for {_class_of(content)}, which Transformers does not have"),
            ["a tokenizer.json", "a tokenizer that Transformers has a class for"],
            "Save the tokenizer with the program that it belongs to: its text would be split by guess",
        )
    return loaded


def _config(source: Checkpoint) -> dict[str, Any]:
    """The model's configuration; none for a vocabulary without a model, or an architecture that is not known.

    Only a tokenizer without a tokenizer.json needs it, to tell its class.
    """
    try:
        return source.config
    except (CheckpointError, UnsupportedModelError):
        if "tokenizer.json" in source.tokenizer_files():
            return {}
        raise


def _class_of(content: Mapping[str, bytes]) -> str:
    """Class that tokenizer_config.json names, for messages."""
    try:
        named = parse_json(bytes(content["tokenizer_config.json"])).get("tokenizer_class")
    except (KeyError, ValueError, AttributeError):
        named = None
    return named if isinstance(named, str) else "a class that is not named"
