"""`grainserve eval` measures a published profile on held-out data, and says what is wrong before any work."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from server import judging
from server.eval_cli import STRENGTHS, eval_profile
from server.eval_profile import parse_strengths
from server.judging import Judge, Judgement, judgement_rows, rates, read_rating
from steering.building import calibration
from steering.errors import JudgeUnavailable
from steering.loading import load_model
from tests.tiny_models import save_tiny
from vector_store.local import LocalStore
from vector_store.manifest import Manifest, ModelRecord, PairsRecord

app = typer.Typer()
app.command()(eval_profile)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny model, a profile of it, and held-out data."""
    folder = tmp_path_factory.mktemp("eval")
    save_tiny("llama", folder / "model")
    for name, answer in (("built", "yes"), ("held_out", "of course")):
        records = [pair(f"say {i}", f"{answer} {i}", f"no {i}") for i in range(4)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "test.jsonl").write_text('{"prompt": "hello"}\n{"prompt": "good day"}')
    (folder / "metric.json").write_text('{"name": "brevity", "metric": {"kind": "length"}}')
    (folder / "questions.jsonl").write_text('{"question": "q", "options": ["a", "b"], "answer": 0}')
    (folder / "judge.txt").write_text("Rate {answer} to {prompt}.")
    identity = load_model(str(folder / "model"), folder, device="cpu").identity
    digest = hashlib.sha256((folder / "built.jsonl").read_bytes()).hexdigest()
    store = LocalStore(folder / "store")
    delta = torch.nn.functional.normalize(torch.arange(1.0, 33.0), dim=0)
    manifest = Manifest(
        name="bright",
        model=ModelRecord(**asdict(identity)),
        layers=(1,),
        method="mean_difference",
        pairs=PairsRecord(digest=digest, count=4),
    )
    other = ModelRecord(**{**asdict(identity), "fingerprint": "0" * 64})
    store.publish(manifest, {1: delta}, {})
    store.publish(manifest.model_copy(update={"name": "foreign", "model": other}), {1: delta}, {})
    store.publish(manifest.model_copy(update={"name": "partial", "positions": "generated"}), {1: delta}, {})
    return folder


def pair(prompt: str, preferred: str, dispreferred: str) -> dict[str, Any]:
    return {
        "input": {"messages": [{"role": "user", "content": prompt}]},
        "preferred_output": [{"role": "assistant", "content": preferred}],
        "non_preferred_output": [{"role": "assistant", "content": dispreferred}],
    }


def judge_options(url: str, template: str) -> list[str]:
    return ["--judge-url", url, "--judge-model", "j", "--judge-prompt", template]


def run(workplace: Path, *arguments: str) -> Result:
    """Run the command in the workplace; an argument that names a file there becomes its path."""
    fixed = ["--model", str(workplace / "model"), "--cache-dir", str(workplace), "--max-tokens", "4"]
    fixed += ["--device", "cpu", "--store", str(workplace / "store"), "--random", "19", "--strengths", "-1,2"]
    fixed += ["--questions", str(workplace / "questions.jsonl")]
    named = [str(workplace / part) if (workplace / part).is_file() else part for part in arguments]
    return CliRunner().invoke(app, [*fixed, *named])


def test_pairs_give_margins_choices_damage_and_controls(workplace: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    result = run(workplace, "bright@1", "--pairs", "held_out.jsonl", "--output", str(output))
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    assert (found["profile"], found["version"], found["questions"]) == ("bright", 1, 1)
    assert (found["headline"]["metric"], found["headline"]["items"]) == ("margin", 4)
    rows = {row["strength"]: row for row in found["dose_response"]}
    assert list(rows) == [-1, 0, 1, 2]
    assert rows[2]["effect"]["mean"] == pytest.approx(rows[2]["score"] - rows[0]["score"], abs=1e-3)
    assert rows[2]["loss"] != rows[0]["loss"]
    assert {"accuracy", "repetition", "chosen_whole", "chosen_per_token"} <= rows[1].keys()
    assert len(found["random_scores"]) == 19
    assert "bright@1: margin, n = 4" in result.stdout
    assert f"[{rows[2]['effect']['low']:+.3f}, {rows[2]['effect']['high']:+.3f}]" in result.stdout
    assert "19 random directions" in result.stdout


def test_a_metric_is_measured_and_every_answer_judged(workplace: Path, tmp_path: Path) -> None:
    output, seen = tmp_path / "found.json", list[str]()

    def reply(question: str) -> str:
        seen.append(question)
        return "I cannot say" if "good day" in question else "7/10"

    with judge_of(reply) as url:
        judge = judge_options(url, "judge.txt")
        files = ["--metric", "metric.json", "--test", "test.jsonl", "--output", str(output)]
        result = run(workplace, "bright", *files, *judge)
    assert result.exit_code == 0, result.output
    found = json.loads(output.read_text())
    assert found["headline"]["metric"] == "brevity"
    assert [row["strength"] for row in found["judge"]] == [-1, 0, 1, 2]
    for row in found["judge"]:
        assert (row["judged"], row["unreadable"], row["rating"]) == (2, 1, 7)
    assert found["judge"][3]["effect"] == {"mean": 0, "low": 0, "high": 0}
    assert "unreadable" in result.stdout
    for sample in found["samples"]:
        assert f"Rate {sample['strength +2']} to {sample['prompt']}." in seen


@contextmanager
def judge_of(
    reply: Callable[[str], str], status: int = 200, pause: float = 0.0, raw: bytes | None = None
) -> Iterator[str]:
    """Serve chat completions on a free port; reply gets the last message. pause: seconds between bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            content = reply(asked["messages"][-1]["content"])
            body = raw or json.dumps({"choices": [{"message": {"content": content}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                for piece in [body[i : i + 1] for i in range(len(body))] if pause else [body]:
                    self.wfile.write(piece)
                    time.sleep(pause)

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["bright"], "either --pairs, or --metric with --test"),
        (["bright", "--pairs", "held_out.jsonl", "--metric", "metric.json"], "either --pairs"),
        (["bright", "--metric", "metric.json"], "--metric with --test"),
        (["bright", "--pairs", "built.jsonl"], "was built on"),
        (["brigt", "--pairs", "held_out.jsonl"], "did you mean 'bright'"),
        (["foreign", "--pairs", "held_out.jsonl"], "does not fit"),
        (["partial", "--pairs", "held_out.jsonl"], "steers generated positions"),
        (
            ["bright", "--pairs", "held_out.jsonl", "--random", "18"],
            "--random 18: being stronger than so few",
        ),
        (["bright", "--pairs", "held_out.jsonl", "--strengths", "1,x"], "not a list of numbers"),
        (["bright", "--pairs", "held_out.jsonl", "--strengths", "nan"], "finite"),
        (["bright", "--pairs", "held_out.jsonl", "--questions", "test.jsonl"], "no questions"),
        (["bright", "--pairs", "held_out.jsonl", "--output", "/absent/found.json"], "cannot be written"),
        (["bright", "--pairs", "held_out.jsonl", "--judge-url", "http://x"], "needs all three"),
        (
            ["bright", "--pairs", "held_out.jsonl", *judge_options("http://x", "test.jsonl")],
            "does not say where the answer goes",
        ),
        (
            ["bright", "--pairs", "held_out.jsonl", *judge_options("http://127.0.0.1:1/v1", "judge.txt")],
            "cannot be reached",
        ),
    ],
)
def test_a_mistake_ends_with_its_reason(workplace: Path, arguments: list[str], reason: str) -> None:
    result = run(workplace, *arguments)
    assert result.exit_code == 1
    assert reason in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_profile_of_another_model_than_the_default_is_refused_before_one_is_loaded(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.eval_profile.load_model", None)
    arguments = ["bright", "--pairs", str(workplace / "held_out.jsonl"), "--store", str(workplace / "store")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    told = " ".join(result.stderr.split())
    assert "'bright' was built for model (LlamaForCausalLM)" in told
    assert "with --model" in told


def test_a_judge_that_refuses_is_named_with_its_reason() -> None:
    with judge_of(lambda _asked: "5", status=404) as url, pytest.raises(JudgeUnavailable, match="says 404"):
        rates(Judge(url, "j", "{answer}"))


def test_a_judge_that_drips_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "TIMEOUT_SECONDS", 0.5)
    with judge_of(lambda _asked: "5" * 400, pause=0.02) as url:
        started = time.monotonic()
        with pytest.raises(JudgeUnavailable, match="took longer than"):
            rates(Judge(url, "j", "{answer}"))
        assert time.monotonic() - started < 5


def test_a_judges_reply_is_read_up_to_a_limit() -> None:
    refused = pytest.raises(JudgeUnavailable, match="longer than 1000000 bytes")
    with judge_of(lambda _asked: "5" * 2_000_000) as url, refused:
        rates(Judge(url, "j", "{answer}"))


def test_a_judge_whose_replies_are_no_ratings_is_found_out_first() -> None:
    for reply, read in (("7", True), ("good", False)):
        with judge_of(lambda _asked, reply=reply: reply) as url:
            assert rates(Judge(url, "j", "{answer}")) is read


def test_what_a_judge_says_cannot_reach_the_terminal_as_commands() -> None:
    with judge_of(lambda _asked: "5", status=500, raw=b"\x1b[31mno") as url:
        host = url.removeprefix("http://")
        with pytest.raises(JudgeUnavailable) as refused:
            rates(Judge(f"http://user:secret@{host}", "j", "{answer}"))
    assert "\x1b" not in refused.value.message
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("7", 7.0),
        (" **8.5** ", 8.5),
        ("Rating: 9/10.", 9.0),
        ("10", 10.0),
        ("0", None),
        ("11", None),
        ("-3 or so", None),
        ("From 1 to 10, a 7", None),
        ("", None),
        (None, None),
    ],
)
def test_a_rating_is_read_only_where_the_reply_is_one(reply: str | None, rating: float | None) -> None:
    assert read_rating(reply) == rating


def test_a_judges_effect_pairs_the_answers_that_have_both_ratings() -> None:
    judged = {0.0: Judgement((1.0, 2.0, None, 4.0)), 1.0: Judgement((3.0, None, 9.0, 6.0))}
    unsteered, steered = judgement_rows(judged, seed=0)
    assert (unsteered["judged"], unsteered["unreadable"]) == (4, 1)
    assert "effect" not in unsteered
    assert (steered["paired"], steered["effect"]["mean"], steered["rating"]) == (2, 2.0, 6.0)


def test_the_default_strengths_are_those_of_a_build() -> None:
    assert tuple(parse_strengths(STRENGTHS)) == calibration.STRENGTHS
    assert parse_strengths("0,3") == [-1.0, 1.0, 3.0]
