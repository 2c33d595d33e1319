"""The page says what the report says, needs nothing beside it, and lets no text become markup."""

import json
import re
from base64 import b64encode
from copy import deepcopy
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from steering.building.report_page import report_page, shaded
from steering.building.reporting import shortcomings

SHIPPED = Path("vector_store/shipped/cheerful/1")
PNG = b"\x89PNG"
SECTIONS = {
    "headline": "What it does",
    "attributions": "Tokens that decided",
    "samples": "Answers side by side",
    "calibration": "How the dose was chosen",
}
HOSTILE = "<script>alert('\"&')</script>"
SIDE = {"tokens": ["salt", " sea"], "scores": [0.5, -1.0], "ablated": [0]}


@pytest.fixture
def manifest() -> dict[str, Any]:
    return json.loads((SHIPPED / "manifest.json").read_text())


@pytest.fixture
def report() -> dict[str, Any]:
    told = json.loads((SHIPPED / "report.json").read_text())
    told["attributions"] = [
        {"line": 7, "prompt": "How?", "gap": 0.034, "preferred": SIDE, "dispreferred": SIDE}
    ]
    return told


class Markup(HTMLParser):
    """Collects elements, their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_headline_is_told_with_its_interval_and_its_controls(manifest: Any, report: Any) -> None:
    report["headline"]["effect"] = {"mean": 2.4212, "low": 1.6549, "high": 3.2652}
    report["headline"]["random"] = {"directions": 7, "mean": 0.0, "strongest": 0.1}
    report["controls"] = {
        "mean_difference": {
            "score": 1.875,
            "effect": report["headline"]["effect"],
            "advantage": {"mean": 0.5, "low": 0.25, "high": 0.75},
            "pairs": 50,
        }
    }
    text = Markup(report_page(manifest, report, {})).text
    assert "+2.42 (1.65 to 3.27)" in text
    assert "7 random directions, strongest" in text
    assert "mean difference" in text
    assert "1.88" in text
    assert "mean difference: the profile does +0.5 (0.25 to 0.75) better; pairs 50" in text


def test_a_pair_tells_its_gap_only_where_its_scores_must_add_up(manifest: Any, report: Any) -> None:
    assert "completeness gap 3.4%" in report_page(manifest, report, {})
    del report["attributions"][0]["gap"]
    page = report_page({**manifest, "parameters": {"reading": "influence"}}, report, {})
    assert "completeness gap" not in page
    assert "to where answers of its side are likelier" in page


def test_controls_may_be_a_list(manifest: Any, report: Any) -> None:
    report["controls"] = [{"name": "random tokens", "score": 0.125}]
    assert "random tokens" in Markup(report_page(manifest, report, {})).text


def test_the_page_says_whether_the_effect_stands_out(manifest: Any, report: Any) -> None:
    assert "The effect stands out" in report_page(manifest, report, {})
    report["headline"] |= {"works": False, "items": 11}
    page = report_page(manifest, report, {})
    assert "This does not show that it works: 11 held-out items are too few" in page
    assert "random direction of the same length did as much" not in page


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [(-0.5, -0.1, ["goes the wrong way"]), (-0.5, 0.1, ["holds zero"]), (0.1, 0.5, [])],
)
def test_an_interval_is_told_from_the_side_on_which_it_lies(
    report: Any, low: float, high: float, told: list[str]
) -> None:
    head = {**report["headline"], "effect": {"mean": (low + high) / 2, "low": low, "high": high}}
    found = list(shortcomings(head))
    assert len(found) == len(told)
    assert all(words in each for words, each in zip(told, found, strict=True))


@pytest.mark.parametrize("key", SECTIONS)
def test_a_part_that_the_report_lacks_is_left_out(manifest: Any, report: Any, key: str) -> None:
    assert SECTIONS[key] in report_page(manifest, report, {})
    del report[key]
    assert SECTIONS[key] not in report_page(manifest, report, {})


def test_a_build_without_a_test_has_a_page(manifest: Any) -> None:
    bare = {**manifest, "evidence": {}, "calibration": {}, "pairs": None, "parameters": {}}
    assert manifest["model"]["fingerprint"] in report_page(bare, {}, {})


def test_damage_on_neutral_text_has_columns_where_it_was_measured(manifest: Any, report: Any) -> None:
    del report["headline"]["damage"]
    report["controls"] = {}
    assert "<th>neutral loss" not in report_page(manifest, report, {})
    report["headline"]["damage"] = {"steered": {"loss": 3.125, "accuracy": 0.5}}
    text = Markup(report_page(manifest, report, {})).text
    assert "neutral loss" in text
    assert "3.12" in text


def test_tokens_are_coloured_by_score_and_underlined_where_taken_out(manifest: Any, report: Any) -> None:
    page = Markup(report_page(manifest, report, {}))
    spans = [attributes for tag, attributes in page.elements if tag == "span" and "title" in attributes]
    assert [span["title"] for span in spans] == ["+0.5", "-1"] * 2
    assert [span["style"] for span in spans[:2]] == [shaded(0.5), shaded(-1.0)]
    assert ["taken" in (span.get("class") or "") for span in spans] == [True, False] * 2
    assert "salt sea" in page.text
    assert "line 7, completeness gap 3.4%" in page.text


def test_the_chosen_setting_stands_out_in_its_table(manifest: Any, report: Any) -> None:
    [trial, *_] = report["calibration"]
    report["calibration"] = [
        {**trial, "layers": [layer], "dose": dose, "admitted": admitted}
        for layer, dose, admitted in ((12, 0.1, True), (12, 0.2, True), (15, 0.1, False), (15, 0.2, False))
    ]
    manifest["layers"], manifest["calibration"]["dose"] = [12], 0.2
    rows = re.findall(r'<tr class="(.*?)"><td>(.*?)</td>\s*<td>(.*?)</td>', report_page(manifest, report, {}))
    assert [row[1:] for row in rows if row[0] == "chosen"] == [("12", "0.2")]
    assert [row[1] for row in rows if row[0] == "broken"] == ["15", "15"]


def test_a_setting_that_broke_the_bound_says_which_part_of_it(manifest: Any, report: Any) -> None:
    manifest["calibration"] |= {
        "bound": {
            "log_probability": 0.6,
            "distinct_2": 0.9,
            "loss": 0.05,
            "accuracy": 0.02,
            "loss_nats": 0.02,
        },
        "unsteered": {"log_probability": -1.0, "distinct_2": 0.9, "loss": 0.1, "accuracy": 0.6},
    }
    kept = {"log_probability": -1.5, "distinct_2": 0.9, "loss": 0.119, "accuracy": 0.58, "admitted": False}
    costs = [
        {},
        {"log_probability": -1.7},
        {"distinct_2": 0.8},
        {"loss": 0.121, "accuracy": 0.57},
        {"admitted": True},
    ]
    [trial, *_] = report["calibration"]
    report["calibration"] = [{**trial, **kept, **cost} for cost in costs]
    page = report_page(manifest, report, {})
    assert re.findall(r"<td>((?:yes|no).*?)</td>", page) == [
        "no",
        "no: answers&#39; log-probability",
        "no: distinct word pairs",
        "no: neutral loss, accuracy",
        "yes",
    ]
    assert "up by at most 5%, or 0.02 nats per token where that is more" in page


def test_a_pictured_prompt_stands_with_its_image_and_what_was_expected(manifest: Any, report: Any) -> None:
    file = BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    url = f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
    told = {"images": [url], "preferred": "a red square", "dispreferred": "a blue star"}
    answers = {"unsteered": "u", "strength -2": "a", "strength +1": "c", "strength +0.5": "b"}
    report["samples"] = [{"prompt": "what?", **told, **answers}]
    page = report_page(manifest, report, {})
    [image] = [found for tag, found in Markup(page).elements if tag == "img"]
    assert (image["src"] or "").startswith("data:image/png;base64,")
    assert "preferred: a red square" in page
    assert "dispreferred: a blue star" in page
    names = re.findall(r"<b>((?:strength|unsteered).*?)</b>", page)
    assert names == ["strength -2", "unsteered", "strength +0.5", "strength +1"]


def test_the_page_says_what_each_count_of_pairs_counts(manifest: Any, report: Any) -> None:
    report["pairs"], manifest["pairs"]["count"] = {"used": 58, "left_out": []}, 29
    text = Markup(report_page(manifest, report, {})).text
    assert "from 29 preference pairs" in text
    assert "58; directions were found on 29, the rest held out" in text


def test_nothing_is_fetched_and_nothing_runs(manifest: Any, report: Any) -> None:
    pictures = {"dose_response.png": PNG, "effect_by_block.png": PNG}
    page = report_page(manifest, report, pictures)
    elements = Markup(page).elements
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in elements}
    addresses = [value for _, found in elements for key, value in found.items() if key in ("src", "href")]
    assert len(addresses) == 2
    assert all((address or "").startswith("data:image/png;base64,") for address in addresses)
    assert "url(" not in page
    assert "@import" not in page


def hostile(value: Any) -> Any:
    """Return the value with markup in every text and every key that names data."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [hostile(each) for each in value]
    if isinstance(value, dict):
        return {key: hostile(each) for key, each in value.items()}
    return value


def test_no_text_becomes_markup(manifest: Any, report: Any) -> None:
    report["samples"][0][HOSTILE] = "said"
    report["controls"] = {HOSTILE: {"score": 1.0, "remark": HOSTILE}}
    report[HOSTILE] = 1
    manifest["libraries"][HOSTILE] = HOSTILE
    manifest["parameters"][HOSTILE] = {"deep": HOSTILE}
    clean = [tag for tag, _ in Markup(report_page(manifest, report, {})).elements]
    page = Markup(report_page(hostile(deepcopy(manifest)), hostile(deepcopy(report)), {}))
    assert [tag for tag, _ in page.elements] == clean
    assert "script" not in clean
    assert HOSTILE in page.text


def test_what_the_page_does_not_show_is_named(manifest: Any, report: Any) -> None:
    report["judgement"] = {"by": "readers"}
    assert "also holds: judgement" in Markup(report_page(manifest, report, {})).text


def test_the_page_names_what_a_rebuild_needs(manifest: Any, report: Any) -> None:
    text = Markup(report_page(manifest, report, {})).text
    assert manifest["digest"] in text
    assert manifest["pairs"]["digest"] in text
    assert manifest["libraries"]["torch"] in text
    manifest["digest"] = "0" * 64
    assert "0" * 64 not in report_page(manifest, report, {})


def test_pairs_that_were_left_out_are_told_with_their_reason(manifest: Any, report: Any) -> None:
    report["pairs"] = {"used": 6, "left_out": [{"line": 7, "reason": "an answer is empty"}]}
    text = Markup(report_page(manifest, report, {})).text
    assert "line 7 (an answer is empty)" in text
    assert "also holds" not in text
