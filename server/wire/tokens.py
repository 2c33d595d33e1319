"""The bodies of POST /tokenize and /detokenize."""

from typing import Annotated, Any

from pydantic import Field

from server.wire.base import Wire, only
from server.wire.limits import MOST_MESSAGES
from server.wire.messages import Message
from server.wire.structure import MOST_TOOLS, Tool

MOST_CHARACTERS = 1_000_000
Messages = Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]


class TokenizeRequest(Wire):
    """A text or a conversation to count; null is the same as absent.

    add_special_tokens: unless false, the prompt is read with the tokens that the tokenizer puts around text.
    add_generation_prompt: unless false, the messages are rendered up to where an answer begins.
    tools: what chat would tell the model of. return_token_strs: the tokens also as the vocabulary has them.
    """

    model: str | None = None
    prompt: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None

    # What vLLM reads and this server does not do.
    continue_final_message: Annotated[Any, only(None, False)] = None
    chat_template: Annotated[Any, only(None)] = None
    chat_template_kwargs: Annotated[Any, only(None, {})] = None


class DetokenizeRequest(Wire):
    model: str | None = None
    tokens: Annotated[list[int], Field(fail_fast=True)]
