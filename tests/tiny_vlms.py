"""Tiny random vision-language models of real families, each with the processor that its family uses."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from steering.blocks import decoder_blocks
from steering.loading import LoadedModel, Parts, identify, load_model, weight_samples
from tests.tiny_models import tiny_tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACE{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PINPOINTS = [[16, 32], [32, 16], [32, 32]]
LLAVA_PROCESSOR = {
    "patch_size": 8,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}


@dataclass(frozen=True, slots=True)
class TinyFamily:
    """image: the token of an image's pieces. place: what a chat template writes where an image goes.

    named: the tokenizer's own names for special tokens. images: makes the image processor. settings: the
    processor's. configure: the model's configuration, from (text, vision, image token, size of vocabulary).
    """

    image: str
    others: tuple[str, ...]
    images: Callable[[], Any]
    configure: Callable[[dict[str, Any], int], PreTrainedConfig]
    processor: str
    settings: dict[str, Any] = field(default_factory=dict)
    named: dict[str, str] = field(default_factory=dict)
    place: str | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return special_tokenizer((self.image, *self.others), tuple(self.named.items()))


@cache
def special_tokenizer(tokens: tuple[str, ...], named: tuple[tuple[str, str], ...]) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer with a family's special tokens."""
    plain = copy.deepcopy(tiny_tokenizer())
    plain.add_special_tokens({"additional_special_tokens": list(tokens)})
    return PreTrainedTokenizerFast(
        tokenizer_object=plain._tokenizer,
        eos_token=plain.eos_token,
        additional_special_tokens=list(tokens),
        extra_special_tokens=dict(named),
    )


def text_config(vocabulary: int, **others: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tiny_tokenizer().eos_token_id,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        **others,
    }


def vision_config(**others: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        **others,
    }


def clip() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(**vision_config())


def siglip() -> transformers.SiglipVisionConfig:
    return transformers.SiglipVisionConfig(**vision_config())


def llama(text: dict[str, Any]) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(**text)


def llava(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.LlavaConfig(
        vision_config=clip(), text_config=llama(text), image_token_index=image, vision_feature_layer=-1
    )


def llava_next(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.LlavaNextConfig(
        vision_config=clip(),
        text_config=llama(text),
        image_token_index=image,
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
    )


def llava_onevision(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=transformers.Qwen2Config(**text),
        image_token_index=image,
        video_token_index=image + 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=PINPOINTS,
    )


def qwen_rope(sections: list[int]) -> dict[str, Any]:
    return {"rope_type": "default", "mrope_section": sections, "rope_theta": 10000.0}


def qwen2_5_vl(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": qwen_rope([2, 1, 1])},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=image + 1,
        vision_start_token_id=image + 2,
        vision_end_token_id=image + 3,
    )


def qwen3_vl(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.Qwen3VLConfig(
        text_config={**text, "head_dim": 8, "rope_parameters": qwen_rope([2, 1, 1])},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=image,
        video_token_id=image + 1,
        vision_start_token_id=image + 2,
        vision_end_token_id=image + 3,
    )


def gemma3(text: dict[str, Any], image: int) -> PreTrainedConfig:
    mixed = ["sliding_attention", "full_attention"] * 2
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(
            **{**text, "head_dim": 8, "sliding_window": 12, "layer_types": mixed}
        ),
        vision_config=transformers.SiglipVisionConfig(**vision_config(image_size=32)),
        mm_tokens_per_image=16,
        image_token_index=image,
        boi_token_index=image + 1,
        eoi_token_index=image + 2,
    )


def smolvlm(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.SmolVLMConfig(
        text_config=llama(text), vision_config=vision_config(), image_token_id=image, scale_factor=2
    )


def idefics3(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.Idefics3Config(
        text_config=llama(text), vision_config=vision_config(), image_token_id=image, scale_factor=2
    )


def internvl(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**text),
        vision_config=vision_config(image_size=[16, 16], patch_size=[4, 4]),
        image_token_id=image,
        image_seq_length=4,
        downsample_ratio=0.5,
    )


def mistral3(text: dict[str, Any], image: int) -> PreTrainedConfig:
    return transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**text, sliding_window=None),
        vision_config=transformers.PixtralVisionConfig(**vision_config(image_size=32), head_dim=8),
        image_token_index=image,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )


QWEN_TOKENS = ("<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
QWEN_PLACE = "<|vision_start|><|image_pad|><|vision_end|>"
IDEFICS_TOKENS = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>")
VLMS: dict[str, TinyFamily] = {
    "llava": TinyFamily(
        "<image>",
        (),
        lambda: CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16),
        llava,
        "LlavaProcessor",
        LLAVA_PROCESSOR,
    ),
    "llava_next": TinyFamily(
        "<image>",
        (),
        lambda: LlavaNextImageProcessorPil(
            size={"shortest_edge": 16}, crop_size=16, image_grid_pinpoints=PINPOINTS
        ),
        llava_next,
        "LlavaNextProcessor",
        LLAVA_PROCESSOR,
    ),
    "llava_onevision": TinyFamily(
        "<image>",
        ("<video>",),
        lambda: LlavaOnevisionImageProcessorPil(
            size={"height": 16, "width": 16}, image_grid_pinpoints=PINPOINTS
        ),
        llava_onevision,
        "LlavaOnevisionProcessor",
        {"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
    ),
    "qwen2_5_vl": TinyFamily(
        "<|image_pad|>",
        QWEN_TOKENS,
        lambda: Qwen2VLImageProcessorPil(min_pixels=28 * 28 * 4, max_pixels=28 * 28 * 16),
        qwen2_5_vl,
        "Qwen2_5_VLProcessor",
        place=QWEN_PLACE,
    ),
    "qwen3_vl": TinyFamily(
        "<|image_pad|>",
        QWEN_TOKENS,
        lambda: Qwen2VLImageProcessorPil(patch_size=16, min_pixels=32 * 32 * 4, max_pixels=32 * 32 * 16),
        qwen3_vl,
        "Qwen3VLProcessor",
        place=QWEN_PLACE,
    ),
    "gemma3": TinyFamily(
        "<image_soft_token>",
        ("<start_of_image>", "<end_of_image>"),
        lambda: Gemma3ImageProcessorPil(size={"height": 32, "width": 32}),
        gemma3,
        "Gemma3Processor",
        {"image_seq_length": 16},
        {
            "boi_token": "<start_of_image>",
            "image_token": "<image_soft_token>",
            "eoi_token": "<end_of_image>",
        },
        place="<start_of_image>",
    ),
    "smolvlm": TinyFamily(
        "<image>",
        IDEFICS_TOKENS,
        lambda: SmolVLMImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        smolvlm,
        "SmolVLMProcessor",
        {"image_seq_len": 1},
    ),
    "idefics3": TinyFamily(
        "<image>",
        IDEFICS_TOKENS,
        lambda: Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16}),
        idefics3,
        "Idefics3Processor",
        {"image_seq_len": 1},
    ),
    "internvl": TinyFamily(
        "<IMG_CONTEXT>",
        ("<img>", "</img>", "<video>"),
        lambda: GotOcr2ImageProcessorPil(
            size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=3
        ),
        internvl,
        "InternVLProcessor",
        {"image_seq_length": 4},
        {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
}


def save_tiny_vlm(family: str, folder: Path, head_dim: int = 8) -> None:
    """Write a checkpoint as the hub has them: model, tokenizer, image processor, chat template."""
    spec = VLMS[family]
    tokenizer = spec.tokenizer
    image = tokenizer.convert_tokens_to_ids(spec.image)
    save_random(spec.configure(text_config(len(tokenizer), head_dim=head_dim), image), folder)
    tokenizer.save_pretrained(folder)
    spec.images().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("PLACE", spec.place or spec.image))
    settings = {**spec.settings, "processor_class": spec.processor}
    (folder / "processor_config.json").write_text(json.dumps(settings))


def save_random(config: PreTrainedConfig, folder: Path) -> None:
    """Write random weights, large enough that answers vary; a Gemma repeats itself at the others' size."""
    size = 0.06 if config.model_type == "gemma3" else 0.25
    torch.manual_seed(7)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=size)
    model.save_pretrained(folder)


def load_tiny_mistral3(folder: Path) -> LoadedModel:
    """Return a tiny Mistral 3 without a processor, which would need torchvision; token 5 is its [IMG]."""
    save_random(mistral3(text_config(len(tiny_tokenizer())), image=5), folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval().requires_grad_(False)
    tokenizer = tiny_tokenizer()
    parts = Parts("mistral3", str(folder), model.config, tokenizer, None, AutoModelForImageTextToText)
    identity = identify(parts, model, weight_samples(model))
    return LoadedModel(model, tokenizer, decoder_blocks(model), identity)


def load_tiny_vlm(family: str, folder: Path, device: str = "cpu") -> LoadedModel:
    save_tiny_vlm(family, folder)
    return load_model(str(folder), folder, device=device)
