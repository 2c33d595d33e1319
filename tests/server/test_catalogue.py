"""What the server says it has: models and steering profiles."""

from typing import Any

import pytest

from tests.server.profiles import publish
from tests.server.running import Running, error_of
from vector_store.memory import MemoryStore
from vector_store.store import ProfileEntry


def get(server: Running, path: str) -> Any:
    response = server.client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def test_models_are_the_model_and_its_fitting_profiles(server: Running) -> None:
    listed = get(server, "/v1/models")
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["scripted", "scripted:cheerful", "scripted:concise"]
    assert [model.get("parent") for model in listed["data"]] == [None, "scripted", "scripted"]
    for model in listed["data"]:
        assert model["object"] == "model"
        assert get(server, f"/v1/models/{model['id']}") == model


@pytest.mark.parametrize("steering", ["cheerful@1*0.5", "cheerful*-1+concise", "concise*2"])
def test_any_valid_steering_is_a_model(server: Running, steering: str) -> None:
    model = get(server, f"/v1/models/scripted:{steering}")
    assert (model["id"], model["parent"]) == (f"scripted:{steering}", "scripted")


@pytest.mark.parametrize(
    "name", ["other", "a/b/c", "scripted:", "scripted:a b", "scripted:nope", "scripted:foreign"]
)
def test_an_unknown_model_is_not_found(server: Running, name: str) -> None:
    assert error_of(server.client.get(f"/v1/models/{name}"))["status"] == 404


def test_a_models_name_may_hold_slashes(start: Any) -> None:
    server = start(served_model_name="org/model")
    assert get(server, "/v1/models/org/model")["id"] == "org/model"
    assert get(server, "/v1/models/org%2Fmodel:cheerful")["parent"] == "org/model"


def test_a_profile_that_does_not_fit_is_told_with_the_name_that_callers_know(start: Any) -> None:
    server = start(served_model_name="org/model")
    (foreign,) = [each for each in get(server, "/v1/steering/profiles")["data"] if each["name"] == "foreign"]
    told = [
        foreign["reason"],
        server.refusal(model="org/model", steering="foreign")["message"],
        error_of(server.client.get("/v1/models/org/model:foreign"))["message"],
    ]
    assert all("the model here is org/model (" in each for each in told)


def test_profiles_are_listed_with_whether_they_fit(server: Running) -> None:
    listed = get(server, "/v1/steering/profiles")
    assert listed["object"] == "list"
    cheerful, _, foreign = listed["data"]
    assert len(cheerful.pop("digest")) == 64
    assert cheerful == {
        "object": "steering.profile",
        "name": "cheerful",
        "version": 2,
        "compatible": True,
        "reason": None,
        "description": "makes answers cheerful",
        "layers": [1, 2, 3],
        "positions": "all",
        "tokens": "all",
        "method": "grains",
        "model": "scripted",
        "created": "",
    }
    assert foreign["compatible"] is False
    assert "other-model" in foreign["reason"]


def test_a_profile_is_shown_with_its_evidence_and_versions(server: Running) -> None:
    newest = get(server, "/v1/steering/profiles/cheerful")
    assert (newest["object"], newest["version"], newest["versions"]) == ("steering.profile", 2, [1, 2])
    assert newest["evidence"] == {"effect": 0.5}
    assert newest["calibration"] == {"dose": 2.0}
    assert newest["compatible"] is True
    older = get(server, "/v1/steering/profiles/cheerful@1")
    assert (older["version"], older["layers"]) == (1, [1, 2])


@pytest.mark.parametrize("name", ["cheerfull", "cheerful@9", "cheerful@x", "..", "A"])
def test_an_unknown_profile_is_not_found(server: Running, name: str) -> None:
    error = error_of(server.client.get(f"/v1/steering/profiles/{name}"))
    assert error["status"] == 404


def test_a_profile_published_while_the_server_runs_is_served(start: Any, store: MemoryStore) -> None:
    server = start()
    publish(store, "formal", (0,))
    assert "scripted:formal" in [model["id"] for model in get(server, "/v1/models")["data"]]
    assert server.answer(steering="formal")["steering"][0]["version"] == 1


class DamagedStore(MemoryStore):
    """A store with one profile that cannot be read."""

    def entries(self) -> list[ProfileEntry]:
        return [*super().entries(), ProfileEntry("torn", 3, None, "vectors.safetensors is cut short")]


def test_a_corrupt_profile_is_listed_with_its_problem_and_is_no_model() -> None:
    from tests.server.running import running

    with running(DamagedStore()) as server:
        [torn] = get(server, "/v1/steering/profiles")["data"]
        assert (torn["name"], torn["version"], torn["compatible"]) == ("torn", 3, False)
        assert torn["reason"] == "vectors.safetensors is cut short"
        assert len(get(server, "/v1/models")["data"]) == 1


def test_a_profile_for_image_tokens_does_not_steer_a_text_model(start: Any, store: MemoryStore) -> None:
    publish(store, "visual", (1,), tokens="image")
    error = start().refusal(steering={"profile": "visual"})
    assert (error["status"], error["param"]) == (400, "steering.tokens")
