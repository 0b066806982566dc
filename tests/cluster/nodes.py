"""A Ray cluster of two nodes on this machine, run by a process of its own: ``python nodes.py`` until its input ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Nodes", "two_nodes"]

_SMALL = {"num_gpus": 0, "object_store_memory": 80 << 20}


@dataclass(frozen=True)
class Nodes:
    """The cluster.

    Attributes
    ----------
    address : str
        Of the head, which has one core.
    other : int
        Process of the other node, which has another one.
    """

    address: str
    other: int


def main() -> None:
    """Start the nodes, say where they are, and end them with the input."""
    from ray.cluster_utils import Cluster

    # A dead node is missed within seconds.
    quick = {
        "health_check_period_ms": 500,
        "health_check_timeout_ms": 1000,
        "health_check_failure_threshold": 3,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick, **_SMALL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(num_cpus=1, **_SMALL)
    print(json.dumps([cluster.address, other.all_processes["raylet"][0].process.pid]), flush=True)
    sys.stdin.read()
    cluster.shutdown()


@contextlib.contextmanager
def two_nodes(place: Path) -> Iterator[Nodes]:
    """The cluster while the block runs; what Ray prints is in a file there."""
    # What a program of the tests tells Ray by the environment.
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    with (
        (place / "ray.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("["):
                break
        else:
            raise RuntimeError((place / "ray.log").read_text())
        try:
            yield Nodes(*json.loads(line))
        finally:
            process.stdin.close()
            process.wait(60)


if __name__ == "__main__":
    main()
