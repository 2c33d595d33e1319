"""The profiles commands: readable for people and pipes, exit codes for scripts, never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from server.profiles_cli import profiles_app
from vector_store import local, places
from vector_store.local import LocalStore
from vector_store.manifest import Manifest, ModelRecord, PairsRecord

LONG_NAME = "a-very-long-profile-name-that-would-be-cut-in-a-narrow-terminal"


def manifest(name: str, **fields: object) -> Manifest:
    model = ModelRecord(
        id="HuggingFaceTB/SmolLM2-135M-Instruct", architecture="LlamaForCausalLM", layers=30, hidden_size=4,
        fingerprint="ab" * 32,
    )  # fmt: skip
    return Manifest(**{"name": name, "model": model, "layers": (3, 4, 5, 9), "method": "grains"} | fields)


def publish(root: Path, name: str, **fields: object) -> Path:
    record = manifest(name, **fields)
    deltas = {layer: torch.ones(4) for layer in record.layers}
    return LocalStore(root).publish(record, deltas, {}).path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with two sound profiles, nothing shipped."""
    monkeypatch.setattr(local, "SHIPPED", tmp_path / "nothing")
    root = tmp_path / "store"
    publish(root, "truthful")
    publish(
        root,
        "truthful",
        description="Answers truthfully.",
        pairs=PairsRecord(digest="cd" * 32, count=120),
        parameters={"steps": 20},
        calibration={"dose": 4.5},
        evidence={"effect": 0.31, "damage": {"perplexity": 1.02}, "note": "held out"},
        libraries={"torch": "2.9"},
        created="2025-01-01T00:00:00Z",
    )
    publish(root, LONG_NAME, positions="generated")
    return root


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(profiles_app, [str(each) for each in arguments], env=environment)


def corrupt(version: Path) -> None:
    (version / "vectors.safetensors").write_bytes(b"junk")


def test_a_listing_has_the_newest_versions_and_cuts_nothing_when_piped(root: Path):
    result = run("list", "--store", root)
    header, first, second = (line.split() for line in result.stdout.splitlines())
    assert header == ["name", "version", "method", "layers", "model", "description"]
    assert first == [LONG_NAME, "1", "grains", "3-5,9", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert second[:5] == ["truthful", "2", "grains", "3-5,9", "HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert second[5:] == ["Answers", "truthfully."]
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_corrupt_profile_is_listed_with_its_problem(root: Path):
    corrupt(root / "truthful" / "2")
    result = run("list", "--store", root)
    line = result.stdout.splitlines()[2]
    assert line.startswith("truthful")
    assert "'truthful@2' is corrupt: vectors.safetensors has SHA-256" in line
    assert "publish it again or remove this version" in line
    assert result.exit_code == 0


def test_a_listing_in_json_is_the_whole_truth(root: Path):
    corrupt(root / LONG_NAME / "1")
    first, second = json.loads(run("list", "--json", "--store", root).stdout)
    assert (first["name"], first["version"], first["manifest"]) == (LONG_NAME, 1, None)
    assert "SHA-256" in first["problem"]
    assert (second["version"], second["problem"]) == (2, None)
    assert second["manifest"] == LocalStore(root).get("truthful").manifest.model_dump(mode="json")


def test_a_profile_is_shown_with_its_headline_evidence(root: Path):
    result = run("show", "truthful", "--store", root)
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    for line in [
        "profile      truthful@2",
        "description  Answers truthfully.",
        "model        HuggingFaceTB/SmolLM2-135M-Instruct (LlamaForCausalLM, 30 layers of 4)",
        "layers       3-5,9",
        f"pairs        120, SHA-256 {'cd' * 32}",
        "evidence     effect: 0.31",
        '             damage: {"perplexity": 1.02}',
        "             note: held out",
        f"path         {root / 'truthful' / '2'}",
    ]:
        assert line in lines
    assert result.exit_code == 0


def test_an_older_version_is_shown_by_number(root: Path):
    shown = json.loads(run("show", "truthful@1", "--json", "--store", root).stdout)
    assert Manifest.model_validate(shown) == LocalStore(root).get("truthful", 1).manifest


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("thruthful", "error: no profile named 'thruthful'; did you mean 'truthful'?"),
        ("truthful@7", "error: profile 'truthful' has no version 7; it has 2, 1"),
        ("../truthful", "error: no profile named '../truthful' (a name has"),
    ],
)
def test_a_profile_that_is_not_there_ends_with_1(root: Path, reference: str, told: str):
    result = run("show", reference, "--store", root)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(told)


@pytest.mark.parametrize(
    "reference", ["truthful@", "truthful@x", "truthful@0", "truthful@1@1", "truthful@-1"]
)
def test_a_reference_that_makes_no_sense_ends_with_2(root: Path, reference: str):
    for command in ("show", "verify"):
        result = run(command, reference, "--store", root)
        assert result.exit_code == 2
        assert "after '@' comes a version" in result.stderr


def test_verifying_sound_profiles_ends_with_0(root: Path):
    result = run("verify", "--store", root)
    assert result.stdout.splitlines() == [f"ok   {LONG_NAME}@1", "ok   truthful@1", "ok   truthful@2"]
    assert (result.exit_code, result.stderr) == (0, "3 checked, 0 bad\n")


def test_verifying_finds_an_older_version_that_is_bad(root: Path):
    corrupt(root / "truthful" / "1")
    result = run("verify", "--store", root)
    assert "BAD  truthful@1: profile 'truthful@1' is corrupt: vectors.safetensors has SHA" in result.stdout
    assert "ok   truthful@2" in result.stdout
    assert (result.exit_code, result.stderr) == (1, "3 checked, 1 bad\n")


def test_verifying_names_looks_at_those_only(root: Path):
    corrupt(root / "truthful" / "1")
    assert run("verify", LONG_NAME, "truthful@2", "--store", root).exit_code == 0
    assert run("verify", "truthful", "--store", root).exit_code == 1
    unknown = run("verify", LONG_NAME, "nobody", "--store", root)
    assert "BAD  nobody: no profile named 'nobody'" in unknown.stdout
    assert unknown.exit_code == 1


def test_a_profile_whose_versions_cannot_be_listed_is_bad(root: Path):
    (root / "loop").symlink_to(root / "loop")
    result = run("verify", "--store", root)
    assert "BAD  loop: profile 'loop' is corrupt: its directory cannot be read" in result.stdout
    assert "loop" in run("list", "--store", root).stdout
    assert result.exit_code == 1


def test_the_store_comes_from_the_option_then_the_environment_then_the_users_directory(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publish(tmp_path / "environment", "from-environment")
    publish(tmp_path / "home" / "grainserve" / "profiles", "from-home")
    monkeypatch.setattr(places, "user_data_path", (tmp_path / "home").joinpath)
    from_environment = {"GRAINSERVE_STORE": str(tmp_path / "environment")}
    assert "from-home" in run("list").stdout
    assert "from-environment" in run("list", **from_environment).stdout
    assert "truthful" in run("list", "--store", root, **from_environment).stdout


def test_an_empty_store_is_no_error_but_a_missing_one_is_noted(root: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    empty, missing = run("list", "--store", tmp_path / "empty"), run("list", "--store", tmp_path / "missing")
    assert (empty.exit_code, empty.stdout, empty.stderr) == (0, "", "no profiles\n")
    assert f"note: {tmp_path / 'missing'} is no directory" in missing.stderr
    assert json.loads(run("list", "--json", "--store", tmp_path / "empty").stdout) == []
    assert not (tmp_path / "missing").exists()


def test_what_a_manifest_says_cannot_command_the_terminal(root: Path):
    publish(root, "evil", description="[red]a[/] :boom: \x1b[2J\r\n\x07b", method="\x1b]0;title\x07m")
    for result in (run("list", "--store", root), run("show", "evil", "--store", root)):
        assert result.exit_code == 0
        assert all(line.isprintable() for line in result.stdout.splitlines())
    assert "[red]a[/] :boom:  [2J" in run("show", "evil", "--store", root).stdout


def test_the_commands_run_as_a_program_without_a_traceback(root: Path):
    program = "from server.profiles_cli import profiles_app; profiles_app()"
    command = [sys.executable, "-c", program, "show", "nobody"]
    environment = os.environ | {"GRAINSERVE_STORE": str(root), "COLUMNS": "40", "LC_ALL": "C"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: no profile named 'nobody'")
    assert "Traceback" not in result.stderr
