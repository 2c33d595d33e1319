"""`grainserve serve --engine vllm` as a process: why it cannot start, and how it ends while it loads."""

import signal
import subprocess

import psutil
import pytest

pytest.importorskip("vllm")

from tests.server.engine.on_vllm import HEAD_DIM
from tests.server.running import until
from tests.server.test_cli import COMMAND, environment
from tests.tiny_models import save_tiny

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder, HEAD_DIM)
    where = ["--model", str(folder), "--store", str(folder), "--port", "0", "--threads", "1"]
    return [*COMMAND, "serve", "--engine", "vllm", *where, "--engine-arg", "enforce_eager=true"]


def test_why_it_cannot_start_is_its_last_line(command: list[str]) -> None:
    ended = subprocess.run(
        [*command, "--kv-cache-gb", "0.00001"],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
    )
    assert ended.returncode == 1
    *_, last = ended.stderr.splitlines()
    assert last.startswith("grainserve: vLLM could not start: ")
    assert "--kv-cache-gb" in last
    assert "in lifespan" not in ended.stderr


def test_a_signal_ends_it_and_vllms_processes_while_it_loads(command: list[str]) -> None:
    pipe = subprocess.PIPE
    started = [*command, "--kv-cache-gb", "0.1"]
    with subprocess.Popen(started, stdout=pipe, stderr=pipe, text=True, env=environment()) as process:
        server = psutil.Process(process.pid)
        until(lambda: "VLLM::Worker" in names(server), 120)
        children = server.children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        until(lambda: not any(child.is_running() for child in children), 10)


def names(server: psutil.Process) -> list[str]:
    return [word for child in server.children(recursive=True) for word in child.cmdline()[:1]]
