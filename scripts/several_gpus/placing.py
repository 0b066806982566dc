"""A model placed over two GPUs by `device_map`: one that has room on a single card, and one that has not."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import torch

import qformats
from several_gpus.calibrating import FORMAT
from several_gpus.models import LLAMA_8B, LLAMA_405B, SMALL_LLAMA, Sizes, llama
from several_gpus.timing import PROMPT, device_of, gigabytes, seconds, settled, write

__all__ = ["measure"]

_FEW, _MANY = 1, 33


def measure(folder: Path, counts: tuple[int, ...], *, small: bool) -> list[dict[str, Any]]:
    """The smaller one on a card and on two, packed and while loading from plain numbers; the larger one on two."""
    modest, huge = (SMALL_LLAMA, SMALL_LLAMA) if small else (LLAMA_8B, LLAMA_405B)
    plain, packed = llama(folder, modest, "dense"), llama(folder, modest, FORMAT)
    split = {"device_map": "auto"} if torch.cuda.device_count() > 1 else {"device_map": {"": "cpu"}}
    found: list[dict[str, Any]] = []
    for format in (FORMAT, "gguf:q4_0", "bitsandbytes:nf4"):
        given = {"format": format} if format != FORMAT else {}
        source = packed if format == FORMAT else plain
        one, alone = _run(source, modest, {"device": device_of(0)} | given)
        found.append({"model": "8 B", "format": format, "cards": 1} | one)
        print(json.dumps(found[-1]), flush=True)
        if 2 in counts:
            two, shared = _run(source, modest, split | given)
            same = int((alone == shared).int().cumprod(0).sum())
            found.append({"model": "8 B", "format": format, "cards": 2, "same_tokens": same} | two)
            print(json.dumps(found[-1]), flush=True)
    if 2 not in counts:
        return found
    large, _ = _run(llama(folder, huge, FORMAT), huge, split)
    found.append({"model": "405 B", "format": FORMAT, "cards": 2} | large)
    print(json.dumps(found[-1]), flush=True)
    return found


def _run(path: Path, sizes: Sizes, options: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    """Load a model, and write with it; the tokens, too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    began = settled()
    model = qformats.load_model(path, **options)
    loading = settled() - began
    ids = torch.randint(3, sizes.vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    ids = ids.to(model.device)
    with torch.inference_mode():
        tokens = write(model, ids, _MANY)[0, PROMPT:].cpu()
        few, many = (seconds(lambda count=count: write(model, ids, count)) for count in (_FEW, _MANY))
        reading = seconds(lambda: model(ids, use_cache=False, logits_to_keep=1))
    cards = [gigabytes(number) for number in range(torch.cuda.device_count())]
    found = {
        "loading": loading,
        "weights": cards,
        "tokens_per_second": (_MANY - _FEW) / (many - few),
        "prompt_per_second": PROMPT / reading,
    }
    return found, tokens
