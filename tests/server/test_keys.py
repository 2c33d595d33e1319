"""API keys: where they come from, what they open, and that nothing else opens anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.config import BadSettings, load_settings
from tests.server.profiles import small_store
from tests.server.running import CHAT, HELLO, Running, error_of, running

KEY = "sk-a-long-key-that-nobody-guesses"
BEARER = {"authorization": f"Bearer {KEY}"}
EVERYWHERE = [
    "/",
    CHAT,
    "/v1/models",
    "/v1/steering/profiles",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/redoc",
]

UNKNOWN = ["/nowhere", "/health/", "/ready/x", "//health", "/health%2f", "/HEALTH", "/v1/%2e%2e/health"]


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    with running(small_store(), api_key=(KEY, "other")) as server:
        yield server


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_keys_come_from_a_file_beside_those_from_elsewhere(start: Any, key_file: Path) -> None:
    key_file.write_text(f"\ufeff# of the team\n\n  first  \r\n   # sécond's\nsécond\n{KEY}")
    server = start(api_key="flag", api_key_file=key_file)
    for key in ("first", "sécond", KEY, "flag"):
        headers = {"authorization": f"Bearer {key}".encode()}
        assert server.client.get("/v1/models", headers=headers).status_code == 200, key
    for key in ("#", "# of the team", "# sécond's", "firs"):
        headers = {"authorization": f"Bearer {key}".encode()}
        assert server.client.get("/v1/models", headers=headers).status_code == 401, key


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot read the keys in"),
        (b"", "holds no key"),
        (b"# only\n \n", "holds no key"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"one\nhush hush # Ann\n", "line 2 holds more than a key"),
    ],
)
def test_a_key_file_without_usable_keys_stops_the_start(
    key_file: Path, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        key_file.write_bytes(content)
    with pytest.raises(BadSettings, match=complaint) as refused:
        load_settings({"api_key_file": key_file})
    assert str(key_file) in str(refused.value)
    assert "hush" not in str(refused.value)


def test_a_folder_is_no_key_file(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"api_key_file: .*cannot read"):
        load_settings({"api_key_file": tmp_path})


def test_settings_forget_what_keys_said(key_file: Path) -> None:
    key_file.write_text("kept-in-a-file")
    settings = load_settings({"api_key": ["kept-in-a-flag"], "api_key_file": key_file})
    assert len(settings.keys) == 2
    assert "kept-in" not in f"{settings!r} {settings.__dict__} {[key.digest for key in settings.keys]}"
    assert not any(repr(key.digest) in repr(settings) for key in settings.keys)


@pytest.mark.parametrize("path", [*EVERYWHERE, *UNKNOWN])
def test_every_route_but_two_asks_for_a_key(keyed: Running, path: str) -> None:
    for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE"):
        refused = keyed.client.request(method, path)
        assert refused.status_code == 401, method
        assert refused.headers["www-authenticate"] == "Bearer"
        assert keyed.client.request(method, path, headers=BEARER).status_code != 401


def test_health_and_readiness_are_open(keyed: Running) -> None:
    for path in ("/health", "/ready", "/%68ealth", "/health?x=/v1/models"):
        assert keyed.client.get(path).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "health"},
        {"host": "127.0.0.1/health"},
        {"x-forwarded-host": "localhost", "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "https"},
        {"x-forwarded-prefix": "/health", "x-forwarded-uri": "/health", "x-original-url": "/health"},
        {"x-rewrite-url": "/ready", "x-http-method-override": "GET", "forwarded": "for=127.0.0.1"},
    ],
)
def test_no_header_says_which_route_is_asked_for(keyed: Running, headers: dict[str, str]) -> None:
    assert keyed.client.get("/v1/models", headers=headers).status_code == 401
    assert keyed.client.get("/health", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"x-api-key": KEY},
        {"api-key": KEY},
        {"cookie": f"api_key={KEY}; Authorization=Bearer {KEY}"},
        {"proxy-authorization": f"Bearer {KEY}"},
        {"authorization": KEY},
        {"authorization": f"Token {KEY}"},
        {"authorization": f"Basic {KEY}"},
        {"authorization": f"Bearer{KEY}"},
        {"authorization": f"Bearer {KEY}, Bearer other"},
        {"authorization": f'Bearer "{KEY}"'},
        {"authorization": f"Bearer {KEY.upper()}"},
    ],
)
def test_a_key_counts_as_a_bearer_token_alone(keyed: Running, headers: dict[str, str]) -> None:
    assert keyed.client.get("/v1/models", headers=headers).status_code == 401
    assert keyed.client.get(f"/v1/models?api_key={KEY}&key={KEY}", headers=headers).status_code == 401


def test_two_authorizations_are_none(keyed: Running) -> None:
    both = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")]
    for headers in (both, both[::-1]):
        assert httpx.get(f"{keyed.url}/v1/models", headers=headers).status_code == 401


def test_what_has_no_key_is_not_read(keyed: Running) -> None:
    refused = keyed.client.post(CHAT, content=b"[" * 5_000_000)
    assert error_of(refused)["code"] == "invalid_api_key"
    assert not keyed.engine.jobs
    assert keyed.client.post(CHAT, json=HELLO, headers=BEARER).status_code == 200
