"""The images of a request: from bytes to pixels, in bounded memory, whatever the bytes are."""

import binascii
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from steering.errors import InvalidRequest, quotable

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
# Longer sides over shorter: processors scale the shorter one up, and a line of pixels becomes gigabytes.
MOST_ELONGATED = 50
SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L")


class InvalidImage(InvalidRequest):
    code = "invalid_image"


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """count: images of a request; pixels: over all of them."""

    count: int
    pixels: int


def bytes_of(url: str, param: str) -> bytes:
    """Return what a data URL holds."""
    head, comma, body = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise InvalidImage("a data URL of an image looks like 'data:image/png;base64,...'", param)
    try:
        return binascii.a2b_base64(body.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise InvalidImage(f"the data URL's base64 is broken: {error}"[:200], param) from None


def decoded(raw: bytes, pixels: int, param: str) -> Image.Image:
    """Return the image as upright RGB; its size and shape are checked before a pixel is decoded.

    Sixteen bits a channel become eight, transparency becomes white, CMYK and palettes become RGB. Raises
    InvalidImage: no image of a known format, broken, animated, or of more than so many pixels.
    """
    try:
        image = Image.open(BytesIO(raw), formats=FORMATS)
        size = image.size[0] * image.size[1]
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidImage(f"the image has more than the {pixels} pixels that are left", param) from None
    except Exception:
        # Pillow raises whatever a hostile file trips over.
        raise InvalidImage(f"not an image that can be read; send {', '.join(FORMATS)}", param) from None
    if size > pixels:
        raise InvalidImage(
            f"the image is {image.size[0]} x {image.size[1]}, more than the {pixels} pixels that are left "
            "of the limit on all images together; take a smaller one",
            param,
        )
    if max(image.size) > MOST_ELONGATED * min(image.size):
        raise InvalidImage(
            f"the image is {image.size[0]} x {image.size[1]}: "
            f"a side may be {MOST_ELONGATED} times the other at most",
            param,
        )
    try:
        if getattr(image, "is_animated", False):
            raise InvalidImage("the image is animated; send one frame", param)
        return as_rgb(ImageOps.exif_transpose(image))
    except InvalidImage:
        raise
    except Exception as error:
        raise InvalidImage(f"the image is broken: {quotable(error)}", param) from None


def as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
