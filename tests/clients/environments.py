"""Where the clients are installed, each in an environment of its own, and how their scripts are run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
# Not GRAINSERVE_*: the server refuses variables of that name that it does not know.
INSTALLED = Path(os.environ.get("CLIENTS") or ROOT / ".venv-clients").absolute()
SECONDS = 240


def python_of(name: str) -> Path:
    """Return the interpreter of the client's environment; without one the test is skipped."""
    found = INSTALLED / name / "bin" / "python"
    if not found.exists():
        pytest.skip(f"{name} is not installed; make clients installs it")
    return found


def run_python(name: str, folder: Path, *arguments: str, **variables: str) -> str:
    """Return what the client's interpreter prints; whatever it leaves behind lies in the folder."""
    return output([str(python_of(name)), *arguments], folder, variables)


def run_node(script: str, folder: Path, *arguments: str) -> str:
    """Return what the script prints; it is run from a folder where its imports are found."""
    modules, node = INSTALLED / "node" / "node_modules", shutil.which("node")
    if node is None or not modules.exists():
        pytest.skip("the clients for node are not installed; make clients installs them")
    (folder / "node_modules").symlink_to(modules.resolve())
    copied = shutil.copy(HERE / script, folder)
    return output([node, str(copied), *arguments], folder, {})


def output(command: list[str], folder: Path, variables: dict[str, str]) -> str:
    """Return the output of a command that must succeed; proxies and real keys are kept from it."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    ended = subprocess.run(
        command,
        cwd=folder,
        env={**kept, **variables, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    return ended.stdout
