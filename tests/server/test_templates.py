"""Chat templates: what one may reach, how long it may run, and what a request may tell it."""

import time
from typing import Any

import pytest

from server.engine.scripted import ScriptedEngine
from steering import picturing
from tests.server.running import Running, error_of

THINKING = "{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}{{ tone }}"
PLAIN = ScriptedEngine().card.tokenizer.chat_template


def engine_with(template: str) -> ScriptedEngine:
    engine = ScriptedEngine(lambda job: bytes(token for token in job.prompt if token < 256).decode())
    engine.card.tokenizer.chat_template = template
    return engine


def rendered(server: Running, **fields: Any) -> str:
    """Return the prompt, which the script answers with."""
    return str(server.answer(**fields)["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ messages[0]['content'].format.__globals__ }}",
        "{{ raise_exception.__globals__['os'].system('true') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ (messages | map(attribute='__class__') | list)[0].__mro__ }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}",
        "{% set _ = messages.append({'role': 'system', 'content': 'evil'}) %}",
        "{% set _ = messages[0].update({'content': 'evil'}) %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.getcwd() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace(__class__=1) }}",
    ],
)
def test_a_hostile_template_reaches_nothing(start: Any, template: str) -> None:
    server = start(engine_with(template))
    response = server.chat()
    if response.status_code == 200:  # what may not be read is undefined, and prints nothing
        said = response.json()["choices"][0]["message"]["content"]
        assert not any(word in said for word in ("<class", "module", "root:", "evil", "builtins"))
    else:
        error = error_of(response)
        assert (error["status"], error["param"]) == (400, "messages")
        assert not any(word in error["message"] for word in ("Traceback", "/etc", "0x", "site-packages"))
        assert len(error["message"]) < 300


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again(n) %}{{ again(n) }}{% endmacro %}{{ again(1) }}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ messages[7]['content'].strip() }}",
        "{{ raise_exception('no ' + messages[0]['role'] + '\n' + 'x' * 5000) }}",
    ],
)
def test_a_template_that_does_not_end_or_fails_is_a_400(
    start: Any, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    server = start(engine_with("{{ messages[0]['content'] }}"))
    server.engine.card.tokenizer.chat_template = template
    monkeypatch.setattr(picturing, "TEMPLATE_SECONDS", 0.5)
    begin = time.monotonic()
    error = server.refusal()
    assert time.monotonic() - begin < 3
    assert (error["status"], error["param"]) == (400, "messages")
    assert "chat template" in error["message"]
    assert len(error["message"]) < 300
    server.engine.card.tokenizer.chat_template = PLAIN
    assert server.chat().status_code == 200


def test_a_template_is_not_told_what_the_operator_did_not_allow(start: Any) -> None:
    server = start(engine_with(PLAIN + THINKING))
    error = server.refusal(chat_template_kwargs={"enable_thinking": True})
    assert (error["status"], error["code"], error["param"]) == (
        400,
        "unsupported_parameter",
        "chat_template_kwargs",
    )
    assert "--allow-template-kwargs" in error["message"]
    assert server.chat(chat_template_kwargs={}).status_code == 200
    assert server.chat(chat_template_kwargs=None).status_code == 200


def test_a_request_may_speak_to_the_template_where_that_is_allowed(start: Any) -> None:
    server = start(engine_with(PLAIN + THINKING), allow_template_kwargs=True)
    assert rendered(server).endswith("assistant\n")
    told = {"enable_thinking": True, "tone": "calm"}
    assert rendered(server, chat_template_kwargs=told).endswith("assistant\n<think>calm")
    assert rendered(server, chat_template_kwargs={"enable_thinking": False}).endswith("assistant\n")
    assert rendered(server, chat_template_kwargs={"tone": 3}).endswith("3")


@pytest.mark.parametrize(
    "name",
    [
        *("messages", "tools", "documents", "conversation", "chat_template", "tokenize", "truncation"),
        *("add_generation_prompt", "continue_final_message", "return_dict", "return_tensors", "padding"),
        *("max_length", "tokenizer_kwargs", "bos_token", "eos_token", "raise_exception", "strftime_now"),
        *("range", "namespace", "self", "unknown", "x" * 64),
    ],
)
def test_no_request_overrides_what_the_server_tells_the_template(start: Any, name: str) -> None:
    reads_all = (
        "{{ add_generation_prompt }}{{ bos_token }}{{ eos_token }}{{ tokenize }}{{ documents }}{{ tools }}"
    )
    server = start(engine_with(PLAIN + THINKING + reads_all), allow_template_kwargs=True)
    error = server.refusal(chat_template_kwargs={name: "x"})
    assert (error["status"], error["param"]) == (400, "chat_template_kwargs")
    assert f"takes no '{name}'" in error["message"]


def test_a_name_that_is_nearly_right_is_named(start: Any) -> None:
    server = start(engine_with(PLAIN + THINKING), allow_template_kwargs=True)
    error = server.refusal(chat_template_kwargs={"enable_thnking": True})
    assert "did you mean 'enable_thinking'?" in error["message"]
    error = server.refusal(chat_template_kwargs={"zzz": True})
    assert "it takes enable_thinking, tone" in error["message"]


@pytest.mark.parametrize(
    ("told", "param"),
    [
        ([], "chat_template_kwargs"),
        ("tone", "chat_template_kwargs"),
        ({"tone": []}, "chat_template_kwargs.tone"),
        ({"tone": {"a": 1}}, "chat_template_kwargs.tone"),
        ({"tone": "x" * 4001}, "chat_template_kwargs.tone"),
        ({"tone": 2**63}, "chat_template_kwargs.tone"),
        ({str(number): 1 for number in range(33)}, "chat_template_kwargs"),
    ],
)
def test_a_template_is_told_scalars_alone(start: Any, told: Any, param: str) -> None:
    server = start(engine_with(PLAIN + THINKING), allow_template_kwargs=True)
    error = server.refusal(chat_template_kwargs=told)
    assert (error["status"], error["param"]) == (400, param)


def test_no_request_brings_a_template_of_its_own(start: Any) -> None:
    server = start(allow_template_kwargs=True)
    error = server.refusal(chat_template="{{ messages }}")
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported_parameter", "chat_template")
    assert server.chat(chat_template=None).status_code == 200
