"""Every command of the README, run in the order of the page on a fresh copy in a fresh environment."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from server.bench.free_port import free_port

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Run by other means: the tests by whoever runs this one, the benchmark for its ten minutes, images where
# there is an engine to build them.
ELSEWHERE = ("make test", "make check", "make bench", "docker ", "git clone")
READY_SECONDS = 240


@dataclass(frozen=True)
class Command:
    language: str
    text: str


def commands() -> list[Command]:
    """Return the page's commands, in order; a line of shell that belongs elsewhere is left out."""
    found = []
    for language, text in FENCE.findall((ROOT / "README.md").read_text()):
        lines = text.splitlines(keepends=True)
        kept = "".join(line for line in lines if not line.startswith(ELSEWHERE))
        if kept.strip():
            found.append(Command(language, kept))
    return found


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, and nothing else."""
    target = tmp_path_factory.mktemp("clone") / "grainserve"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


def environment(clone: Path, port: int) -> dict[str, str]:
    """Return a user's environment: no virtual environment, a home of its own, a free port."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VIRTUAL_ENV", "GRAINSERVE_", "PYTEST_", "MAKE", "MFLAGS", "ARGS", "MODEL"))
    }
    home = clone.parent / "home"
    home.mkdir(exist_ok=True)
    return {
        **kept,
        "PORT": str(port),
        "VLM_PORT": str(free_port()),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_DATA_HOME": str(home / "data"),
        "PIP_CACHE_DIR": os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")),
    }


@contextmanager
def served(command: str, clone: Path, variables: dict[str, str]) -> Iterator[None]:
    """Run a server's command until its address answers, and end it with the block."""
    port = variables["VLM_PORT" if "PORT=8001" in command else "PORT"]
    with (clone.parent / f"serve-{port}.log").open("w+") as log:
        process = subprocess.Popen(
            ["bash", "-c", command.replace("PORT=8001", f"PORT={port}")],
            cwd=clone,
            env=variables,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until_ready(process, port, log.name)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def wait_until_ready(process: subprocess.Popen[bytes], port: str, log: str) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, Path(log).read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no answer on /ready: {Path(log).read_text()}")


def run(command: Command, clone: Path, variables: dict[str, str]) -> str:
    ports = {":8000": variables["PORT"], ":8001": variables["VLM_PORT"]}
    text = re.sub(":800[01]", lambda found: f":{ports[found[0]]}", command.text)
    program = ["bash", "-euo", "pipefail", "-c"] if command.language == "sh" else [".venv/bin/python", "-c"]
    done = subprocess.run(
        [*program, text], cwd=clone, env=variables, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_readmes_commands_do_what_the_page_says(clone: Path) -> None:
    page = commands()
    serving = [place for place, command in enumerate(page) if "make serve" in command.text]
    assert serving, "the page does not say how to serve"
    variables = environment(clone, free_port())
    for command in page[: serving[0]]:
        run(command, clone, variables)
    outputs = []
    with ExitStack() as servers:
        for place, command in enumerate(page[serving[0] :], serving[0]):
            if place in serving:
                servers.enter_context(served(command.text, clone, variables))
            else:
                outputs.append(run(command, clone, variables))
    lines = [line for output in outputs for line in output.splitlines()]
    answers = [json.loads(line) for line in lines if line.startswith("{") and '"chat.completion"' in line]
    contents = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert len(contents) >= 2
    assert len(set(contents)) == len(contents), "a steered answer is the unsteered one"
    assert any(answer.get("steering") for answer in answers)
    seen = dict(line.split(": ", 1) for line in lines if line.startswith("shapes"))
    assert seen["shapes"].startswith(seen["shapes:honest"])
    assert seen["shapes"] != seen["shapes:honest"]
