"""Messages with images to a prompt, through a vision-language model's chat template and processor."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from PIL import Image
from transformers.utils import logging as transformers_logging

from steering.errors import InvalidRequest, ModelUnavailable, SteeringError, quotable
from steering.loading import LoadedModel
from steering.patience import OutOfPatience, patient
from steering.processor import chat_template_of
from steering.vision import ImageInputs, opened, token_spans

Conversation = Sequence[Mapping[str, Any]]
Prompt = tuple[tuple[int, ...], ImageInputs | None]
PROBE = "grain"
# Templates come with models: the sandbox of transformers bounds what they reach, this how long they take.
TEMPLATE_SECONDS = 10.0
FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OutOfPatience,
    RecursionError,
    TypeError,
    ValueError,
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What a chat template is told beside the messages.

    opens: the text ends where an answer begins; continues: it ends inside the last message, which the
    answer continues. tools: functions in OpenAI's shape; arguments: whatever else the template reads.
    """

    opens: bool = True
    continues: bool = False
    tools: list[dict[str, Any]] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


ANSWER = Rendering()
# Of what a processor returns these are not the images'.
WORDS = frozenset({"input_ids", "attention_mask"})


class Pictured:
    """Turns conversations with images into prompts, for one vision-language model.

    keeps: prompts keep their text and pictures beside what the model takes.
    """

    def __init__(self, processor: Any, image_token: int, keeps: bool = False) -> None:
        self._processor = processor
        self._keeps = keeps
        self.image_token = image_token
        self._template = chat_template_of(processor)
        self.placeholder = str(processor.image_token)
        self._placeholders = {self.placeholder, str(processor.tokenizer.convert_ids_to_tokens(image_token))}
        self.takes_parts = self._renders_parts()

    @property
    def template(self) -> str | None:
        return self._template

    def render(self, conversation: Conversation, rendering: Rendering = ANSWER) -> str:
        """Return the conversation's text; each content is a list of text and image parts, as templates read.

        Raises InvalidRequest where the template refuses, or a text holds what stands for an image.
        """
        self._refuse_placeholders(conversation)
        messages = conversation if self.takes_parts else [self._as_string(each) for each in conversation]
        return templated(messages, self._processor.tokenizer, self._template, rendering)

    def prompt(self, text: str, pictures: Sequence[Image.Image]) -> Prompt:
        """Return token ids, and the images' tensors, of a rendered conversation."""
        placed = text.count(self.placeholder)
        if placed != len(pictures):
            raise InvalidRequest(
                f"the model's chat template places {placed} of {len(pictures)} images", "messages"
            )
        if not pictures:
            return tuple(self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]), None
        try:
            made = self._processor(
                text=[text], images=list(pictures), return_tensors="pt", add_special_tokens=False
            )
        except MemoryError:
            raise
        except Exception as error:
            # Families refuse in their own ways, an image of one pixel or of a strip among others.
            reason = f"the model's processor refuses these images: {quotable(error)}"
            raise InvalidRequest(reason, "messages") from error
        ids = tuple(made["input_ids"][0].tolist())
        tensors = {name: tensor for name, tensor in made.items() if name not in WORDS}
        spans = token_spans(ids, self.image_token)
        if not self._keeps:
            return ids, ImageInputs(tensors, spans)
        return ids, ImageInputs(tensors, spans, text, tuple(pictures))

    def _refuse_placeholders(self, conversation: Conversation) -> None:
        for index, message in enumerate(conversation):
            for part in message["content"]:
                found = [each for each in self._placeholders if each in part.get("text", "")]
                if found:
                    raise InvalidRequest(
                        f"the text holds {found[0]!r}, which stands for an image in this model; "
                        "send images as image_url parts",
                        f"messages[{index}].content",
                    )

    def _as_string(self, message: Mapping[str, Any]) -> dict[str, Any]:
        parts = (part.get("text", self.placeholder) for part in message["content"])
        return {**message, "content": "\n".join(parts)}

    def _renders_parts(self) -> bool:
        """Return whether the template reads a list of parts, rather than printing it."""
        parts = [{"type": "image"}, {"type": "text", "text": PROBE}]
        try:
            text = self._processor.tokenizer.apply_chat_template(
                [{"role": "user", "content": parts}], chat_template=self._template, tokenize=False
            )
        except (TemplateError, TypeError, ValueError):
            return False
        return PROBE in text and self.placeholder in text and "'type'" not in text


def template_of(tokenizer: Any, pictured: Pictured | None) -> str:
    """Return the chat template that a model's messages go through, empty where it has none."""
    return str((pictured.template if pictured else None) or tokenizer.chat_template or "")


def templated(
    conversation: Conversation,
    tokenizer: Any,
    template: str | None = None,
    rendering: Rendering = ANSWER,
) -> str:
    """Return the conversation's text up to where the answer begins, or raise InvalidRequest.

    template: None: the tokenizer's own.
    """
    if not (template or tokenizer.chat_template):
        raise InvalidRequest("this model has no chat template, so it cannot chat", "messages")
    try:
        return applied(conversation, tokenizer, template, rendering)
    except TemplateError as error:
        reason = f"the model's chat template refuses these messages: {quotable(error)}"
        raise InvalidRequest(reason, "messages") from error
    except FAILURES as error:
        logger.warning("the chat template failed", exc_info=error)
        reason = f"the model's chat template fails on these messages ({type(error).__name__})"
        raise InvalidRequest(reason, "messages") from error


def applied(conversation: Conversation, tokenizer: Any, template: str | None, rendering: Rendering) -> str:
    """Return what the template makes of a conversation; raises TemplateError, or one of FAILURES."""
    with patient(TEMPLATE_SECONDS):
        return str(
            tokenizer.apply_chat_template(
                conversation,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=rendering.opens,
                continue_final_message=rendering.continues,
                tools=rendering.tools,
                **rendering.arguments,
            )
        )


@lru_cache(maxsize=4)
def pictured_of(loaded: LoadedModel) -> Pictured:
    """Return what makes prompts for a model that takes images; one for each model."""
    assert loaded.image_token is not None
    return Pictured(loaded.processor, loaded.image_token)


def grey_prompt(pictured: Pictured) -> tuple[tuple[int, ...], ImageInputs]:
    """Return a prompt with a grey picture, to see whether a model can be served with images."""
    parts = [{"type": "image"}, {"type": "text", "text": PROBE}]
    prompt, images = pictured.prompt(
        pictured.render([{"role": "user", "content": parts}]), [Image.new("RGB", (64, 48), "gray")]
    )
    assert images is not None
    return prompt, images


def try_images(loaded: LoadedModel) -> None:
    """Send an image through the processor and the vision tower; raises ModelUnavailable where one fails."""
    transformers_logging.set_verbosity_error()
    try:
        prompt, images = grey_prompt(pictured_of(loaded))
        with opened(loaded) as door:
            door.join(prompt, images)
    except Exception as error:
        reason = error.message if isinstance(error, SteeringError) else f"{type(error).__name__}: {error}"
        raise ModelUnavailable(
            f"{type(loaded.model).__name__} cannot be served with images: {' '.join(reason.split())[:300]}"
        ) from error
