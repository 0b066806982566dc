"""Compare generation on a CPU with llama.cpp's: the same file, the same tokens, turn by turn.

Needs the package and its extra ``oracles``, whose build of llama.cpp runs with the file's weights as they are and a
float32 cache. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT, NEW = 256, 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="a GGUF file")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    # Chosen before torch is loaded.
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    import torch
    from oracles.llama_cpp import LlamaCpp
    from transformers import GenerationConfig

    import qformats

    model = qformats.load_model(asked.file, device="cpu")
    settings: Any = GenerationConfig
    ids = torch.arange(PROMPT)[None] % model.config.vocab_size
    start = ids[:, :8]

    # Without the model's own settings, which name tokens that end a text.
    model.generation_config = settings(max_new_tokens=NEW, do_sample=False, pad_token_id=0)

    def generate() -> None:
        found = model.generate(start, attention_mask=torch.ones_like(start))
        assert found.shape[1] == start.shape[1] + NEW

    with torch.inference_mode(), LlamaCpp(asked.file, n_ctx=1024, threads=asked.threads) as llama:
        ways: dict[str, tuple[int, Callable[[], object]]] = {
            "qformats, generated": (NEW, generate),
            "llama.cpp, generated": (NEW, lambda: llama.greedy(start[0].tolist(), NEW)),
            "qformats, prompt": (PROMPT, lambda: model(input_ids=ids, use_cache=False)),
            "llama.cpp, prompt": (PROMPT, lambda: llama.logits(ids[0].tolist())),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(asked.rounds + 1):
            for name, (_, run) in ways.items():
                began = time.perf_counter()
                run()
                # The first round compiles, and fills caches.
                if number:
                    times[name].append(time.perf_counter() - began)
    print(f"{asked.file.name}, {asked.threads} threads, torch {torch.__version__}")
    print(f"tokens a second, median of {asked.rounds}")
    speeds = {name: count / statistics.median(times[name]) for name, (count, _) in ways.items()}
    for name, speed in speeds.items():
        print(f"{name:<24}{speed:>8.1f}")
    for kind in ("generated", "prompt"):
        ratio = speeds[f"qformats, {kind}"] / speeds[f"llama.cpp, {kind}"]
        print(f"{kind}: {ratio:.2f} times llama.cpp")


if __name__ == "__main__":
    main()
