"""What a single token is: its text and its bytes."""

import re
from functools import cache, lru_cache
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@lru_cache(maxsize=2**17)
def token_bytes(tokenizer: Any, token: int) -> tuple[str, bytes]:
    """Return the token's text and bytes; a token that is part of a character has text with U+FFFD."""

    def decoded(*tokens: int) -> str:
        text: str = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    text = decoded(token)
    if "\ufffd" not in text:
        # Some tokenizers take the space off a first token; a second one keeps it.
        text = decoded(token, token)[len(text) :]
        return text, text.encode()
    name = tokenizer.convert_ids_to_tokens(token)
    if match := BYTE_TOKEN.fullmatch(name):
        return text, bytes([int(match[1], 16)])
    alphabet = byte_alphabet()
    if all(letter in alphabet for letter in name):
        return text, bytes(alphabet[letter] for letter in name)
    return text, text.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the letters by which byte-level BPE vocabularies write bytes.

    Printable Latin-1 bytes stand for themselves, the others for letters from U+0100 on.
    Source: the GPT-2 tokenizer (Radford et al. 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
