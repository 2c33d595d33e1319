"""The fields that say how tokens are chosen and when to stop; chat and completions share them."""

from typing import Annotated

from pydantic import Field, Tag

from server.wire.base import LIST, SEEDS, TEXT, Wire, Written, one_of_kinds

StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopString, Tag(TEXT)] | Annotated[list[StopString], Field(max_length=4), Tag(LIST)],
    one_of_kinds("a string or a list of up to four strings"),
]
TokenText = Annotated[str, Written("(0|[1-9][0-9]{0,8})", "a token id, such as '257'")]


class SamplingFields(Wire):
    """What chat and completions say alike; null is the same as absent."""

    stop: Stop | None = None
    stop_token_ids: Annotated[list[int], Field(max_length=1024, fail_fast=True)] | None = None
    ignore_eos: bool | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=SEEDS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[TokenText, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
