"""A real object store on this machine: moto's server, which speaks S3, in a process of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Store", "running"]


@dataclass(frozen=True)
class Store:
    """The server.

    Attributes
    ----------
    address : str
        Of the server.
    process : int
        Its process.
    """

    address: str
    process: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which a program finds it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "something",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def client(self) -> Any:
        """A client that asks anew each time."""
        import s3fs

        return s3fs.S3FileSystem(
            key="somebody",
            secret="something",
            endpoint_url=self.address,
            skip_instance_cache=True,
            use_listings_cache=False,
        )

    def refuse(self, after: float) -> None:
        """From so many requests on, refuse whoever has no right to what they ask for: nobody has any."""
        where = f"{self.address}/moto-api/reset-auth"
        plain = {"Content-Type": "text/plain"}
        request = urllib.request.Request(where, data=str(after).encode(), headers=plain)
        urllib.request.urlopen(request).close()


@contextlib.contextmanager
def running() -> Iterator[Store]:
    """The server while the block runs, with an empty bucket named ``bucket``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        store = Store(f"http://127.0.0.1:{port}", process.pid)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{store.address}/moto-api/").close()
                    break
                except OSError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            store.client().mkdir("bucket")
            yield store
        finally:
            process.kill()
