"""An S3 server of the tests' own: moto's, in a process of its own on a free port of the loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

from agent_memory.remote.bucket import Bucket, Limits

INSTALL = 'pip install "moto[server]>=5.1"'
KEYS = {"access_key_id": "test", "secret_access_key": "test"}
IN_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


class S3Server:
    """A running server with one bucket; ``close`` ends it, and nothing of it is left."""

    def __init__(self, bucket: str = "team") -> None:
        assert importlib.util.find_spec("moto") is not None, INSTALL
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.bucket = bucket
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._create()

    def _create(self, wait_s: float = 60) -> None:
        url, until = f"http://127.0.0.1:{self.port}/{self.bucket}", time.monotonic() + wait_s
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                assert self._process.poll() is None, "moto's server ended"
                assert time.monotonic() < until, "moto's server does not answer"
                time.sleep(0.05)

    def url(self, prefix: str, *, port: int | None = None, bucket: str | None = None) -> str:
        """Return the URL of a prefix; ``port``: of a proxy in front of the server."""
        end = f"endpoint=http://127.0.0.1:{port or self.port}&region=us-east-1"
        return f"s3://{bucket or self.bucket}/{prefix}?{end}"

    def open(self, prefix: str, *, port: int | None = None, limits: Limits | None = None) -> Bucket:
        """Return a bucket under that prefix."""
        return Bucket(self.url(prefix, port=port), options=KEYS, limits=limits)

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server while the block runs."""
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
