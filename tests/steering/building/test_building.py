"""A whole build gives the same vectors for the same seed, whatever it is measured by."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from pydantic import TypeAdapter

from steering.building.building import BuildOptions, Built, build_vectors, settings
from steering.building.calibration import DamageBound
from steering.building.grains_options import GrainsOptions
from steering.building.memo import Memo
from steering.building.metrics import parse_metric, read_metric
from steering.building.questions import NeutralText, neutral_text
from steering.building.readers import read_pairs, read_prompts
from steering.errors import InvalidPairs, InvalidRequest
from steering.loading import LoadedModel

OPTIONS = BuildOptions(
    grains=GrainsOptions(tokens=2),
    layers=((1,), (1, 2)),
    doses=(0.1, 0.2),
    bound=DamageBound(100.0, 0.0, 100.0, 1.0),
    max_tokens=4,
)


@pytest.fixture(autouse=True)
def short_neutral_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a tiny build's time is the neutral text; a little of it tells as much here."""
    short = NeutralText(neutral_text().passages[:2], neutral_text().questions[:8])
    monkeypatch.setattr("steering.building.building.neutral_text", lambda: short)


def build(loaded: LoadedModel, pairs: Path, options: BuildOptions = OPTIONS) -> Built:
    return build_vectors(loaded, read_pairs(pairs), None, (), options)


def test_a_build_is_the_same_for_the_same_seed(llama: LoadedModel, pairs_path: Path) -> None:
    first, again = build(llama, pairs_path), build(llama, pairs_path)
    assert first.deltas.keys() == again.deltas.keys()
    assert all(torch.equal(first.deltas[layer], again.deltas[layer]) for layer in first.deltas)
    assert first.report == again.report


def test_the_report_holds_both_bounds_of_the_evidence(llama: LoadedModel, pairs_path: Path) -> None:
    built = build(llama, pairs_path)
    assert built.evidence["metric"] == "margin"
    assert built.evidence["items"] == 4
    assert built.evidence["effect"]["low"] <= built.evidence["effect"]["mean"]
    assert len(built.report["calibration"]) == 4
    assert json.loads(json.dumps(built.report, allow_nan=False)) == built.report


@pytest.mark.parametrize(
    ("asked", "tried"),
    [
        (
            {},
            [
                *(((9,), dose) for dose in (0.05, 0.1, 0.15, 0.2)),
                *(((12,), dose) for dose in (0.05, 0.1, 0.15, 0.2)),
                *(((15,), dose) for dose in (0.05, 0.1, 0.15, 0.2)),
                *(((18,), dose) for dose in (0.05, 0.1, 0.15, 0.2)),
                *(((9, 12, 15), dose) for dose in (0.0167, 0.0333, 0.05, 0.0667)),
            ],
        ),
        ({"layers": ((3, 4),)}, [((3, 4), dose) for dose in (0.025, 0.05, 0.075, 0.1)]),
        ({"layers": ((3,), (3, 4)), "doses": (0.3,)}, [((3,), 0.3), ((3, 4), 0.3)]),
    ],
)
def test_blocks_are_tried_alone_and_together_and_share_a_dose_that_is_not_asked_for(
    asked: dict[str, Any], tried: list[tuple[tuple[int, ...], float]]
) -> None:
    thirty = SimpleNamespace(blocks=range(30))
    found = settings(cast(LoadedModel, thirty), BuildOptions(**asked))
    assert [(setting.layers, setting.dose) for setting in found] == tried


def test_blocks_that_nothing_reads_images_behind_are_not_tried() -> None:
    def tried(count: int, **asked: Any) -> list[tuple[int, ...]]:
        model = cast(LoadedModel, SimpleNamespace(blocks=range(count)))
        found = settings(model, BuildOptions(doses=(0.1,), tokens="image", **asked))
        return [setting.layers for setting in found]

    assert tried(2) == [(0,)]
    assert tried(30) == [(9,), (12,), (15,), (18,), (9, 12, 15)]
    assert tried(5, layers=((3,), (3, 4))) == [(3,), (3, 4)]
    with pytest.raises(
        InvalidRequest, match=r"block 4 is the model's last: .* name earlier --layers, 0 to 3"
    ):
        tried(5, layers=((3,), (4,)))


def test_the_report_compares_with_other_directions_from_the_same_pairs(
    llama: LoadedModel, pairs_path: Path
) -> None:
    options = replace(OPTIONS, layers=((2,),), doses=(0.1,))
    grains = build(llama, pairs_path, options)
    other = build(llama, pairs_path, replace(options, method="mean_difference"))
    assert list(grains.report["controls"]) == ["mean_difference", "random_tokens"]
    assert list(other.report["controls"]) == ["random_tokens"]
    assert grains.evidence["controls"]["mean_difference"]["score"] == other.evidence["steered"]


def test_the_dose_is_stated_with_its_damage_and_its_safe_strengths(
    llama: LoadedModel, pairs_path: Path
) -> None:
    built = build(llama, pairs_path)
    assert built.calibration["safe_strengths"] == [-2.0, 2.0]
    assert built.calibration["bound"]["loss"] == 100.0
    chosen = max(built.report["calibration"], key=lambda trial: trial["effect"])
    for cost in ("loss", "accuracy"):
        assert built.calibration[cost] == chosen[cost]
        assert built.calibration["unsteered"][cost] >= 0
    strict = replace(OPTIONS, bound=DamageBound(100.0, 0.0, -1.0, 1.0, -1.0))
    with pytest.raises(InvalidPairs, match="damages the answers"):
        build(llama, pairs_path, strict)


def test_pairs_left_out_stand_in_the_report_and_change_nothing(llama: LoadedModel, pairs_path: Path) -> None:
    plain = build(llama, pairs_path)
    assert plain.report["pairs"] == {"used": 12, "left_out": []}
    lines = pairs_path.read_text().splitlines()
    long = lines[0].replace("yes, 0!", "long " * llama.context_length)
    pairs_path.write_text("\n".join([*lines, lines[0], long]))
    built = build(llama, pairs_path)
    assert built.report["pairs"] == {"used": 12, "left_out": [asdict(left) for left in built.left_out]}
    assert [left.line for left in built.left_out] == [13, 14]
    assert all(torch.equal(plain.deltas[layer], built.deltas[layer]) for layer in plain.deltas)


@pytest.mark.parametrize("method", ["grains", "mean_difference", "contrastive_gradient"])
def test_a_metric_is_measured_on_the_held_out_prompts(
    llama: LoadedModel, pairs_path: Path, tmp_path: Path, method: str
) -> None:
    metric, prompts = tmp_path / "metric.json", tmp_path / "test.jsonl"
    metric.write_text('{"name": "brevity", "metric": {"kind": "length"}}')
    prompts.write_text('{"prompt": "tell me"}\n{"prompt": "show me"}')
    options = BuildOptions(method, OPTIONS.grains, ((2,),), (0.1,), OPTIONS.bound, 4)
    built = build_vectors(llama, read_pairs(pairs_path), read_metric(metric), read_prompts(prompts), options)
    assert built.evidence["items"] == 2
    assert [sample["prompt"] for sample in built.report["samples"]] == ["tell me", "show me"]
    assert built.evidence["effect"]["mean"] == pytest.approx(
        built.evidence["unsteered"] - built.evidence["steered"], abs=1e-3
    )
    dose = float(built.deltas[2].norm()) / built.calibration["median_norms"]["2"]
    assert dose == pytest.approx(0.1, rel=1e-2)


def test_every_stage_tells_how_far_it_is(llama: LoadedModel, pairs_path: Path) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    build_vectors(
        llama,
        read_pairs(pairs_path),
        None,
        (),
        OPTIONS,
        lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )
    stages = [
        "attribution",
        "gradients",
        "activations",
        "calibration",
        "safe range",
        "controls",
        "evaluation",
    ]
    assert list(seen) == stages
    for steps in seen.values():
        assert steps == [(done, steps[-1][1]) for done in range(len(steps))]


def test_a_block_that_is_not_there_is_refused(llama: LoadedModel, pairs_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no block 9: the model has 0 to 3"):
        build(llama, pairs_path, BuildOptions(layers=((9,),)))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stage", ["attribution", "calibration", "evaluation"])
def test_an_interrupted_build_goes_on_and_ends_as_an_uninterrupted_one(
    llama: LoadedModel, pairs_path: Path, tmp_path: Path, stage: str
) -> None:
    memo, pairs = Memo(tmp_path / "memo"), read_pairs(pairs_path)

    def stop(name: str, done: int, _total: int) -> None:
        if (name, done) == (stage, 2):
            raise Stopped

    with pytest.raises(Stopped):
        build_vectors(llama, pairs, None, (), OPTIONS, stop, memo)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "memo").iterdir()}
    assert kept
    again = build_vectors(llama, pairs, None, (), OPTIONS, memo=memo)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "finished steps are not done twice"
    whole = build(llama, pairs_path)
    assert all(torch.equal(again.deltas[layer], whole.deltas[layer]) for layer in whole.deltas)
    assert again.report == whole.report
    assert again.evidence == whole.evidence


@pytest.mark.parametrize("damaged", ["[0.1", "{}", '["a"]', "", "[" * 100_000, "0" * 64 + "\n[1.0]"])
def test_a_kept_step_that_is_damaged_is_done_again(tmp_path: Path, damaged: str) -> None:
    memo, numbers = Memo(tmp_path), TypeAdapter(list[float])
    assert memo.recall("a", numbers, lambda: [0.1, 1e-300]) == [0.1, 1e-300]
    assert memo.recall("a", numbers, lambda: []) == [0.1, 1e-300]
    next(tmp_path.iterdir()).write_text(damaged)
    assert memo.recall("a", numbers, lambda: [3.0]) == [3.0]
    assert memo.recall("a", numbers, lambda: []) == [3.0]


def test_steps_that_cannot_be_kept_end_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "builds").write_text("in the way")
    with pytest.raises(InvalidRequest, match="name another --cache-dir"):
        Memo(tmp_path / "builds" / "key").recall("a", TypeAdapter(int), lambda: 1)


def test_a_test_prompt_beyond_the_context_is_refused_at_once(llama: LoadedModel, pairs_path: Path) -> None:
    long = ({"role": "user", "content": "a" * 400},)
    metric = parse_metric({"name": "m", "metric": {"kind": "length"}})
    with pytest.raises(InvalidPairs, match="test prompt 1 is"):
        build_vectors(llama, read_pairs(pairs_path), metric, (long,), OPTIONS)
