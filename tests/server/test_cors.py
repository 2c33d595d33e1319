"""Pages of other origins: shut out unless the operator named their origin, and then told everything."""

from typing import Any

import pytest

from server.config import BadSettings, load_settings
from tests.server.running import CHAT, HELLO, Running

PAGE = "https://chat.example"
PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


def test_by_default_no_other_origin_is_let_in(server: Running) -> None:
    answers = [
        server.client.request("OPTIONS", CHAT, headers=PREFLIGHT),
        server.client.post(CHAT, json=HELLO, headers={"origin": PAGE}),
    ]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_named_origin_may_ask_with_its_key(start: Any) -> None:
    server = start(cors_origin=(PAGE, "http://localhost:3000"), api_key=("key",))
    allowed = server.client.request("OPTIONS", CHAT, headers=PREFLIGHT)
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == PAGE
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
    carried = {"origin": PAGE, "authorization": "Bearer key"}
    answer = server.client.post(CHAT, json=HELLO, headers=carried)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "x-request-id" in answer.headers["access-control-expose-headers"].lower()


@pytest.mark.parametrize("fields", [{}, {"temperature": 9}, {"model": "gpt-4"}])
def test_a_page_can_read_why_it_was_refused(start: Any, fields: Any) -> None:
    server = start(cors_origin=PAGE, api_key=("key",))
    for headers in ({"origin": PAGE}, {"origin": PAGE, "authorization": "Bearer key"}):
        answer = server.client.post(CHAT, json={**HELLO, **fields}, headers=headers)
        assert answer.headers["access-control-allow-origin"] == PAGE


def test_an_origin_that_was_not_named_is_not_let_in(start: Any) -> None:
    server = start(cors_origin=(PAGE,))
    for origin in ("https://evil.example", f"{PAGE}.evil.example", "http://chat.example", "null"):
        refused = server.client.request("OPTIONS", CHAT, headers={**PREFLIGHT, "origin": origin})
        assert "access-control-allow-origin" not in refused.headers
        assert refused.status_code == 400
        answer = server.client.post(CHAT, json=HELLO, headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers


def test_any_origin_may_be_named(start: Any) -> None:
    server = start(cors_origin="*")
    answer = server.client.post(CHAT, json=HELLO, headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("origin", ["chat.example", "https://chat.example/", "https://*.example", ""])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(BadSettings, match="cors_origin"):
        load_settings({"cors_origin": [origin]})
