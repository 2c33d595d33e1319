"""A prompt's answers beside each other, by strength, with its images and the answers that were expected."""

from base64 import b64encode
from collections.abc import Mapping
from io import BytesIO
from math import inf
from typing import Any

from steering.building.overlay import SIDE
from steering.building.pictured import picture_of

# What a sample of a pair says of the pair, beside its prompt and images.
EXPECTED = ("preferred", "dispreferred")


def side_by_side(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample of a report as the page shows it: the unsteered answer stands at strength 0."""
    answers = sorted(sample.keys() - {"prompt", "images", *EXPECTED}, key=strength)
    return {
        "prompt": sample["prompt"],
        "images": [thumbnail_address(url) for url in sample.get("images", ())],
        "expected": [(name, sample[name]) for name in EXPECTED if name in sample],
        "answers": [(name, sample[name]) for name in answers],
    }


def strength(name: str) -> tuple[float, str]:
    """Return where "unsteered" or "strength -0.5" stands; what is neither comes last."""
    number = "0" if name == "unsteered" else name.removeprefix("strength ")
    try:
        return float(number), name
    except ValueError:
        return inf, name


def thumbnail_address(url: str) -> str:
    """Return an image, no larger than an overlay, as a data URI."""
    picture, file = picture_of(url).convert("RGB"), BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "PNG")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"
