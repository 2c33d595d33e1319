"""Pictures are PNGs of what the report says; their layout keeps all text on the page and in order."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from steering.building.highlighting import (
    PIECE,
    HighlightedToken,
    ScoredTokens,
    colour,
    gathered,
    highlighted,
)
from steering.building.pictures import (
    damage,
    dose_response,
    draw_controls,
    effect_by_block,
    intervals,
    pictures,
)
from steering.building.token_heatmap import token_heatmap, wrapped

SHIPPED = sorted(Path("vector_store/shipped").glob("*/1/report.json"))
SIDE = {
    "tokens": ["costs", " $5", " or", " $6\n", "日本", ""],
    "scores": [1, 0.5, -2, 0, 0, 0],
    "ablated": [0, 1],
}
SHORT = {"tokens": ["a"], "scores": [1], "ablated": []}
ATTRIBUTION = {"line": 1, "prompt": "How $much$?", "gap": 0.01, "preferred": SIDE, "dispreferred": SIDE}


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    height, width, _ = matplotlib.image.imread(io.BytesIO(png)).shape
    return width, height


def point(strength: float, score: float, **more: Any) -> dict[str, Any]:
    return {"strength": strength, "score": score, **more}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.parents[1].name)
def test_every_shipped_report_is_drawn(path: Path) -> None:
    drawn = pictures(json.loads(path.read_text()))
    assert {"dose_response.png", "effect_by_block.png"} <= drawn.keys()
    for png in drawn.values():
        assert min(size_of(png)) > 300


def test_a_report_is_drawn_as_far_as_it_goes() -> None:
    assert pictures({}) == {}
    assert pictures({"attributions": [ATTRIBUTION]}).keys() == {"tokens.png"}


def test_a_dose_response_without_damage_has_one_panel() -> None:
    points = [point(0.0, 1.0), point(1.0, 2.0)]
    costly = [{**each, "log_probability": -1.0} for each in points]
    assert damage(points) is None
    assert (
        size_of(dose_response({"dose_response": points}))[1]
        < size_of(dose_response({"dose_response": costly}))[1]
    )


def test_the_loss_on_neutral_text_goes_before_the_answers_log_probability() -> None:
    found = damage([point(0.0, 0.0, log_probability=-1.0, loss=3.0)])
    assert found is not None
    assert found[0] == "loss"


def test_intervals_surround_the_score_in_the_metrics_own_sign() -> None:
    points = [point(-1.0, 14.0), point(0.0, 10.0), point(0.5, 9.0), point(1.0, 7.0)]
    head = {
        "effect": {"mean": 3.0, "low": 2.0, "high": 4.5},
        "effect_away": {"mean": -4.0, "low": -5.0, "high": -2.0},
    }
    assert intervals(points, head) == [(-1.0, 12.0, 15.0), (0.0, 10.0, 10.0), (1.0, 5.5, 8.0)]


def test_a_points_own_interval_is_drawn() -> None:
    points = [point(0.0, 1.0), point(0.5, 2.0, effect={"mean": 1.0, "low": 0.5, "high": 1.5})]
    assert intervals(points, {}) == [(0.0, 1.0, 1.0), (0.5, 1.5, 2.5)]


def test_controls_are_drawn_at_strength_1() -> None:
    panel = Figure().subplots()
    draw_controls(panel, {"mean_difference": {"score": 0.5}, "random_tokens": {"score": 0.25}})
    marks = {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
    assert marks == {"mean difference": [[1, 0.5]], "random tokens": [[1, 0.25]]}


def test_a_broken_bound_changes_the_picture() -> None:
    trial = {"layers": [3], "dose": 0.2, "effect": 1.0, "admitted": True}
    kept, broken = ({"calibration": [{**trial, "admitted": admitted}]} for admitted in (True, False))
    assert effect_by_block(kept) != effect_by_block(broken)


def test_signs_that_fonts_and_formulas_trip_over_are_drawn() -> None:
    assert size_of(token_heatmap({"attributions": [ATTRIBUTION]}))[0] == 1200


def test_more_pairs_make_the_heatmap_longer() -> None:
    one, three = (size_of(token_heatmap({"attributions": [ATTRIBUTION] * count})) for count in (1, 3))
    assert one[0] == three[0]
    assert one[1] < three[1]


@given(st.lists(st.text(alphabet="ab \n", max_size=9), max_size=30), st.integers(4, 20))
def test_wrapped_tokens_stay_on_the_page_in_order_without_overlap(texts: list[str], columns: int) -> None:
    placed = wrapped([HighlightedToken(text, 0.0, 0.0, False) for text in texts], columns)
    assert [each.token.text for each in placed] == texts
    ends = (0, 0)
    for each in placed:
        assert (each.row, each.column) >= ends
        ends = (each.row, each.column + len(each.text))
        assert ends[1] <= columns


def test_both_sides_of_a_pair_share_one_scale() -> None:
    sides = highlighted([ScoredTokens("a", ("x",), (2.0,)), ScoredTokens("b", ("y", "z"), (-4.0, 1.0))])
    assert [[token.share for token in side] for side in sides] == [[0.5], [-1.0, 0.25]]


def test_pieces_of_an_image_that_follow_each_other_are_one_token_with_their_sum() -> None:
    tokens, scores = ("a", PIECE, PIECE, "b", PIECE), (1.0, 2.0, -0.5, 0.0, 3.0)
    found = gathered(ScoredTokens("prompt", tokens, scores, frozenset({2, 3})))
    assert found.tokens == ("a", "[image: 2 pieces]", "b", "[image: 1 piece]")
    assert found.scores == (1.0, 1.5, 0.0, 3.0)
    assert found.ablated == {1, 2}
    side = {"tokens": ["a", *[PIECE] * 300], "scores": [1] * 301, "ablated": []}
    attribution = {**ATTRIBUTION, "preferred": side, "dispreferred": side}
    plain = {**ATTRIBUTION, "preferred": SHORT, "dispreferred": SHORT}
    assert size_of(token_heatmap({"attributions": [attribution]})) == size_of(
        token_heatmap({"attributions": [plain]})
    )


def test_scores_of_zero_stay_white() -> None:
    [[token]] = highlighted([ScoredTokens("a", ("x",), (0.0,))])
    assert colour(token.share) == (255, 255, 255)


def test_towards_is_blue_and_against_is_red() -> None:
    assert colour(1.0)[2] > colour(1.0)[0]
    assert colour(-1.0)[0] > colour(-1.0)[2]
