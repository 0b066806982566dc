"""GLM-130B's layout on 1 and 2 ranks: the same numbers, and what they cost.

``python -m several_gpus.ranks`` is a rank of a model, as torchrun starts it; it writes what it has found to a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import qformats
from several_gpus.models import GLM_130B, SMALL_GLM, glm
from several_gpus.timing import PROMPT, gigabytes, reset_peaks, seconds, settled, write

__all__ = ["measure"]

_FEW, _MANY = 1, 65
_SECONDS = 400
_FULL = 36
"""Layers of GLM-130B in float16 that fill a card of 141 GB."""


def measure(folder: Path, counts: tuple[int, ...], *, small: bool) -> list[dict[str, Any]]:
    """Run all models on one rank and on two; the largest in float16 has room on two only."""
    sizes = SMALL_GLM if small else GLM_130B
    found = []
    for bits, layers, ranks in (
        (4, sizes.layers, 1),
        (4, sizes.layers, 2),
        (16, min(_FULL, sizes.layers), 1),
        (16, min(_FULL, sizes.layers), 2),
        (16, sizes.layers, 2),
    ):
        if ranks not in counts:
            continue
        model = glm(folder, sizes, layers, bits)
        found.append({"bits": bits, "layers": layers, "ranks": ranks} | _run(model, ranks))
        print(json.dumps(found[-1]), flush=True)
    for each in found:
        source = glm(folder, sizes, each["layers"], 16)
        each |= _plan(source, "glm:int4" if each["bits"] == 4 else "dense:f16", each["ranks"])
    _compare(found)
    return found


def _run(model: Path, ranks: int) -> dict[str, Any]:
    """Start the ranks as a user does."""
    target = model.parent / f"found-{model.name}-{ranks}.json"
    here = Path(__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), *filter(None, sys.path)]),
        # Programs that use NVLink's multicast can put GPUs out of service that a host's other users need.
        "NCCL_NVLS_ENABLE": "0",
        "OMP_NUM_THREADS": "8",
    }
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *("-m", "several_gpus.ranks", str(model), str(target)),
    ]
    subprocess.run(command, env=environment, check=True, timeout=_SECONDS)
    told: dict[str, Any] = json.loads(target.read_text())
    return told


def _plan(source: Path, format: str, ranks: int) -> dict[str, Any]:
    """What `inspect --plan` says before there is a quantized model."""
    context = PROMPT + _MANY
    command = [sys.executable, "-m", "qformats", "inspect", "--plan", format, str(source), "--json"]
    command += ["--ranks", str(ranks), "--context", str(context)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"planned_weights": max(told["ranks"]) / 1e9, "planned_running": told["running"] / 1e9}


def _compare(found: list[dict[str, Any]]) -> None:
    """Logits of two ranks beside those of one."""
    for one in found:
        for two in found:
            if (one["bits"], one["layers"], one["ranks"], two["ranks"]) == (two["bits"], two["layers"], 1, 2):
                a, b = (torch.load(each["logits"], weights_only=True) for each in (one, two))
                two["apart"] = float((a["logits"] - b["logits"]).abs().max() / a["logits"].abs().max())
                two["apart_norm"] = float((a["logits"] - b["logits"]).norm() / a["logits"].norm())
                two["same_top"] = float((a["logits"].argmax(-1) == b["logits"].argmax(-1)).float().mean())
                two["same_tokens"] = int((a["tokens"] == b["tokens"]).int().cumprod(-1).sum())


def _compute(model_path: str, target: Path) -> None:
    """Be one rank."""
    began = settled()
    model = qformats.load_model(model_path, tensor_parallel=True)
    loading = settled() - began
    rank = int(os.environ["RANK"])
    config = model.config
    generator = torch.Generator().manual_seed(1)
    low, high = config.images, config.gmask_token_id - 1
    ids = torch.randint(low, high, (1, PROMPT), generator=generator)
    ids[0, -2], ids[0, -1] = config.gmask_token_id, config.bos_token_id
    ids = ids.to(model.device)
    place = model.device.index or 0
    held = gigabytes(place)
    with torch.inference_mode():
        logits = model(ids, use_cache=False).logits[0].float().cpu()
        reset_peaks()

        tokens = write(model, ids, _MANY)[0, PROMPT:].cpu()
        most = gigabytes(place, most=True)
        few = seconds(lambda: write(model, ids, _FEW))
        many = seconds(lambda: write(model, ids, _MANY))
        reading = seconds(lambda: model(ids, use_cache=False, logits_to_keep=1))
        shares = {
            "communication_step": _communication(lambda: write(model, ids, 17)),
            "communication_prompt": _communication(lambda: model(ids, use_cache=False, logits_to_keep=1)),
        }
    found = {
        "loading": loading,
        "weights": held,
        "most": most,
        "tokens_per_second": (_MANY - _FEW) / (many - few),
        "prompt_per_second": PROMPT / reading,
        "logits": str(target.with_suffix(".pt")),
        **shares,
    }
    if torch.distributed.is_initialized():
        # Of the card that holds more.
        every: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, (held, most))
        if held is not None:
            found |= {"weights": max(each[0] for each in every), "most": max(each[1] for each in every)}
    if rank == 0:
        torch.save({"logits": logits, "tokens": tokens}, found["logits"])
        target.write_text(json.dumps(found))


def _communication(run: Any) -> float | None:
    """Part of the time in which NCCL's kernels run: they begin when this rank is ready, and wait for the other."""
    if not torch.cuda.is_available() or not torch.distributed.is_initialized():
        return None
    run()
    began = settled()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        took = settled() - began
    busy = sum(row.device_time_total for row in profile.key_averages() if row.key.startswith("nccl"))
    return busy / 1e6 / took


if __name__ == "__main__":
    _compute(sys.argv[1], Path(sys.argv[2]))
