"""How fast a model runs on this machine, and how much memory that takes."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qformats.comparing.loaded import LoadedModel
from qformats.comparing.report import SpeedResult
from qformats.work.memory import return_freed

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

__all__ = ["Peak", "device_name", "machine", "speed"]

_PROMPT = 256
"""Tokens that are read in one go."""
_GENERATED = 32
"""Tokens that are generated one by one."""
_REPEATS = 2


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


def speed(runner: LoadedModel, ids: NDArray[Any], load_seconds: float, peak: Peak) -> SpeedResult:
    """Time a model that is loaded.

    Parameters
    ----------
    runner : LoadedModel
        The model.
    ids : ndarray
        int64, ``(length,)``: what it reads; its first 256, or as many as the model takes.
    load_seconds : float
        How long loading took.
    peak : Peak
        Begun before the model was loaded.

    Raises
    ------
    BackendUnavailableError
        If it fails while it runs.
    """
    import torch

    prompt = torch.from_numpy(ids[: min(_PROMPT, runner.limit or _PROMPT)])[None].to(runner.device)
    start = prompt[:, : max(1, len(runner.prefix))]
    count = min(_GENERATED, runner.limit or _GENERATED)
    with runner.reported(), torch.inference_mode():
        # The first time compiles and fills caches.
        runner.model(input_ids=prompt, use_cache=False)
        reading = min(_timed(runner, lambda: runner.model(input_ids=prompt, use_cache=False)))
        writing = min(_timed(runner, lambda: _generate(runner, start, count)))
    return SpeedResult(
        device=device_name(runner.device),
        load_seconds=load_seconds,
        tokens_per_second=count / writing,
        prompt_tokens_per_second=prompt.shape[1] / reading,
        peak_bytes=peak.nbytes,
    )


def _timed(runner: LoadedModel, run: Any) -> Iterator[float]:
    """Seconds of a few runs."""
    for _ in range(_REPEATS):
        _wait(runner.device)
        start = time.perf_counter()
        run()
        _wait(runner.device)
        yield time.perf_counter() - start


def _generate(runner: LoadedModel, ids: torch.Tensor, count: int) -> None:
    """Generate tokens one by one, each the most probable, without stopping at an end."""
    cache: Any = None
    for _ in range(count):
        output = runner.model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = output.past_key_values, output.logits[:, -1:].argmax(-1)


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
