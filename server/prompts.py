"""Messages to token ids and images, through the model's chat template."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from server.wire.messages import ImagePart, Message
from steering.errors import ContextLengthExceeded, InvalidRequest
from steering.images import ImageLimits, InvalidImage, bytes_of, decoded
from steering.picturing import Pictured, Prompt, templated


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
            f"the messages are {characters} characters long, which cannot fit into this model's context; "
            "shorten the messages",
            "messages",
        )


def prompt_of(
    messages: Sequence[Message], tokenizer: Any, add_generation_prompt: bool = True
) -> tuple[int, ...]:
    """Return the token ids of the messages, ready for the assistant's answer unless told otherwise."""
    conversation = [as_template_reads(message) for message in messages]
    text = templated(conversation, tokenizer, add_generation_prompt=add_generation_prompt)
    prompt = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not prompt:
        raise InvalidRequest("the chat template makes an empty prompt of these messages", "messages")
    return prompt


def as_template_reads(message: Message) -> dict[str, Any]:
    """Return the message in the words of chat templates, which know no `developer`."""
    role = "system" if message.role == "developer" else message.role
    named = {"name": message.name} if message.name is not None else {}
    return {"role": role, "content": message.text, **named}


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
    messages: Sequence[Message], pictured: Pictured, limits: ImageLimits, images: Mapping[str, str | bytes]
) -> Prompt:
    """Return token ids and images; images: by their places, each as a data URL or as bytes."""
    pictures: list[Image.Image] = []
    room = limits.pixels
    for place, image in images.items():
        raw = bytes_of(image, place) if isinstance(image, str) else image
        picture = decoded(raw, room, place)
        room -= picture.width * picture.height
        pictures.append(picture)
    return pictured.prompt(pictured.render([with_parts(message) for message in messages]), pictures)


def with_parts(message: Message) -> dict[str, Any]:
    """Return the message as vision-language models' templates read it."""
    parts = [
        {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    return {**as_template_reads(message), "content": parts}
