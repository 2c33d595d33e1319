"""The processor of a vision-language model: messages and images to token ids and tensors."""

from typing import Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

NEEDS_EXTRA = "this model's processor needs a package that is not installed; pip install 'grainserve[vision]'"


def load_processor(source: str, config: Any) -> Any:
    """Return the checkpoint's processor; raises ImportError naming the extra, OSError, or ValueError.

    Without torchvision a family whose processor also takes videos gets one that takes images alone.
    """
    try:
        if is_torchvision_available():
            return AutoProcessor.from_pretrained(source)
        return images_only(PROCESSOR_MAPPING[type(config)]).from_pretrained(source)
    except ImportError as error:
        raise ImportError(f"{NEEDS_EXTRA} ({' '.join(str(error).split())[:200]})") from error


def images_only(family: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Return the family's processor class with None for its video processor, which is torchvision's."""
    parts = family.get_attributes()
    if "video_processor" not in parts:
        return family
    loaders = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}

    class ImagesOnly(family):
        @classmethod
        def _get_arguments_from_pretrained(cls, source: str, *_: Any, **__: Any) -> list[Any]:
            return [loaders[part].from_pretrained(source) if part in loaders else None for part in parts]

        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(name, argument)

    ImagesOnly.__name__ = family.__name__
    return ImagesOnly


def chat_template_of(processor: Any) -> str | None:
    """Return the processor's chat template, or its tokenizer's."""
    return getattr(processor, "chat_template", None) or processor.tokenizer.chat_template


def image_token_of(config: Any) -> int | None:
    """Return the id of the token that stands for a piece of an image."""
    token = getattr(config, "image_token_id", None)
    return getattr(config, "image_token_index", None) if token is None else token
