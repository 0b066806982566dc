"""How fast a model runs on this machine, and how much memory that takes."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qformats.comparing.loaded import LoadedModel
from qformats.comparing.report import SpeedResult
from qformats.work.memory import return_freed

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["Peak", "copy_speed", "device_name", "machine", "read_per_token", "speed"]

_PROMPT = 256
"""Tokens that are read in one go."""
_GENERATED = 32
"""Tokens that are generated one by one."""
_REPEATS = 2
_COPIED = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes of a copy that is timed: far more than caches hold."""


class Peak:
    """Most memory that is taken from now on, beyond what is taken now.

    Parameters
    ----------
    device : torch.device
        A GPU, or the CPU for the memory of this process.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            return
        # Memory that was freed but not returned would hide new allocations.
        return_freed()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")

    @property
    def nbytes(self) -> int:
        """Bytes so far."""
        if self._device.type == "cuda":
            import torch

            return max(0, torch.cuda.max_memory_allocated(self._device) - self._before)
        return max(0, _status("VmHWM") - self._before)


def _status(key: str) -> int:
    """A line of the process's status, bytes; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), 0)


def speed(
    runner: LoadedModel,
    ids: NDArray[Any],
    load_seconds: float,
    peak: Peak,
    *,
    prompt_tokens: int = _PROMPT,
    new_tokens: int = _GENERATED,
    repeats: int = _REPEATS,
) -> SpeedResult:
    """Time a model that is loaded.

    Parameters
    ----------
    runner : LoadedModel
        The model.
    ids : ndarray
        int64, ``(length,)``: what it reads.
    load_seconds : float
        How long loading took.
    peak : Peak
        Begun before the model was loaded.
    prompt_tokens : int
        How many of the ids are read in one go; as many as the model takes if that is less.
    new_tokens : int
        How many are generated one by one, as ``generate`` does it; likewise.
    repeats : int
        Runs, of which the fastest counts.

    Raises
    ------
    BackendUnavailableError
        If it fails while it runs.
    """
    import torch

    prompt = torch.from_numpy(ids[: min(prompt_tokens, runner.limit or prompt_tokens)])[None].to(
        runner.device
    )
    start = prompt[:, : max(1, len(runner.prefix))]
    room = runner.limit or new_tokens + start.shape[1]
    count = max(1, min(new_tokens, room - start.shape[1]))
    with runner.reported(), torch.inference_mode():
        # The first time compiles and fills caches.
        runner.model(input_ids=prompt, use_cache=False)
        reading = min(_timed(runner, lambda: runner.model(input_ids=prompt, use_cache=False), repeats))
        _generate(runner, start, min(2, count))
        writing = min(_timed(runner, lambda: _generate(runner, start, count), repeats))
    return SpeedResult(
        device=device_name(runner.device),
        load_seconds=load_seconds,
        tokens_per_second=count / writing,
        prompt_tokens_per_second=prompt.shape[1] / reading,
        peak_bytes=peak.nbytes,
        bytes_per_token=read_per_token(runner.model),
        copied_per_second=copy_speed(str(runner.device)),
    )


def read_per_token(model: Any) -> int:
    """Bytes of the weights that a model reads to generate a token.

    That is all but tables of which a row is looked up, and of experts those that are chosen.
    """
    from torch import nn

    from qformats.runtime.linear import PackedLayer

    chosen = _chosen_experts(model)
    total = 0.0
    seen: set[int] = set()
    for name, module in model.named_modules():
        share = chosen if ".experts" in name else 1.0
        if isinstance(module, PackedLayer):
            # A table that is the head, too, is counted there.
            if not isinstance(module, nn.Embedding):
                total += share * module.nbytes
        elif not isinstance(module, nn.Embedding):
            for value in module.parameters(recurse=False):
                if id(value) not in seen:
                    seen.add(id(value))
                    total += share * value.nbytes
    return round(total)


def _chosen_experts(model: Any) -> float:
    """Share of its experts that a token sees."""
    config = model.config.get_text_config()
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((number for name in names if (number := getattr(config, name, None))), 0)
    return min(1.0, getattr(config, "num_experts_per_tok", count) / count) if count else 1.0


@functools.cache
def copy_speed(name: str) -> float:
    """Bytes that this machine copies in a second, read and written: what bounds how fast weights are read.

    Parameters
    ----------
    name : str
        Of the device: ``cpu``, with as many threads as torch has, ``cuda``, ``cuda:1``.
    """
    import torch

    device = torch.device(name)
    size = _COPIED.get(device.type, 1 << 28)
    if device.type == "cuda":
        # What was timed before may have left little.
        size = min(size, torch.cuda.mem_get_info(device)[0] // 4)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = []
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(times)


def _timed(runner: LoadedModel, run: Any, repeats: int) -> Iterator[float]:
    """Seconds of a few runs."""
    for _ in range(repeats):
        _wait(runner.device)
        start = time.perf_counter()
        run()
        _wait(runner.device)
        yield time.perf_counter() - start


def _generate(runner: LoadedModel, ids: torch.Tensor, count: int) -> None:
    """Generate tokens, each the most probable, without stopping at an end."""
    import torch
    from transformers import GenerationConfig

    # What generate is given is completed from the model's own settings, which name tokens that end a text.
    model, settings = runner.model, cast("Any", GenerationConfig)
    before = model.generation_config
    model.generation_config = settings(max_new_tokens=count, do_sample=False, pad_token_id=0)
    try:
        found = model.generate(ids, attention_mask=torch.ones_like(ids))
    finally:
        model.generation_config = before
    assert found.shape[1] == ids.shape[1] + count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Name of a device in a report."""
    if device.type != "cuda":
        return device.type
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def machine(threads: int) -> dict[str, str]:
    """The machine that the numbers were measured on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "cpu": _cpu(),
        "threads": str(threads),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _cpu() -> str:
    """Name of the processor, and how many cores of it may be used."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
