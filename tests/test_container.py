"""The container's steps, run without an engine: the Dockerfile's own lines in a clean folder."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.bench.free_port import free_port
from server.config import Settings
from tests.test_readme import wait_until_ready

ROOT = Path(__file__).parents[1]
USER = 10001


@dataclass
class Stage:
    """One stage of the Dockerfile: its instructions in order."""

    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, kind: str) -> list[str]:
        return [text for name, text in self.instructions if name == kind]


def stages() -> dict[str, Stage]:
    text = re.sub(r"\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    found: dict[str, Stage] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            kind, rest = line.split(None, 1)
            if kind == "FROM":
                current = found.setdefault(rest.split()[-1], Stage())
            else:
                current.instructions.append((kind, rest))
    return found


def context(target: Path) -> None:
    """Copy what .dockerignore lets through."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = ROOT / line[1:]
            if source.is_dir():
                shutil.copytree(source, target / line[1:], ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target / line[1:])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that stands for the image's root, after the stage's RUN lines."""
    root = tmp_path_factory.mktemp("image")
    (root / "src").mkdir()
    context(root / "src")
    for copied in stages()["source"].all("COPY"):
        assert all((root / "src" / name).exists() for name in copied.split()[:-1])
    for line in stages()["install-cpu"].all("RUN"):
        here = line.replace("/opt/grainserve", f"{root}/opt").replace("/src", f"{root}/src")
        here = here.replace("python -m venv", f"{public_python() or sys.executable} -m venv")
        subprocess.run(["bash", "-euc", here], check=True, cwd=root, capture_output=True)
    return root


def public_python() -> str | None:
    """Return a Python 3.11 or newer that every user may run, if there is one."""
    for candidate in (Path(sys.executable).resolve(), Path("/usr/bin/python3")):
        if candidate.exists() and all(folder.stat().st_mode & 0o001 for folder in candidate.parents):
            recent = [str(candidate), "-c", "import sys, venv; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(recent, check=False).returncode == 0:
                return str(candidate)
    return None


def runtime_variables(root: Path, port: int) -> dict[str, str]:
    """Return the runtime stage's environment with its folders under root."""
    declared = dict(re.findall(r"(\w+)=(\S+)", " ".join(stages()["runtime"].all("ENV"))))
    assert declared["PATH"].startswith("/opt/grainserve/bin:")
    folders = {"GRAINSERVE_CACHE_DIR": "models", "GRAINSERVE_STORE": "profiles", "HOME": "tmp"}
    for name, folder in folders.items():
        (root / folder).mkdir(exist_ok=True)
        declared[name] = str(root / folder)
    path = f"{root}/opt/bin:{os.environ['PATH']}"
    return {**declared, "PATH": path, "GRAINSERVE_PORT": str(port), "GRAINSERVE_HOST": "127.0.0.1"}


def as_the_images_user(root: Path) -> dict[str, Any]:
    """Return the process's user where the test may change it; what it may write belongs to that user."""
    if os.geteuid() != 0 or public_python() is None:
        return {}
    for folder in (root, *root.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(0o755)
    for folder in ("models", "profiles", "tmp"):
        os.chown(root / folder, USER, USER)
    return {"user": USER, "group": USER, "extra_groups": []}


@contextmanager
def running(root: Path, variables: dict[str, str]) -> Iterator[None]:
    entry = json.loads(stages()["runtime"].all("ENTRYPOINT")[0])
    command = [*entry, *json.loads(stages()["runtime"].all("CMD")[0])]
    with (root / "serve.log").open("w+") as log:
        process = subprocess.Popen(
            [str(root / "opt" / "bin" / command[0]), *command[1:]],
            env=variables,
            cwd=root / "tmp",
            stdout=log,
            stderr=log,
            **as_the_images_user(root),
        )
        try:
            wait_until_ready(process, variables["GRAINSERVE_PORT"], log.name)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_images_steps_install_a_server_that_runs_unprivileged(installed: Path) -> None:
    variables = runtime_variables(installed, free_port())
    with running(installed, variables):
        check = re.search(r"CMD (\[.*\])", stages()["runtime"].all("HEALTHCHECK")[0])
        assert check is not None
        probe = [str(installed / "opt" / "bin" / "python"), *json.loads(check[1])[1:]]
        subprocess.run(probe, env=variables, check=True)
        url = f"http://127.0.0.1:{variables['GRAINSERVE_PORT']}/v1/steering/profiles"
        with urllib.request.urlopen(url) as response:
            profiles = json.load(response)["data"]
        assert sum(profile["compatible"] for profile in profiles) >= 3


def test_the_last_target_is_the_slim_one_and_runs_as_a_numbered_user() -> None:
    assert list(stages())[-1] == "cpu"
    assert stages()["runtime"].all("USER") == [str(USER)]


def test_the_compose_file_sets_only_what_is_a_setting() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert {tuple(service["profiles"]) for service in compose["services"].values()} == {("cpu",), ("gpu",)}
    for service in compose["services"].values():
        assert service["build"]["target"] in stages()
        assert service["read_only"] is True
        for name in service["environment"]:
            assert name.removeprefix("GRAINSERVE_").lower() in Settings.model_fields


def test_of_several_replicas_none_can_write_the_store_and_the_tools_can() -> None:
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    for name in ("first", "second"):
        assert services[name]["read_only"] is True
        assert "profiles:/profiles:ro" in services[name]["volumes"]
    assert services["tools"]["profiles"] == ["tools"]
    assert "profiles:/profiles" in services["tools"]["volumes"]
    assert {name: store_is_read_only(name) for name in ("", "-build", "-store")} == {
        "": True,
        "-build": False,
        "-store": False,
    }


def store_is_read_only(name: str) -> bool:
    """Return how the manifest's only container mounts the store."""
    (container,) = pod_of(name)["containers"]
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    return bool(mounts["profiles"].get("readOnly", False))


def pod_of(name: str) -> dict[str, Any]:
    """Return the spec of the only pod that the manifest makes."""
    documents = yaml.safe_load_all((ROOT / f"deploy/kubernetes{name}.yaml").read_text())
    specs = [document.get("spec", {}) for document in documents]
    (pod,) = (pod for spec in specs if "containers" in (pod := spec.get("template", {}).get("spec", spec)))
    assert isinstance(pod, dict)
    return pod


@pytest.mark.parametrize("name", ["", "-build", "-store"])
def test_no_service_puts_its_address_among_the_settings_of_a_pod(name: str) -> None:
    assert pod_of(name)["enableServiceLinks"] is False


def test_what_may_hold_a_token_stays_out_of_the_repository_and_the_images() -> None:
    assert ".env" in (ROOT / ".gitignore").read_text().split()
    assert "**/.env" in (ROOT / ".dockerignore").read_text().split()
