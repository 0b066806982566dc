"""Tensor parallelism: one process for each device, each with its share of the model."""

from __future__ import annotations

import atexit

import torch

from qformats.errors import ConfigError, Described
from qformats.folder.classes import without_storage
from qformats.interfaces.checkpoint import Checkpoint
from qformats.registry import registry
from qformats.work.device import chosen_device
from qformats.work.processes import Processes, launched

__all__ = ["join", "own_share"]


def join(device: str | torch.device | None) -> tuple[Processes, torch.device]:
    """Join the processes that were launched together, and take a device.

    torch's default process group is made if there is none: NCCL on GPUs, gloo on CPUs.

    Parameters
    ----------
    device : str or torch.device, optional
        ``"cpu"``, ``"cuda"``, or a device of this process alone; by default the GPU with its number on this machine.

    Raises
    ------
    ConfigError
        If the machine has fewer GPUs than processes, or this torch cannot connect processes.
    """
    if not torch.distributed.is_available():
        found = Described("a torch without torch.distributed")
        raise ConfigError("tensor parallelism", found, "one that can connect processes")
    here = launched()
    place = chosen_device(device)
    if place.type == "cuda" and place.index is None:
        count = torch.cuda.device_count()
        if here.local >= count:
            raise ConfigError(
                "processes of this machine", here.local + 1, f"at most {count}, one for each GPU"
            )
        place = torch.device("cuda", here.local)
    if torch.distributed.is_initialized():
        group = torch.distributed
        return Processes(group.get_rank(), group.get_world_size(), here.local), place
    if here.ranks > 1:
        if place.type == "cuda":
            torch.cuda.set_device(place)
        torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
        atexit.register(_leave)
    return here, place


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def own_share(source: Checkpoint, here: Processes) -> Checkpoint:
    """The tensors of a model that this process holds.

    Raises
    ------
    ConfigError
        If the model cannot be divided, or not among so many.
    """
    if here.ranks == 1:
        return source
    config = without_storage(source.config)
    found = registry().model_for(config)
    if found is None:
        told = Described(f"{here.ranks} processes for {config.get('model_type')}")
        hint = "Start one process; or run this model with a program that divides it, such as vLLM"
        raise ConfigError("tensor parallelism", told, "a model whose class can be divided", hint)
    return found.share(source, here.rank, here.ranks)
