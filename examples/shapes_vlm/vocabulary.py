"""The model's words are here: a word-level tokenizer and the chat template."""

import re
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shapes_vlm.scenes import COLOURS, SHAPES

PAD, UNKNOWN, END, IMAGE = "<pad>", "<unk>", "</s>", "<image>"
SYSTEM, USER, ASSISTANT = "<system>", "<user>", "<assistant>"
SPECIAL = (PAD, UNKNOWN, END, IMAGE, SYSTEM, USER, ASSISTANT)
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASES = "is there a the in what image how many objects are yes no i see , . ?"
WORDS = (*SPECIAL, *PHRASES.split(), *NUMBERS, *COLOURS, *SHAPES)

# The image's tokens come first in a message, wherever it stands among the parts: so it was trained.
CHAT_TEMPLATE = """
{%- for message in messages -%}
{{ '<' + message['role'] + '>' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' %}<image>{% endfor -%}
{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}</s>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
""".strip()


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words and punctuation marks, with the chat template; case is dropped."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    # Joins words with spaces, none before a comma or a full stop.
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        extra_special_tokens={
            "image_token": IMAGE,
            "system_token": SYSTEM,
            "user_token": USER,
            "assistant_token": ASSISTANT,
        },
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def encode(text: str) -> list[int]:
    """Return the text's tokens, as the tokenizer does and faster; special tokens stand alone."""
    return [INDEX.get(word, INDEX[UNKNOWN]) for word in SPLIT.findall(text.lower())]


INDEX = {word: index for index, word in enumerate(WORDS)}
SPLIT = re.compile("|".join([*map(re.escape, SPECIAL), r"\w+", r"[^\w\s]"]))
