"""A server of one's own, in a process of its own, for as long as it is needed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from server.bench.free_port import free_port

START_LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class Served:
    """url without a path; start_seconds: from launching the process to its first 200 on /ready."""

    url: str
    process: int
    start_seconds: float

    def memory(self) -> int:
        """Return the bytes that the process has for itself, weights mapped from disk left out."""
        return int(psutil.Process(self.process).memory_full_info().uss)


@contextmanager
def served(arguments: Sequence[str], store: Path) -> Iterator[Served]:
    """Start `grainserve serve` on a free port, wait until it is ready, and end it on leaving."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", "--port", str(port), "--store", str(store)]
    with tempfile.TemporaryFile() as log:
        begin = time.perf_counter()
        environment = {**os.environ, "GRAINSERVE_SERVED_MODEL_NAME": "bench"}
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            if not wait_until_ready(url, process):
                log.seek(0)
                raise RuntimeError(f"the server did not start:\n{log.read().decode(errors='replace')}")
            yield Served(url, process.pid, time.perf_counter() - begin)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/ready", timeout=5).status_code == 200:
                return True
        except httpx.TransportError:
            time.sleep(0.05)
    return False
