"""Run a Hugging Face folder in Transformers, in float32 with eager attention."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["greedy", "load", "log_probs", "logits", "tokenizer", "tokenizer_json"]


def load(folder: str | PathLike[str], auto: str = "AutoModelForCausalLM") -> Any:
    """Load a model that writes text in float32 with eager attention, ready to run; `auto` names Transformers' class.

    Raises
    ------
    RuntimeError
        If a weight is missing, unexpected or of the wrong shape: Transformers would fill it at random.
    """
    import torch
    import transformers

    loaded: Any = getattr(transformers, auto).from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        local_files_only=True,
    )
    model, info = loaded
    wrong = {what: sorted(map(str, keys)) for what, keys in info.items() if keys}
    if wrong:
        raise RuntimeError(f"{folder}: Transformers reports {wrong}")
    return model.eval()


def tokenizer_json(folder: str | PathLike[str]) -> Any:
    """Load ``tokenizer.json`` exactly as it is written, with the tokenizers library.

    Transformers 5 rebuilds some classes instead: LlamaTokenizer loses a leading space that sentencepiece,
    llama.cpp and the file itself keep.
    """
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def tokenizer(folder: str | PathLike[str]) -> Any:
    """Load the folder's tokenizer as Transformers users get it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def logits(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits at every position: float32 ``[len(ids), vocab]``; `model` is a folder or from `load`."""
    import torch

    model = _loaded(model)
    with torch.inference_mode():
        output = model(torch.tensor([list(ids)]), use_cache=False)
    return np.asarray(output.logits[0].numpy(), np.float32)


def log_probs(model: Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """Natural logarithms of the next-token probabilities: float32 ``[len(ids), vocab]``."""
    values = logits(model, ids).astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(axis=1, keepdims=True)), np.float32)


def greedy(model: Any, ids: Sequence[int], n: int) -> list[int]:
    """The `n` most likely ids one after the other; end tokens do not stop it."""
    model = _loaded(model)
    best = list(ids)
    for _ in range(n):
        best.append(int(logits(model, best)[-1].argmax()))
    return best[len(ids) :]


def _loaded(model: Any) -> Any:
    return load(model) if isinstance(model, str | PathLike) else model
