"""The `grainserve` command as a process: it serves, it says what is wrong, it ends cleanly."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from server.config import Settings
from server.serving import example
from tests.server.running import until
from tests.tiny_models import save_tiny

COMMAND = [sys.executable, "-m", "server"]


def environment(**extra: str) -> dict[str, str]:
    names = {f"GRAINSERVE_{name.upper()}" for name in Settings.model_fields}
    return {**{name: value for name, value in os.environ.items() if name not in names}, **extra}


def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=120, env=environment(**extra)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_tiny("llama", folder)
    return folder


@contextmanager
def serving(model: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run the server and yield its process and what it printed until it served."""
    command = [*COMMAND, "serve", "--model", str(model), "--port", "0", "--device", "cpu", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            yield process, [process.stdout.readline() for _ in range(5)]
        finally:
            process.kill()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_what_it_announces_and_ends_cleanly(
    model: Path, tmp_path: Path, end: signal.Signals
) -> None:
    arguments = ["--store", str(tmp_path), "--served-model-name", "tiny", "--threads", "1"]
    with serving(model, *arguments) as (process, printed):
        assert printed[0].startswith("grainserve serves tiny on cpu in float32")
        found = re.search(r"http://\S+/v1", printed[1])
        assert found is not None
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4,
            "temperature": 0,
        }
        answer = httpx.post(f"{found[0]}/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] <= 4
        process.send_signal(end)
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in output + errors


def test_the_printed_example_is_a_request_that_works(model: Path, tmp_path: Path) -> None:
    with serving(model, "--store", str(tmp_path), "--served-model-name", "tiny") as (_, printed):
        command = printed[4].removeprefix("try").strip().replace('"max_tokens": 64', '"max_tokens": 2')
        answer = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
        assert '"object":"chat.completion"' in answer.stdout


def test_the_example_survives_a_shell() -> None:
    line = example("http://h:1", "it's", ["calm"], keyed=True)
    script = f"curl() {{ for word; do printf '%s\\n' \"$word\"; done; }}; {line}"
    words = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words[0] == "http://h:1/v1/chat/completions"
    assert '"model": "it\'s"' in words[-1]
    assert '"profile": "calm"' in words[-1]


def test_a_server_that_strangers_reach_without_a_key_says_so(tmp_path: Path) -> None:
    nothing = ["serve", "--port", "0", "--model", str(tmp_path / "nothing"), "--host", "0.0.0.0"]
    warning = "set --api-key or --api-key-file"
    assert warning in run(*nothing, HF_HUB_OFFLINE="1").stderr
    assert warning not in run(*nothing, "--api-key", "x", HF_HUB_OFFLINE="1").stderr


def test_a_port_in_use_is_said_in_one_line(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--model", str(model), "--port", str(port))
    assert result.returncode == 1
    assert result.stderr == (
        f"grainserve: cannot listen on 127.0.0.1:{port}: Address already in use; "
        "choose another --port (make serve: PORT=...)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["--port", "99999"], {}),
        (["--port", "eighty"], {}),
        (["--device", "gpu"], {}),
        (["--config", "/nowhere.toml"], {}),
        ([], {"GRAINSERVE_MAX_STRENGTH": "strong"}),
        ([], {"GRAINSERVE_CONFIG": "/nowhere.toml"}),
        (["--no-such-flag"], {}),
    ],
)
def test_a_bad_setting_ends_with_status_2_and_no_traceback(
    arguments: list[str], extra: dict[str, str]
) -> None:
    result = run("serve", *arguments, **extra)
    assert result.returncode == 2
    assert result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_is_not_there_is_said_without_a_traceback(tmp_path: Path) -> None:
    result = run("serve", "--port", "0", "--model", str(tmp_path / "nothing"), HF_HUB_OFFLINE="1")
    assert result.returncode == 1
    assert result.stderr.startswith("grainserve: ")
    assert "Traceback" not in result.stderr


def test_every_setting_has_a_flag() -> None:
    flags = run("serve", "--help", COLUMNS="200", TERM="dumb").stdout
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in flags


STARTING = """
import asyncio, subprocess, sys, time
from server import serving
from server.cli import main
from server.engine.scripted import ScriptedEngine
from steering.errors import ModelUnavailable

class Starting(ScriptedEngine):
    async def start(self):
        if "{way}" == "fails":
            raise ModelUnavailable("the engine has no memory; give it some")
        if "{way}" == "dies":
            self._state = "ready"
            asyncio.get_running_loop().call_later(0.5, self.die, "out of memory")
            return
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        time.sleep(60)

serving.engine_of = lambda settings: Starting()
main()
"""


def test_an_engine_that_cannot_start_says_why_in_a_line() -> None:
    command = [sys.executable, "-c", STARTING.format(way="fails"), "serve", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert ended.returncode == 1
    assert ended.stderr == "grainserve: the engine has no memory; give it some\n"


def test_a_server_that_is_to_ends_with_its_engine() -> None:
    code = STARTING.format(way="dies")
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--exit-when-dead"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
    assert ended.returncode == 1
    assert ended.stderr == "grainserve: the engine died: out of memory\n"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_its_processes_while_the_engine_starts(end: signal.Signals) -> None:
    command = [sys.executable, "-c", STARTING.format(way="waits"), "serve", "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment()) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.send_signal(end)
        assert process.wait(10) == 0
        until(lambda: not child.is_running())
        assert process.stderr is not None
        assert process.stderr.read() == ""
