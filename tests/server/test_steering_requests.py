"""Steering in a request: every way to say it, the proof that it happened, and what is refused."""

import json
from typing import Any

import pytest

from tests.server.running import CHAT, HELLO, Running, error_of, text_of


def steered(server: Running, **fields: Any) -> list[dict[str, Any]]:
    return server.answer(**fields)["steering"]


def by_header(server: Running, profile: str | None, strength: str | None = None, **fields: Any) -> Any:
    headers = {"X-Steering-Profile": profile, "X-Steering-Strength": strength}
    given = {name: value for name, value in headers.items() if value is not None}
    return server.client.post(CHAT, json={**HELLO, **fields}, headers=given)


def test_an_object_steers_and_the_answer_proves_it(server: Running) -> None:
    answer = server.answer(steering={"profile": "cheerful", "strength": 0.8}, max_tokens=5)
    assert answer["choices"][0]["message"]["content"] == "cheer"
    [proof] = answer["steering"]
    assert len(proof.pop("digest")) == 64
    assert proof == {
        "profile": "cheerful",
        "version": 2,
        "strength": 0.8,
        "layers": [1, 2, 3],
        "positions": "all",
        "tokens": "all",
        "steered_tokens": answer["usage"]["prompt_tokens"] + 4,
    }


def test_an_unsteered_answer_has_no_steering_key(server: Running) -> None:
    for nothing in (None, []):
        assert "steering" not in server.answer(steering=nothing)
        assert all("steering" not in chunk for chunk in server.chunks(steering=nothing))


def test_all_ways_to_say_the_same_steer_the_same(server: Running) -> None:
    wanted = steered(server, steering=[{"profile": "cheerful", "strength": 0.5}, {"profile": "concise@1"}])
    said = "cheerful*0.5+concise"
    assert steered(server, steering=said) == wanted
    assert steered(server, model=f"scripted:{said}") == wanted
    assert by_header(server, said).json()["steering"] == wanted
    assert [term["profile"] for term in wanted] == ["cheerful", "concise"]


def test_sources_that_agree_are_taken_as_one(server: Running) -> None:
    response = by_header(
        server, "cheerful", "1.0", model="scripted:cheerful@2*1", steering={"profile": "cheerful"}
    )
    assert response.status_code == 200
    assert len(response.json()["steering"]) == 1


@pytest.mark.parametrize(
    ("body", "header", "param"),
    [
        ({"model": "scripted:cheerful", "steering": "concise"}, None, "model"),
        ({"model": "scripted:cheerful", "steering": "cheerful*2"}, None, "model"),
        ({"model": "scripted:cheerful", "steering": "cheerful@1"}, None, "model"),
        ({"model": "scripted:cheerful", "steering": []}, None, "model"),
        ({"model": "scripted:cheerful", "steering": {"profile": "cheerful", "layers": [1]}}, None, "model"),
        ({"steering": "concise"}, "cheerful", "X-Steering-Profile"),
        ({"model": "scripted:cheerful"}, "cheerful+concise", "X-Steering-Profile"),
    ],
)
def test_sources_that_disagree_are_refused(server: Running, body: Any, header: str, param: str) -> None:
    response = by_header(server, header, None, **body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, "invalid_steering")
    assert "disagree" in error["message"]


def test_no_steering_is_called_so_where_it_disagrees(server: Running) -> None:
    error = server.refusal(model="scripted:cheerful", steering=[])
    assert error["message"] == "steering (none) and model ('cheerful') disagree; say the steering once"


def test_the_strength_header_is_the_strength_of_the_one_profile(server: Running) -> None:
    [proof] = by_header(server, "cheerful@1", "-0.5").json()["steering"]
    assert (proof["version"], proof["strength"]) == (1, -0.5)


@pytest.mark.parametrize(
    ("profile", "strength", "param"),
    [
        (None, "1", "X-Steering-Strength"),
        ("cheerful*0.5", "1", "X-Steering-Strength"),
        ("cheerful+concise", "1", "X-Steering-Strength"),
        ("cheerful", "strong", "X-Steering-Strength"),
        ("cheerful", "", "X-Steering-Strength"),
        ("cheerful", "5", "X-Steering-Strength"),
        ("", None, "X-Steering-Profile"),
        ("cheerful*", None, "X-Steering-Profile"),
    ],
)
def test_headers_that_make_no_sense_are_refused(
    server: Running, profile: str, strength: str, param: str
) -> None:
    response = by_header(server, profile, strength)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_header_sent_twice_is_refused(server: Running) -> None:
    headers = [("X-Steering-Profile", "cheerful"), ("X-Steering-Profile", "concise")]
    response = server.client.post(CHAT, json=HELLO, headers=headers)
    assert error_of(response)["param"] == "X-Steering-Profile"


def test_a_term_chooses_layers_and_positions(server: Running) -> None:
    [proof] = steered(
        server, steering={"profile": "cheerful", "layers": [3, 1], "positions": "prompt", "tokens": "text"}
    )
    assert (proof["layers"], proof["positions"]) == ([1, 3], "prompt")
    assert server.engine.jobs[-1].plan.terms[0].layers == (1, 3)


def test_positions_are_the_profiles_unless_said(server: Running) -> None:
    answer = server.answer(steering="concise", max_tokens=3)
    assert answer["steering"][0]["positions"] == "generated"
    assert answer["steering"][0]["steered_tokens"] == 2


def test_null_inside_a_term_is_the_same_as_absent(server: Running) -> None:
    nulls = {"strength": None, "layers": None, "positions": None, "tokens": None}
    assert steered(server, steering={"profile": "cheerful", **nulls}) == steered(server, steering="cheerful")


@pytest.mark.parametrize(
    ("steering", "param", "word"),
    [
        ("", "steering", "empty"),
        ("cheerful*", "steering", "not a steering term"),
        (1, "steering", "object"),
        (True, "steering", "object"),
        ({}, "steering.profile", "required"),
        ({"profile": 1}, "steering.profile", "string"),
        ({"profile": "cheerful*2"}, "steering.profile", "not a profile"),
        ({"profile": "../x"}, "steering.profile", "not a profile"),
        ({"profile": "cheerful", "strenght": 1}, "steering.strenght", "did you mean 'strength'"),
        ([{"profile": "cheerful"}, {"profile": "concise", "layer": [1]}], "steering[1].layer", "'layers'"),
        ({"profile": "cheerful", "strength": "1"}, "steering.strength", "number"),
        ({"profile": "cheerful", "strength": True}, "steering.strength", "number"),
        ({"profile": "cheerful", "strength": 4.5}, "steering.strength", "-4 to 4"),
        ([{"profile": "cheerful", "strength": -5}], "steering[0].strength", "-4 to 4"),
        ("cheerful*-4.1", "steering", "-4 to 4"),
        ({"profile": "cheerful", "layers": []}, "steering.layers", "at least 1"),
        ({"profile": "cheerful", "layers": [1, 1]}, "steering.layers", "repeated"),
        ({"profile": "cheerful", "layers": [0]}, "steering.layers", "layers 1, 2, 3"),
        ({"profile": "cheerful", "layers": [1.0]}, "steering.layers[0]", "integer"),
        ({"profile": "cheerful", "layers": [True]}, "steering.layers[0]", "integer"),
        ({"profile": "cheerful", "positions": "some"}, "steering.positions", "'prompt'"),
        ({"profile": "cheerful", "tokens": "image"}, "steering.tokens", "no images"),
        ([{"profile": "cheerful"}] * 9, "steering", "at most 8"),
        ("+".join(["cheerful"] * 9), "steering", "8 is the most"),
    ],
)
def test_steering_that_is_wrong_is_refused(server: Running, steering: Any, param: str, word: str) -> None:
    error = server.refusal(steering=steering)
    assert (error["status"], error["code"], error["param"]) == (400, "invalid_steering", param)
    assert word in error["message"]


@pytest.mark.parametrize("strength", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 400])
def test_a_strength_that_is_not_finite_is_refused(server: Running, strength: str) -> None:
    body = json.dumps({**HELLO, "steering": {"profile": "cheerful", "strength": 0}})
    response = server.client.post(CHAT, content=body.replace(": 0}", f": {strength}}}"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "steering.strength"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"steering": {"profile": "cheerfull"}}, "steering.profile"),
        ({"steering": [{"profile": "concise"}, {"profile": "cheerfull"}]}, "steering[1].profile"),
        ({"steering": "cheerfull*2"}, "steering"),
        ({"model": "scripted:cheerfull"}, "model"),
    ],
)
def test_an_unknown_profile_is_not_found_and_the_nearest_is_named(
    server: Running, body: Any, param: str
) -> None:
    before = len(server.engine.jobs)
    error = server.refusal(**body)
    assert (error["status"], error["code"], error["param"]) == (404, "profile_not_found", param)
    assert "'cheerful'" in error["message"]
    assert len(server.engine.jobs) == before


def test_an_unknown_version_is_not_found(server: Running) -> None:
    error = server.refusal(steering="cheerful@7")
    assert (error["status"], error["code"]) == (404, "profile_not_found")


def test_a_profile_of_another_model_is_refused_with_the_reason(server: Running) -> None:
    error = server.refusal(steering=[{"profile": "foreign"}])
    assert (error["status"], error["code"], error["param"]) == (
        400,
        "profile_incompatible",
        "steering[0].profile",
    )
    assert "other-model" in error["message"]


def test_strength_zero_is_proven_to_move_nothing(server: Running) -> None:
    assert steered(server, steering="cheerful*0")[0]["steered_tokens"] == 0


def test_choices_sum_their_steered_tokens_and_streams_tell_each(server: Running) -> None:
    one = steered(server, steering="cheerful")[0]["steered_tokens"]
    assert steered(server, steering="cheerful", n=3)[0]["steered_tokens"] == 3 * one
    chunks = server.chunks(steering="cheerful", n=3)
    proofs = [chunk for chunk in chunks if "steering" in chunk]
    assert [chunk["steering"][0]["steered_tokens"] for chunk in proofs] == [one] * 3
    assert all(chunk["choices"][0]["finish_reason"] for chunk in proofs)
    assert text_of(chunks, 2) == "cheerful*1: hello"


def test_the_cap_on_strength_is_a_setting(start: Any) -> None:
    server = start(max_strength=0.5)
    assert server.chat(steering="cheerful*0.5").status_code == 200
    assert "-0.5 to 0.5" in server.refusal(steering="cheerful")["message"]


@pytest.mark.parametrize(
    "name", ["X-Steering", "X-Steering-Profiles", "X-Steering-Layers", "x_steering_profile"]
)
def test_a_header_that_is_nearly_ours_is_refused_not_passed_over(server: Running, name: str) -> None:
    response = server.client.post(CHAT, json=HELLO, headers={name: "cheerful"})
    error = error_of(response)
    assert (error["status"], error["code"]) == (400, "invalid_steering")
    assert "X-Steering-" in error["message"]


@pytest.mark.parametrize(
    "steering",
    ["cheerful*3+cheerful*3", [{"profile": "cheerful", "strength": -2}] * 3, "cheerful@1*4+cheerful@1*0.1"],
)
def test_naming_a_profile_twice_does_not_lift_the_cap(server: Running, steering: Any) -> None:
    error = server.refusal(steering=steering)
    assert (error["status"], error["code"]) == (400, "invalid_steering")
    assert "add up" in error["message"]


def test_a_profile_may_have_the_cap_on_prompt_and_generated_apart(server: Running) -> None:
    terms = [{"profile": "cheerful", "strength": 4, "positions": kind} for kind in ("prompt", "generated")]
    assert len(server.answer(steering=terms)["steering"]) == 2


def test_a_strength_that_is_nothing_is_told_as_zero(server: Running) -> None:
    for strength in (-0.0, 1e-320):
        (proof,) = server.answer(steering={"profile": "cheerful", "strength": strength})["steering"]
        assert str(proof["strength"]) == "0.0"
        assert proof["steered_tokens"] == 0


def test_a_key_said_twice_is_refused_where_the_last_would_win(server: Running) -> None:
    body = json.dumps({**HELLO, "steering": "cheerful"})[:-1] + ', "steering": null}'
    response = server.client.post(CHAT, content=body, headers={"content-type": "application/json"})
    error = error_of(response)
    assert (error["status"], error["param"]) == (400, "steering")
    assert "twice" in error["message"]


@pytest.mark.parametrize("name", ["Steering-Profile", "X-My-Steering", "X-Steering-Profiles"])
def test_a_header_that_seems_to_steer_is_never_ignored(server: Running, name: str) -> None:
    response = server.client.post(CHAT, json=HELLO, headers={name: "cheerful"})
    assert "did you mean X-Steering-Profile?" in error_of(response)["message"]


def test_steering_in_the_address_is_never_ignored(server: Running) -> None:
    error = error_of(server.client.post(f"{CHAT}?steering=cheerful", json=HELLO))
    assert (error["status"], error["param"]) == (400, "steering")
