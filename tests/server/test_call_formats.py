"""How models write calls is learned from their chat templates, and read whatever the calls are."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from server.call_formats import CallFormat
from server.engine.byte_tokenizer import byte_tokenizer
from server.engine.scripted import ScriptedEngine
from server.engine.text import Detokenizer
from server.tool_calls import BARE, TAGGED, Called, Calls, reader_of
from server.tooling import ToolFormat, tool_format
from tests.server.running import Running

Written = list[tuple[str, dict[str, Any]]]

HEAD = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}"
)
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
EACH = "{% for call in message.tool_calls %}{% set call = call.function %}"
ARGUMENTS = "{% for key, value in call.arguments.items() %}"
PLAIN = "{{ value if value is string else value | tojson }}"

# What stands in a template where an answer has calls.
JSON_IN_TAGS = EACH + "<tool_call>\n{{ call | tojson }}\n</tool_call>\n{% endfor %}"
JSON_LIST = "[TOOL_CALLS][" + EACH + "{{ call | tojson }}{{ ', ' if not loop.last }}{% endfor %}]"
JSON_ALONE = (
    "{% if message.tool_calls | length > 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    + EACH
    + '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}{% endfor %}'
)
NAME_AND_JSON = (
    "<|calls_begin|>"
    + EACH
    + "<|call_begin|>{{ call.name }}<|call_sep|>{{ call.arguments | tojson }}<|call_end|>{% endfor %}"
    "<|calls_end|>"
)
# Takes no objects.
JSON_FROM_TEXT = EACH + "[TOOL_CALLS]{{ call.name }}[ARGS]{{ '' + call.arguments }}{% endfor %}"
XML = (
    EACH
    + "<tool_call>\n<function={{ call.name }}>\n"
    + ARGUMENTS
    + f"<parameter={{{{ key }}}}>\n{PLAIN}\n</parameter>\n{{% endfor %}}"
    "</function>\n</tool_call>\n{% endfor %}"
)
KEYS_AND_VALUES = (
    EACH
    + "\n<tool_call>{{ call.name }}\n"
    + ARGUMENTS
    + f"<arg_key>{{{{ key }}}}</arg_key>\n<arg_value>{PLAIN}</arg_value>\n{{% endfor %}}"
    "</tool_call>{% endfor %}"
)
OWN_QUOTES = (
    EACH
    + "<|tool_call>call:{{ call.name }}{{ '{' }}"
    + ARGUMENTS
    + """{{ key }}:{{ '<|"|>' + value + '<|"|>' if value is string else value | tojson }}"""
    "{{ ',' if not loop.last }}{% endfor %}}<tool_call|>{% endfor %}<|tool_response>"
)
PYTHON = (
    "<|tool_call_start|>["
    + EACH
    + "{{ call.name }}("
    + ARGUMENTS
    + "{{ key }}={{ value | tojson }}{{ ', ' if not loop.last }}{% endfor %})"
    "{{ ', ' if not loop.last }}{% endfor %}]<|tool_call_end|>"
)
TEMPLATES = {
    "JSON in tags": JSON_IN_TAGS,
    "JSON list": JSON_LIST,
    "JSON alone": JSON_ALONE,
    "name and JSON": NAME_AND_JSON,
    "JSON from text": JSON_FROM_TEXT,
    "XML": XML,
    "keys and values": KEYS_AND_VALUES,
    "own quotes": OWN_QUOTES,
    "python": PYTHON,
}
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "of": {"type": "object"}},
}
SCHEMAS = {"weather": WEATHER, "clock": {}}
CALLS: list[Written] = [
    [("weather", {"city": "Oslo", "days": 3})],
    [("weather", {"city": "12", "of": {"rain": [1, 2.5, None], "snow": True}})],
    [("weather", {"city": "San José, <b>{a}</b> [1]", "days": -1})],
    [("weather", {"city": "  two\n    lines "})],
    [("clock", {})],
    [("weather", {"city": "Oslo"}), ("clock", {}), ("weather", {"city": "Rome", "days": 1})],
]


def tokenizer_of(calls: str, special: tuple[str, ...] = ()) -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = f"{HEAD}{{% if message.tool_calls %}}{calls}{{% endif %}}{TAIL}"
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


@cache
def learned(name: str) -> tuple[Any, ToolFormat]:
    tokenizer = tokenizer_of(TEMPLATES[name])
    return tokenizer, tool_format(tokenizer, None)


def text_of(form: ToolFormat, tokenizer: Any, calls: Written) -> str:
    """Return an answer with the calls, as the template writes it."""
    made = [
        {
            "id": "call00000",
            "function": {"name": name, "arguments": json.dumps(said) if form.from_text else said},
        }
        for name, said in calls
    ]
    messages = [{"role": "assistant", "content": "", "tool_calls": made}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return str(text).removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")


def read(form: CallFormat, text: str, size: int = 1000) -> tuple[str, Written]:
    """Return the words and the calls that are read where the text comes in pieces of a size."""
    reader = reader_of(Calls(form, SCHEMAS))
    parts = [part for place in range(0, len(text), size) for part in reader.feed(text[place : place + size])]
    parts += reader.end()
    calls = [(str(each.name), json.loads(each.arguments)) for each in parts if isinstance(each, Called)]
    return "".join(part for part in parts if isinstance(part, str)), calls


@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: json.dumps(calls[0][1])[:24])
@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_read_as_the_template_writes_them(name: str, calls: Written) -> None:
    tokenizer, form = learned(name)
    if name == "JSON alone" and len(calls) > 1:
        text = json.dumps([{"name": name, "parameters": said} for name, said in calls])
    else:
        text = text_of(form, tokenizer, calls)
    words, found = read(form.calls, text)
    assert found == calls
    assert words.strip() in ("", "<|tool_response>")
    assert read(form.calls, text, size=1)[1] == found


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "JSON alone"])
def test_words_around_calls_and_broken_calls_stay_words(name: str) -> None:
    tokenizer, form = learned(name)
    text = text_of(form, tokenizer, CALLS[0])
    assert read(form.calls, f"Let me look. {text}") == read(form.calls, f"Let me look. {text}", size=1)
    words, calls = read(form.calls, f"Let me look. {text}")
    assert words.removesuffix("<|tool_response>").strip() == "Let me look."
    assert calls == CALLS[0]
    unknown = text.strip().replace("weather", "whether")
    assert read(form.calls, unknown) == (unknown, [])
    broken = f"{form.calls.begin}never mind{form.calls.end}"
    assert read(form.calls, broken) == (broken, [])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_model_that_writes_json_where_its_template_does_not_is_understood(name: str) -> None:
    _, form = learned(name)
    text = form.calls.begin + json.dumps({"name": "weather", "arguments": {"city": "Oslo"}}) + form.calls.end
    assert read(form.calls, text) == ("", [("weather", {"city": "Oslo"})])


@pytest.mark.parametrize("name", ["JSON in tags", "name and JSON", "python", "own quotes"])
def test_arguments_that_json_has_no_word_for_make_no_call(name: str) -> None:
    tokenizer, form = learned(name)
    text = text_of(form, tokenizer, [("weather", {"city": "Oslo", "days": 4711})]).replace("4711", "NaN")
    assert read(form.calls, text) == (text, [])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("to={{ message.tool_calls[0].function.name }}", BARE),
        ("{# <tool_call> #}{{ message.nothing.there }}", TAGGED),
        ("{{ raise_exception('no calls here') }}", BARE),
    ],
)
def test_a_template_that_is_not_understood_is_read_as_json(template: str, expected: CallFormat) -> None:
    assert tool_format(tokenizer_of(template), None) == ToolFormat(True, expected)


def test_special_tokens_that_mark_calls_have_a_text_in_answers_with_tools(
    start: Callable[..., Running],
) -> None:
    marks = ("<|tool_call>", "<tool_call|>", '<|"|>', "<|other|>")
    tokenizer = tokenizer_of(OWN_QUOTES, marks)
    form = tool_format(tokenizer, None)
    assert set(form.spelled.values()) == set(marks[:3])
    text = text_of(form, tokenizer, CALLS[0]).removesuffix("<|tool_response>")
    tokens = [*tokenizer(f"Só: {text}")["input_ids"], tokenizer.convert_tokens_to_ids("<|other|>")]

    def told(detokenizer: Detokenizer) -> str:
        return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()

    assert told(Detokenizer(tokenizer, spelled=form.spelled)) == f"Só: {text}"
    assert told(Detokenizer(tokenizer)) == "Só: call:weather{city:Oslo,days:3}"

    engine = ScriptedEngine(lambda _job: text)
    engine.card.tokenizer.chat_template = tokenizer.chat_template
    engine.card.tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    running = start(engine)
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    message = running.answer(tools=[tool])["choices"][0]["message"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == CALLS[0][0][1]
    assert set(engine.jobs[-1].spelled.values()) == set(marks[:3])
    running.answer(tools=[tool], tool_choice="none")
    assert not engine.jobs[-1].spelled


def test_a_template_that_takes_arguments_as_text_gets_them_so(start: Callable[..., Running]) -> None:
    engine = ScriptedEngine(lambda _job: "It rains.")
    engine.card.tokenizer.chat_template = tokenizer_of(JSON_FROM_TEXT).chat_template
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    start(engine).answer(
        messages=[
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "a", "content": "rain"},
        ]
    )
    prompt = bytes(token for token in engine.jobs[-1].prompt if token < 256).decode()
    assert '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}' in prompt
