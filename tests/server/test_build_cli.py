"""`grainserve build` publishes what it built, and says what is wrong before any work is done."""

import json
from inspect import signature
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner, Result

from server.build_cli import Method, build
from server.eval_cli import eval_profile
from steering.building.builders import BUILDERS
from steering.building.grains_options import PRESETS, GrainsOptions
from tests.server.engine.test_seeing import noise
from tests.tiny_models import save_tiny
from tests.tiny_vlms import save_tiny_vlm
from vector_store.local import LocalStore

app = typer.Typer()
app.command()(build)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny model, pairs, a metric and held-out prompts."""
    folder = tmp_path_factory.mktemp("build")
    save_tiny("llama", folder / "model")
    records = [
        {
            "input": {"messages": [{"role": "user", "content": f"say {i}"}]},
            "preferred_output": [{"role": "assistant", "content": f"yes {i}"}],
            "non_preferred_output": [{"role": "assistant", "content": f"no {i}"}],
        }
        for i in range(6)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*records, records[0]])))
    (folder / "test.jsonl").write_text('{"prompt": "hello"}')
    (folder / "metric.json").write_text(
        '{"name": "brevity", "description": "Short.", "metric": {"kind": "length"}}'
    )
    return folder


def run(workplace: Path, *arguments: str) -> Result:
    fixed = ["--model", str(workplace / "model"), "--cache-dir", str(workplace), "--max-tokens", "4"]
    fixed += ["--device", "cpu", "--store", str(workplace / "store"), "--dose", "0.01", "--layers", "1"]
    return CliRunner().invoke(app, [str(workplace / "pairs.jsonl"), *fixed, *arguments])


def test_a_profile_is_published_with_its_evidence(workplace: Path) -> None:
    files = ["--metric", str(workplace / "metric.json"), "--test", str(workplace / "test.jsonl")]
    result = run(workplace, "--name", "brief", "--method", "mean_difference", *files)
    assert result.exit_code == 0, result.output
    assert "pairs left out: line 7 (an earlier line says the same)" in result.stderr
    assert "published brief@1" in result.stderr.replace("\n", "")
    profile = LocalStore(workplace / "store").get("brief")
    assert profile.manifest.method == "mean_difference"
    assert profile.manifest.description == "Short."
    assert profile.manifest.evidence["metric"] == "brevity"
    assert profile.vectors.layers == (1,)
    report = json.loads((profile.path / "report.json").read_text())
    assert report["headline"] == profile.manifest.evidence
    assert report["pairs"]["used"] == 6
    assert [left["line"] for left in report["pairs"]["left_out"]] == [7]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--name", "Bad Name"], "cannot name a profile"),
        (["--name", "b", "--layers", "1,x"], "is not a list of blocks"),
        (["--name", "b", "--layers", "7"], "no block 7"),
        (["--name", "b", "--layers", "0+1+1"], "names a block twice"),
        (["--name", "b", "--dose", "-1"], "must be above 0"),
        (["--name", "b", "--dose", "1.5"], "at most 1"),
        (["--name", "b", "--dose", "nan"], "must be above 0"),
        (["--name", "b", "--method", "mean_difference", "--tokens", "3"], "--tokens is about GrAInS, and"),
        (["--name", "b", "--method", "mean_difference", "--attribution", "smooth"], "--attribution is about"),
        (["--name", "b", "--method", "mean_difference", "--preset", "paper"], "--preset is about GrAInS"),
        (["--name", "b", "--test", "t.jsonl"], "--test needs --metric"),
        (["--name", "b", "--metric", "absent.json"], "cannot be read"),
        (["--name", "b", "--model", "/absent"], "no directory"),
        (["--name", "b", "--most-steps", "8"], "--most-steps is about gradients"),
        (["--name", "b", "--steer", "image"], "cannot move image tokens alone: model takes no images"),
        (["--name", "b", "--steer", "text"], "cannot move text tokens alone: model takes no images"),
    ],
)
def test_a_mistake_ends_with_its_reason(workplace: Path, arguments: list[str], reason: str) -> None:
    result = run(workplace, *arguments)
    assert result.exit_code == 1
    assert reason in result.stderr
    assert "Traceback" not in result.output
    assert not (workplace / "store" / "b").exists()


def test_a_name_that_is_taken_by_a_file_is_refused_before_any_work(workplace: Path) -> None:
    (workplace / "store").mkdir(exist_ok=True)
    (workplace / "store" / "taken").write_text("in the way")
    result = run(workplace, "--name", "taken")
    assert result.exit_code == 1
    assert "taken is no directory" in " ".join(result.stderr.split())


def test_the_command_offers_every_builder() -> None:
    assert get_args(Method) == tuple(BUILDERS)


def test_ctrl_c_publishes_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.build_profile.build_vectors", interrupted)
    result = run(workplace, "--name", "stopped")
    assert result.exit_code == 130
    assert "nothing was published; the same command goes on" in result.stderr
    assert not (workplace / "store" / "stopped").exists()


def test_a_report_to_look_at_lies_beside_the_vectors(workplace: Path) -> None:
    files = ["--metric", str(workplace / "metric.json"), "--test", str(workplace / "test.jsonl")]
    result = run(workplace, "--name", "shown", "--method", "mean_difference", *files)
    assert result.exit_code == 0, result.output
    profile = LocalStore(workplace / "store").get("shown")
    assert str(profile.path / "report.html") in result.stderr.replace("\n", "")
    assert "Short." in (profile.path / "report.html").read_text()
    for picture in ("dose_response.png", "effect_by_block.png"):
        assert (profile.path / picture).read_bytes().startswith(b"\x89PNG")


def test_presets_and_options_of_grains_are_told_in_the_manifest(workplace: Path) -> None:
    result = run(workplace, "--name", "paper", "--preset", "paper", "--tokens", "2", "--batch-tokens", "64")
    assert result.exit_code == 0, result.output
    told = LocalStore(workplace / "store").get("paper").manifest.parameters
    assert (told["reading"], told["ablation"], told["summary"]) == ("shared", "pad", "component")
    assert told["attribution"] == "integrated"
    assert (told["steps"], told["tolerance"], told["tokens"], told["batch_tokens"]) == (20, None, 2, 64)
    assert not (workplace / "builds").exists() or not list((workplace / "builds").iterdir())


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny model that takes images, pairs with and without, and neutral text."""
    folder = tmp_path_factory.mktemp("seeing")
    save_tiny_vlm("qwen3_vl", folder / "model")
    records = []
    for number in range(8):
        noise((40, 40), number).save(folder / f"{number}.png")
        records.append({"prompt": f"is it {number}?", "preferred": "no", "dispreferred": "yes it is"})
    (folder / "words.jsonl").write_text("\n".join(map(json.dumps, records)))
    told = [{**record, "image": f"{number}.png"} for number, record in enumerate(records)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, told)))
    held_out = [{**record, "preferred": "not so"} for record in told]
    (folder / "held_out.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    neutral = [{"text": "a quiet day"}, {"question": "how many?", "options": ["one", "two"], "answer": 0}]
    (folder / "neutral.jsonl").write_text("\n".join(map(json.dumps, neutral)))
    return folder


@pytest.mark.parametrize("kind", ["image", "text"])
def test_a_profile_that_moves_one_kind_of_tokens_is_measured_by_those(seeing: Path, kind: str) -> None:
    neutral = ["--neutral", str(seeing / "neutral.jsonl")]
    options = ["--name", kind, "--steer", kind, "--method", "mean_difference", "--no-evidence", *neutral]
    result = run(seeing, *options)
    assert result.exit_code == 0, result.output
    assert f"for {kind} tokens alone" in " ".join(result.stderr.split())
    manifest = LocalStore(seeing / "store").get(kind).manifest
    assert manifest.tokens == kind
    calibrated = manifest.calibration
    # The neutral text has no images: what moves images alone leaves it as it was.
    assert (calibrated["loss"] == calibrated["unsteered"]["loss"]) == (kind == "image")
    arguments = [kind, "--pairs", str(seeing / "held_out.jsonl"), "--model", str(seeing / "model"), *neutral]
    arguments += ["--store", str(seeing / "store"), "--cache-dir", str(seeing), "--max-tokens", "2"]
    arguments += ["--output", str(seeing / "found.json"), "--random", "19", "--strengths", "2"]
    evaluating = typer.Typer()
    evaluating.command()(eval_profile)
    result = CliRunner().invoke(evaluating, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    found = json.loads((seeing / "found.json").read_text())
    rows = {row["strength"]: row for row in found["dose_response"]}
    assert found["tokens"] == kind
    assert rows[2]["score"] != rows[0]["score"]
    assert (rows[2]["loss"] == rows[0]["loss"]) == (kind == "image")


@pytest.mark.parametrize(("reading", "advised"), [("influence", True), ("response", True), ("shared", False)])
def test_a_reading_that_takes_no_pieces_of_images_out_is_told_of(
    seeing: Path, reading: str, advised: bool
) -> None:
    # The block that is not there ends the build behind the advice.
    result = run(seeing, "--name", "told", "--reading", reading, "--layers", "99")
    told = " ".join(result.stderr.split())
    assert (f"--reading {reading} takes out tokens of the answers alone" in told) is advised
    assert ("scored by --reading shared or context" in told) is advised


def test_the_last_block_is_refused_for_image_tokens_before_any_work(seeing: Path) -> None:
    result = run(seeing, "--name", "vain", "--steer", "image", "--layers", "1,3")
    assert result.exit_code == 1
    assert "block 3 is the model's last: no later block reads" in " ".join(result.stderr.split())
    assert " done" not in result.stderr


def test_image_tokens_of_pairs_without_images_are_not_there_to_be_moved(seeing: Path) -> None:
    fixed = ["--model", str(seeing / "model"), "--cache-dir", str(seeing), "--store", str(seeing / "store")]
    fixed += ["--device", "cpu", "--name", "none", "--steer", "image"]
    result = CliRunner().invoke(app, [str(seeing / "words.jsonl"), *fixed])
    assert result.exit_code == 1
    assert "image tokens alone are to be moved, and there are none" in " ".join(result.stderr.split())


def test_the_command_offers_every_preset_and_reading() -> None:
    options = {each.name: each.annotation for each in signature(build).parameters.values()}
    assert set(get_args(get_args(options["preset"])[0])) == set(PRESETS)
    for name in ("reading", "ablation", "summary", "baseline", "read"):
        offered = get_args(get_args(get_args(options[name])[0])[0])
        assert set(offered) == set(get_args(get_type_hints(GrainsOptions)[name])), name
