"""Messages to token ids and images, through the model's chat template."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from server.nesting import MOST_CONTAINERS, MOST_DEPTH, crowded, deeper
from server.wire.messages import ImagePart, Message
from server.wire.structure import ToolCall
from steering.errors import ContextLengthExceeded, InvalidRequest
from steering.images import ImageLimits, InvalidImage, bytes_of, decoded
from steering.picturing import ANSWER, Conversation, Pictured, Prompt, Rendering, templated


class UnsupportedImages(InvalidRequest):
    code = "unsupported_parameter"


def longest_token(tokenizer: Any) -> int:
    """Return the most characters of text that one token can stand for."""
    return max(map(len, tokenizer.get_vocab()))


def refuse_hopeless(messages: Sequence[Message], most_characters: int) -> None:
    """Refuse messages that cannot fit whatever their tokens are, before the work of finding those."""
    characters = sum(len(message.text) for message in messages)
    if characters > most_characters:
        raise ContextLengthExceeded(
            f"there are {characters} characters in the messages, which cannot fit into this model's context; "
            "shorten the messages",
            "messages",
        )


def refuse_hopeless_text(text: str, most_characters: int) -> None:
    """Refuse what a template made of messages, calls and tools where it cannot fit, before its tokens."""
    if len(text) > most_characters:
        raise ContextLengthExceeded(
            f"the messages and tools make a prompt of {len(text)} characters, which is beyond this model's "
            "context; shorten them",
            "messages",
        )


def prompt_of(
    conversation: Conversation,
    tokenizer: Any,
    rendering: Rendering = ANSWER,
    most_characters: int = sys.maxsize,
) -> tuple[int, ...]:
    """Return the token ids of a conversation, ready for the assistant's answer unless told otherwise."""
    text = templated(conversation, tokenizer, rendering=rendering)
    refuse_hopeless_text(text, most_characters)
    prompt = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not prompt:
        raise InvalidRequest("the chat template makes an empty prompt of these messages", "messages")
    return prompt


def conversation_of(messages: Sequence[Message], sees: bool) -> list[dict[str, Any]]:
    """Return the messages in the words of chat templates; sees: as vision-language models' read them."""
    refuse_crowded(messages)
    return [as_template_reads(message, index, sees) for index, message in enumerate(messages)]


def refuse_crowded(messages: Sequence[Message]) -> None:
    """Refuse arguments of calls that are slow to read, before one of them is parsed."""
    written = {
        f"messages[{index}].tool_calls[{number}].function.arguments": call.function.arguments.encode()
        for index, message in enumerate(messages)
        for number, call in enumerate(message.tool_calls or ())
    }
    if crowded(*written.values()):
        raise InvalidRequest(
            f"the arguments up to here hold more than {MOST_CONTAINERS} arrays and objects, the most that "
            "this server reads; send fewer",
            list(written)[-1],
        )


def as_template_reads(message: Message, index: int, sees: bool) -> dict[str, Any]:
    """Return the message as templates read it: they know no `developer`, and read arguments as objects."""
    role = "system" if message.role == "developer" else message.role
    others = {"name": message.name, "tool_call_id": message.tool_call_id}
    place = f"messages[{index}].tool_calls"
    calls = [
        {"id": call.id, "type": "function", "function": called(call, f"{place}[{number}]")}
        for number, call in enumerate(message.tool_calls or [])
    ]
    return {
        "role": role,
        "content": parts_of(message) if sees else message.text,
        **{key: value for key, value in others.items() if value is not None},
        **({"tool_calls": calls} if calls else {}),
    }


def called(call: ToolCall, place: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict) or deeper(arguments, MOST_DEPTH):
        raise InvalidRequest(
            f"arguments are a JSON object, written as a string, of at most {MOST_DEPTH} levels",
            f"{place}.function.arguments",
        )
    return {"name": call.function.name, "arguments": arguments}


def parts_of(message: Message) -> list[dict[str, Any]]:
    return [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.parts
    ]


def placed_images(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Yield each image's place in the body and its URL."""
    for index, message in enumerate(messages):
        for number, part in enumerate(message.parts):
            if isinstance(part, ImagePart):
                yield f"messages[{index}].content[{number}].image_url.url", part.image_url.url


def refuse_images(places: Iterable[str]) -> None:
    for place in places:
        raise UnsupportedImages("this model takes no images", place.removesuffix(".url"))


def refuse_many(places: Sequence[str], limits: ImageLimits) -> None:
    if len(places) > limits.count:
        raise InvalidImage(
            f"there are {len(places)} images; this server reads {limits.count} at most in a request",
            places[limits.count],
        )


def pictured_prompt(
    conversation: Conversation,
    pictured: Pictured,
    limits: ImageLimits,
    images: Mapping[str, str | bytes],
    rendering: Rendering = ANSWER,
    most_characters: int = sys.maxsize,
) -> Prompt:
    """Return token ids and images; images: by their places, each as a data URL or as bytes."""
    pictures: list[Image.Image] = []
    room = limits.pixels
    for place, image in images.items():
        raw = bytes_of(image, place) if isinstance(image, str) else image
        picture = decoded(raw, room, place)
        room -= picture.width * picture.height
        pictures.append(picture)
    text = pictured.render(conversation, rendering)
    refuse_hopeless_text(text, most_characters)
    return pictured.prompt(text, pictures)
