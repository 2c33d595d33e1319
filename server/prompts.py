"""Messages to token ids, through the model's chat template."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from server.wire import Message
from steering.errors import ContextLengthExceeded, InvalidRequest


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


def prompt_of(messages: Sequence[Message], tokenizer: Any) -> tuple[int, ...]:
    """Return the token ids of the messages, ready for the assistant's answer."""
    if not tokenizer.chat_template:
        raise InvalidRequest("this model has no chat template, so it cannot chat", "messages")
    text = rendered(messages, tokenizer)
    prompt = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not prompt:
        raise InvalidRequest("the chat template makes an empty prompt of these messages", "messages")
    return prompt


def rendered(messages: Sequence[Message], tokenizer: Any) -> str:
    conversation = [as_template_reads(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        reason = f"the model's chat template refuses these messages: {error}"
        raise InvalidRequest(reason[:500], "messages") from error


def as_template_reads(message: Message) -> dict[str, str]:
    """Return the message in the words of chat templates, which know no `developer`."""
    role = "system" if message.role == "developer" else message.role
    named = {"name": message.name} if message.name is not None else {}
    return {"role": role, "content": message.text, **named}
