"""Some processes: each loads its share of a model, and the first one saves what they compute together.

Arguments are the number of processes, a JSON file with ``runs`` (a name, a folder and options of ``load_model`` each)
and ``ids``, the file for the results, and the kind of device: ``cpu`` or ``cuda``. The processes have the environment
that torchrun gives them, but are copies of this one: importing torch and Transformers in each takes longer than all
that they compute.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch
import transformers.generation
import transformers.models.glm.modeling_glm  # noqa: F401

import qformats


def main() -> None:
    """Start the processes; when one fails, the others would wait for it for ever."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = range(int(sys.argv[1]))
    shared = {"WORLD_SIZE": str(len(ranks)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = set()
    for rank in ranks:
        child = os.fork()
        if not child:
            os.environ |= shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            compute()
            sys.exit()
        children.add(child)
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            sys.exit(f"a process ended with {os.waitstatus_to_exitcode(status)}")


def compute() -> None:
    """Compute logits, and eight tokens, of every run."""
    wanted = json.loads(Path(sys.argv[2]).read_text())
    found, device = {}, sys.argv[4]
    ids = torch.tensor(wanted["ids"], device=f"cuda:{os.environ['RANK']}" if device == "cuda" else device)
    for name, folder, options in wanted["runs"]:
        model = qformats.load_model(folder, device=device, tensor_parallel=True, **options)
        with torch.no_grad():
            found[f"{name}.logits"] = model(ids).logits
        found[f"{name}.tokens"] = model.generate(ids, max_new_tokens=8, do_sample=False)
        if device == "cuda":
            from qformats.runtime.decoding import loop

            found[f"{name}.captured"] = torch.tensor(loop._sessions[model].graph is not None)
        found[f"{name}.weights"] = torch.tensor(sum(p.numel() for p in model.parameters()))
        if name == "plain":
            with torch.no_grad():
                found["double.logits"] = model.double()(ids).logits
    if os.environ["RANK"] == "0":
        torch.save({each: value.cpu() for each, value in found.items()}, sys.argv[3])


main()
