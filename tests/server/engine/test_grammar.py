"""Answers kept to a JSON schema by the real engine: valid whatever the sampling, beside free neighbours."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from platformdirs import user_cache_path

from server.engine.byte_tokenizer import byte_tokenizer
from server.engine.grammar import Grammars, UnsupportedSchema
from server.engine.protocol import GenerationJob, SamplingParams, TokenEvent
from steering.loading import LoadedModel, load_model
from tests.server.engine.reference import greedy_job, naive_tokens
from tests.server.engine.test_batcher import bench, completion, prompt_of

Loader = Callable[[str], LoadedModel]

PERSON = {
    "type": "object",
    "properties": {
        "sex": {"enum": ["f", "m"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"const": "a"}, "maxItems": 2},
    },
    "required": ["sex", "age", "tags"],
    "additionalProperties": False,
}
# Where a tool's schema stands when a call of several tools is asked for.
REFERRING = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"n": {"$ref": "#/anyOf/0/$defs/one"}},
            "required": ["n"],
            "additionalProperties": False,
            "$defs": {"one": {"const": 1}},
        }
    ]
}


def grammars_of(loaded: LoadedModel) -> Grammars:
    return Grammars(loaded.tokenizer, loaded.vocabulary_size, (loaded.tokenizer.eos_token_id,))


def text_of(events: list[Any]) -> str:
    assert all(isinstance(event, TokenEvent) for event in events)
    return "".join(event.text for event in events)


def constrained(name: str, grammar: Any, **sampling: Any) -> GenerationJob:
    params = SamplingParams(max_tokens=200, grammar=grammar, **sampling)
    return GenerationJob(name, tuple(prompt_of(9)), params)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "logit_bias": {7: 100.0}},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 2.0, "seed": 2, "top_k": 3},
        {"temperature": 1.5, "seed": 3, "top_p": 0.3, "presence_penalty": 2.0},
    ],
)
def test_every_answer_satisfies_its_schema_and_ends_with_it(tiny_model: Loader, sampling: Any) -> None:
    loaded = tiny_model("llama")
    with bench(loaded) as batch:
        request = batch.add(constrained("job", grammars_of(loaded).of_schema(PERSON, "x"), **sampling))
        batch.run()
    person = json.loads(text_of(batch.results[request]))
    assert set(person) == {"sex", "age", "tags"}
    assert person["sex"] in ("f", "m")
    assert 0 <= person["age"] <= 99
    assert batch.results[request][-1].finish == "stop"  # type: ignore[union-attr]


def test_a_constrained_neighbour_changes_nobodys_tokens(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    free = greedy_job("free", prompt_of(12), 30)
    grammar = grammars_of(loaded).of_schema(PERSON, "x")
    with bench(loaded) as batch:
        requests = [batch.add(constrained(f"{n}", grammar, temperature=0.0)) for n in range(2)]
        beside = batch.add(free)
        batch.run()
    assert completion(beside) == naive_tokens(loaded, free)
    first, second = (text_of(batch.results[request]) for request in requests)
    assert first == second


def test_a_reference_into_a_part_of_the_schema_is_followed(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    with bench(loaded) as batch:
        grammar = grammars_of(loaded).of_schema(REFERRING, "x")
        request = batch.add(constrained("job", grammar, temperature=0.0))
        batch.run()
    assert json.loads(text_of(batch.results[request])) == {"n": 1}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a": [1, 2], "b":{}}', '{"a": [1, 2], "b":{}}'),
        ('{\n "a": 1}', "{"),
        ('{"a": 1\n}', '{"a": 1'),
        ('{"a":  1}', '{"a": '),
    ],
)
def test_what_is_written_stays_on_one_line(text: str, written: str) -> None:
    tokenizer = byte_tokenizer()
    matcher = Grammars(tokenizer, 258, (257,)).of_schema({"type": "object"}, "x").matcher()
    taken = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if not matcher.allowed()[token]:
            break
        matcher.take(token)
        taken.append(token)
    assert tokenizer.decode(taken) == written


def test_a_schema_is_compiled_once(tiny_model: Loader) -> None:
    grammars = grammars_of(tiny_model("llama"))
    first, second = grammars.of_schema(PERSON, "x"), grammars.of_schema(dict(PERSON), "y")
    assert first.compiled is second.compiled


def test_one_of_is_followed(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    with bench(loaded) as batch:
        grammar = grammars_of(loaded).of_schema({"oneOf": [{"const": "a"}, {"const": "b"}]}, "x")
        request = batch.add(constrained("job", grammar, temperature=0.0))
        batch.run()
    assert json.loads(text_of(batch.results[request])) in ("a", "b")


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "wrong"}, "wrong"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "http://example.org/schema"}, "example.org"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"enum": ["x" * 200_000]}, "too large"),
        ({"enum": ["a", 9007199254740993]}, "2\\^53"),
        ({"type": "string", "pattern": "a{5,2}"}, "repetition"),
        ({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(3000)}}, "items"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(tiny_model: Loader, schema: Any, word: str) -> None:
    with pytest.raises(UnsupportedSchema, match=word) as refused:
        grammars_of(tiny_model("llama")).of_schema(schema, "response_format")
    assert refused.value.param == "response_format"
    assert len(refused.value.message) < 400


def test_a_schema_of_too_many_levels_is_refused(tiny_model: Loader) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UnsupportedSchema, match="levels"):
        grammars_of(tiny_model("llama")).of_schema(schema, "x")


def test_an_answer_that_is_cut_off_ends_with_its_length(tiny_model: Loader) -> None:
    loaded = tiny_model("llama")
    job = constrained("job", grammars_of(loaded).of_schema(PERSON, "x"), temperature=0.0)
    short = replace(job, sampling=replace(job.sampling, max_tokens=3))
    with bench(loaded) as batch:
        request = batch.add(short)
        batch.run()
    assert batch.results[request][-1].finish == "length"  # type: ignore[union-attr]


SPELLING = [
    {"const": "<|end|>"},
    {"const": "a<|user|>b <|end|>"},
    {"const": "\U0010fffd2\U0010fffd<|end|>"},
    {"type": "string", "pattern": r"^<\|end\|>$"},
    {
        "type": "object",
        "properties": {"<|end|>": {"enum": ["<|assistant|>", "x"]}},
        "required": ["<|end|>"],
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("schema", SPELLING)
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_what_spells_a_special_token_is_text(
    tiny_model: Loader, schema: dict[str, Any], temperature: float
) -> None:
    loaded = tiny_model("llama")
    grammar = grammars_of(loaded).of_schema(schema, "x")
    with bench(loaded) as batch:
        request = batch.add(constrained("job", grammar, temperature=temperature, seed=1))
        batch.run()
        events = batch.results[request]
    assert events[-1].finish == "stop"  # type: ignore[union-attr]
    assert "<|end|>" in json.dumps(json.loads(text_of(events)))


def test_an_end_token_is_no_text_although_its_tokenizer_calls_it_plain() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|stop|>"])
    (end,) = tokenizer("<|stop|>")["input_ids"]
    following = Grammars(tokenizer, end + 1, (end,)).of_schema({"const": "<|stop|>"}, "x").matcher()
    written = []
    while not following.complete:
        allowed = following.allowed()
        assert not allowed[end]
        written.append(int(allowed.nonzero()[0]))
        following.take(written[-1])
    assert bytes(written) == b'"<|stop|>"'
    assert following.allowed().nonzero().flatten().tolist() == [end]


def test_an_answer_that_leaves_its_schema_is_told_so(tiny_model: Loader) -> None:
    matcher = grammars_of(tiny_model("llama")).of_schema({"const": "a"}, "x").matcher()
    with pytest.raises(UnsupportedSchema, match="cannot be kept to the JSON schema") as refused:
        matcher.take(3)
    assert len(refused.value.message) < 400


@pytest.mark.slow
@pytest.mark.parametrize("special", ["<|im_end|>", "<|im_start|>user", "x<|endoftext|>y", "<filename>"])
def test_what_spells_a_special_token_of_smollm2_is_text(special: str) -> None:
    cache_dir = os.environ.get("GRAINSERVE_CACHE_DIR")
    loaded = load_model(None, Path(cache_dir) if cache_dir else user_cache_path("grainserve"), device="cpu")
    value = {"type": "object", "properties": {special: {"const": special}}, "required": [special]}
    grammar = grammars_of(loaded).of_schema({**value, "additionalProperties": False}, "x")
    with bench(loaded) as batch:
        request = batch.add(constrained("job", grammar, temperature=0.0))
        batch.run()
    assert json.loads(text_of(batch.results[request])) == {special: special}
    assert batch.results[request][-1].finish == "stop"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 1e19}, "up to 2\\^53"),
        ({"anyOf": [{"type": "number", "exclusiveMaximum": -1e300}]}, "up to 2\\^53"),
        ({"type": "integer", "multipleOf": -3}, "above zero"),
        ({"type": "integer", "maximum": int("9" * 4000)}, "up to 2\\^53"),
        ({"type": "object", "x-guidance": {"item_separator": ";"}}, "x-guidance"),
        ({"items": {"x-guidance": {"lenient": True}}, "type": "array"}, "x-guidance"),
        ({"$ref": "#"}, "leads back to itself"),
    ],
)
def test_schemas_that_would_not_be_kept_to_are_refused(
    tiny_model: Loader, schema: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedSchema, match=said) as refusal:
        grammars_of(tiny_model("llama")).of_schema(schema, "x")
    assert len(refusal.value.message) < 400
