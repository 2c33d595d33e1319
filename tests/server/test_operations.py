"""Running the server: health, metrics, keys, limits, request ids, and errors of the frame."""

import json
import logging
import socket
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from server.engine.scripted import ScriptedEngine
from steering.errors import ProfileCorrupt
from tests.server.running import CHAT, HELLO, Running, error_of, until
from vector_store.memory import MemoryStore


def test_health_and_readiness_follow_the_engine(start: Any) -> None:
    server = start()
    assert server.client.get("/health").json() == {
        "status": "ready",
        "reason": None,
        "running": 0,
        "waiting": 0,
    }
    assert server.client.get("/ready").status_code == 200
    server.engine.die("out of memory")
    for path in ("/health", "/ready"):
        response = server.client.get(path)
        assert response.status_code == 503
        assert response.json()["reason"] == "out of memory"


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_health_checks_may_ask_for_the_head_alone(start: Any, path: str) -> None:
    server = start()
    response = server.client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    server.engine.die("out of memory")
    assert server.client.head(path).status_code == 503


@pytest.mark.parametrize("path", ["/v1/models%0a", "/health%0A", "/metrics%0a"])
def test_a_path_that_only_ends_in_a_line_break_is_another_path(server: Running, path: str) -> None:
    assert server.client.get(path).status_code == 404


def test_an_engine_that_drains_is_healthy_and_not_ready(start: Any) -> None:
    server = start()
    server.engine._state = "draining"
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/ready").status_code == 503


def metric(server: Running, name: str) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


def test_metrics_count_requests_tokens_and_steering(start: Any) -> None:
    server = start()
    proof = server.answer(steering="cheerful", max_tokens=4)["steering"]
    server.chunks(n=2)
    server.refusal(temperature=9)
    assert metric(server, f'grainserve_requests_total{{route="{CHAT}",status="200"}}') == 2
    assert metric(server, f'grainserve_requests_total{{route="{CHAT}",status="400"}}') == 1
    assert metric(server, "grainserve_generated_tokens_total") == 4 + 6 + 6
    assert metric(server, 'grainserve_steered_tokens_total{profile="cheerful"}') == proof[0]["steered_tokens"]
    assert metric(server, "grainserve_prompt_tokens_total") == 48
    assert metric(server, "grainserve_time_to_first_token_seconds_count") == 3
    assert metric(server, "grainserve_inter_token_seconds_count") == 16 - 3
    assert metric(server, f'grainserve_request_seconds_count{{route="{CHAT}"}}') == 3


def test_metrics_show_what_is_running(start: Any) -> None:
    server = start(ScriptedEngine(delay=0.05))
    with server.client.stream("POST", CHAT, json={**HELLO, "stream": True, "n": 2}) as response:
        lines = response.iter_lines()
        next(lines)
        assert metric(server, "grainserve_requests_running") == 2
    until(lambda: metric(server, "grainserve_requests_running") == 0)


def test_unknown_paths_share_one_label(start: Any) -> None:
    server = start()
    for number in range(5):
        server.client.get(f"/scan/{number}")
    assert metric(server, 'grainserve_requests_total{route="unmatched",status="404"}') == 5


def test_apps_have_their_own_metrics(start: Any) -> None:
    one, other = start(), start()
    one.answer()
    assert metric(other, "grainserve_generated_tokens_total") == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/chat/completions/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
    ],
)
def test_wrong_paths_and_methods_get_the_error_object(
    server: Running, method: str, path: str, status: int
) -> None:
    response = server.client.request(method, path)
    assert error_of(response)["status"] == status
    assert ("allow" in response.headers) == (status == 405)


PROTECTED = [
    "/v1/models",
    "/v1/steering/profiles",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/nowhere",
    "/health/",
]


def test_a_key_opens_every_route_and_health_needs_none(start: Any) -> None:
    server = start(api_key=("first", "sécond"))
    for path in ("/health", "/ready"):
        assert server.client.get(path).status_code == 200
    for path in PROTECTED:
        response = server.client.get(path)
        assert error_of(response) == {
            "message": "no valid API key; send it as 'Authorization: Bearer <key>'",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
            "status": 401,
        }
        assert response.headers["www-authenticate"] == "Bearer"
    assert server.chat().status_code == 401
    for key in (b"first", "sécond".encode()):
        for scheme in (b"Bearer ", b"bearer "):
            assert server.client.get("/v1/models", headers={"Authorization": scheme + key}).status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer firs", "Bearer first2", "Basic first", "first"])
def test_a_wrong_key_opens_nothing(start: Any, header: str) -> None:
    server = start(api_key=("first",))
    assert server.client.get("/v1/models", headers={"Authorization": header}).status_code == 401


def test_a_body_beyond_the_limit_is_refused(start: Any) -> None:
    server = start(max_body_bytes=1000)
    body = json.dumps({**HELLO, "user": "x" * 2000}).encode()
    whole = server.client.post(CHAT, content=body)
    pieces = server.client.post(CHAT, content=(body[at : at + 100] for at in range(0, len(body), 100)))
    for response in (whole, pieces):
        error = error_of(response)
        assert (error["status"], error["code"]) == (413, "request_too_large")
        assert "1000 bytes" in error["message"]
    assert server.chat(user="x" * 500).status_code == 200


def test_a_request_id_is_echoed_or_made(server: Running) -> None:
    assert (
        server.client.get("/health", headers={"x-request-id": "abc-1.2:3_4"}).headers["x-request-id"]
        == "abc-1.2:3_4"
    )
    made = [server.client.get(path).headers["x-request-id"] for path in ("/health", "/nowhere")]
    assert all(made)
    assert made[0] != made[1]


def test_every_answer_carries_the_request_id(start: Any) -> None:
    server = start(ScriptedEngine(fail_on="z"), api_key=("key",), max_body_bytes=500, request_timeout=0.5)
    key = {"authorization": "Bearer key", "x-request-id": "mine"}
    slow = {**HELLO, "messages": [{"role": "user", "content": "zzz"}]}

    def post(body: Any, **headers: str) -> httpx.Response:
        return server.client.post(CHAT, json=body, headers={**key, **headers})

    answers = [post(HELLO), post({**HELLO, "stream": True}), post({}), post({**HELLO, "model": "x"})]
    answers += [post(HELLO, authorization="none"), post({"x": "y" * 1000}), post(slow)]
    answers += [post(HELLO, **{"content-type": "text/plain"}), server.client.get("/nowhere", headers=key)]
    server.engine._delay = 60
    answers.append(post(HELLO))
    server.engine.capacity = 0
    answers.append(post(HELLO))
    server.app.state.service.intake.closed = True
    answers.append(post(HELLO))
    statuses = [answer.status_code for answer in answers]
    assert statuses == [200, 200, 400, 404, 401, 413, 500, 415, 404, 504, 503, 503]
    assert [answer.headers["x-request-id"] for answer in answers] == ["mine"] * len(answers)


@pytest.mark.parametrize("own", ["my id", "a<b>", "é", "x" * 129, ""])
def test_a_request_id_that_cannot_be_kept_is_replaced_whole(server: Running, own: str) -> None:
    answers = [server.client.get("/health", headers={"x-request-id": own.encode()}) for _ in range(2)]
    first, second = (answer.headers["x-request-id"] for answer in answers)
    assert len(first) == len(second) == 32
    assert first != second


def test_a_request_id_may_be_so_long(server: Running) -> None:
    own = "x" * 128
    assert server.client.get("/health", headers={"x-request-id": own}).headers["x-request-id"] == own


def test_a_client_that_leaves_while_it_sends_is_no_error(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = start()
    address = server.client.base_url
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{{".encode())
    until(lambda: metric(server, f'grainserve_requests_total{{route="{CHAT}",status="499"}}') == 1)
    assert not caplog.records


def test_a_client_that_leaves_its_stream_is_counted_as_one(
    start: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(ScriptedEngine(lambda _job: "a" * 1000, delay=0.01))
    with server.client.stream("POST", CHAT, json={**HELLO, "stream": True}) as response:
        next(response.iter_lines())
    until(lambda: metric(server, f'grainserve_requests_total{{route="{CHAT}",status="499"}}') == 1)
    until(lambda: metric(server, "grainserve_requests_running") == 0)
    assert not caplog.records
    server.chunks(max_tokens=2)
    until(lambda: metric(server, f'grainserve_requests_total{{route="{CHAT}",status="200"}}') == 1)
    assert metric(server, f'grainserve_requests_total{{route="{CHAT}",status="499"}}') == 1


class BrokenStore:
    """A store whose disk is gone."""

    def entries(self) -> Any:
        raise OSError("/secret/path is gone")


def test_a_bug_is_a_500_that_leaks_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    from tests.server.running import running

    store: Any = BrokenStore()
    with caplog.at_level(logging.ERROR), running(store) as server:
        response = server.client.get("/v1/models", headers={"x-request-id": "mine"})
    error = error_of(response)
    assert (error["status"], error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in response.text
    assert response.headers["x-request-id"] == "mine"
    assert "request mine failed" in caplog.text


def test_the_schema_is_served_and_names_the_steering(server: Running) -> None:
    schema = server.client.get("/openapi.json").json()
    body = schema["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "steering"} <= set(body["properties"])
    for reference in references(body):
        target: Any = schema
        for part in reference.removeprefix("#/").split("/"):
            target = target[part.replace("~1", "/")]


def references(schema: Any) -> list[str]:
    if isinstance(schema, list):
        return [found for item in schema for found in references(item)]
    if not isinstance(schema, dict):
        return []
    own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
    return own + [found for item in schema.values() for found in references(item)]


def test_the_engine_is_started_and_closed_with_the_app(store: Any) -> None:
    from tests.server.running import running

    engine = ScriptedEngine()
    assert engine.health().state == "starting"
    with running(store, engine) as server:
        assert engine.health().state == "ready"
        assert httpx.get(f"{server.url}/ready").status_code == 200
    assert engine.health().state == "draining"


def test_what_is_refused_before_it_is_routed_counts_for_its_route(start: Any) -> None:
    server = start(api_key="secret")
    server.client.post(CHAT, json=HELLO)
    server.client.get("/v1/models/scripted")
    server.client.get("/nothing/here")
    key = {"authorization": "Bearer secret"}
    told = server.client.get("/metrics", headers=key).text
    assert f'grainserve_requests_total{{route="{CHAT}",status="401"}} 1.0' in told
    assert 'grainserve_requests_total{route="/v1/models/{model_id:path}",status="401"} 1.0' in told
    assert 'grainserve_requests_total{route="unmatched",status="401"} 1.0' in told


def test_metrics_have_what_the_engine_counts(start: Any) -> None:
    counted = CollectorRegistry()
    engine = ScriptedEngine()
    engine.registry = counted
    server = start(engine)
    Gauge("engine:kv_cache_usage", "Of the whole.", registry=counted).set(0.25)
    assert metric(server, "engine:kv_cache_usage") == 0.25


def test_a_server_told_to_stop_says_so_when_asked_whether_it_is_ready(start: Any) -> None:
    server = start()
    server.app.state.service.intake.closed = True
    assert server.client.get("/ready").json() == {
        "status": "draining", "reason": "the server was told to stop", "running": 0, "waiting": 0
    }  # fmt: skip


def test_why_a_profile_cannot_be_read_is_logged(start: Any, monkeypatch: Any, caplog: Any) -> None:
    def damaged(*_asked: Any) -> None:
        raise ProfileCorrupt("profile 'torn@1' is corrupt: vectors.safetensors is cut short")

    monkeypatch.setattr(MemoryStore, "get", damaged)
    assert start().refusal(steering="torn")["status"] == 500
    assert "vectors.safetensors is cut short" in caplog.text


def test_a_sweep_that_no_batch_holds_is_refused_for_good(start: Any) -> None:
    server = start(max_batch_size=2, max_waiting=1)
    error = server.refusal(steering={"profile": "cheerful", "strength": [0, 0.1, 0.2, 0.3]})
    assert (error["status"], error["param"]) == (400, "steering.strength")
    assert "runs 3 at most at once" in error["message"]
    assert len(server.answer(steering={"profile": "cheerful", "strength": [0, 0.1, 0.2]})["choices"]) == 3
