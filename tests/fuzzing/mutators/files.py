"""Damage to one of the files of an input, as its name tells what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from fuzzing import bundles

from . import blobs, gguf, messages, pickles, tensors, texts, values

__all__ = ["by_name", "change_files", "changed"]

_Change = Callable[[Random, bytes], bytes]
_BY_SUFFIX: Mapping[str, _Change] = {
    ".json": values.change,
    ".safetensors": tensors.change,
    ".gguf": gguf.change,
    ".bin": pickles.change,
    ".pt": pickles.change,
    ".model": messages.change,
    ".tiktoken": texts.change,
    ".txt": texts.change,
    ".jsonl": texts.change,
    ".dat": blobs.change,
}
"""How files are damaged, by the end of their names."""


def by_name(name: str) -> _Change:
    """How the file of a name is damaged."""
    return _BY_SUFFIX.get("." + name.rpartition(".")[2], texts.change)


def changed(rng: Random, data: bytes, change: _Change) -> bytes:
    """A changed file: its bytes are, where what was changed before has no structure any more."""
    try:
        return change(rng, data)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return blobs.change(rng, data)


def change_files(rng: Random, data: bytes, weights: Mapping[str, float]) -> bytes:
    """Change one file of a bundle, or leave one out.

    Parameters
    ----------
    rng : Random
        Chooses.
    data : bytes
        The bundle.
    weights : mapping of str to float
        How often files are chosen, by the end of their names; 0 for those that stay, 1 for others.
    """
    files = bundles.unpack(data)
    names = [name for name in files if _weight(name, weights)]
    if not names:
        return data
    name = rng.choices(names, [_weight(each, weights) for each in names])[0]
    if len(names) > 1 and rng.random() < 0.01:
        del files[name]
    else:
        files[name] = changed(rng, files[name], by_name(name))
    return bundles.pack(files)


def _weight(name: str, weights: Mapping[str, float]) -> float:
    return next((weight for end, weight in weights.items() if name.endswith(end)), 1.0)
