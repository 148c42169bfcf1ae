"""Encoded images: PNG, JPEG and WebP to pixels, and pixels to PNG. Needs Pillow, imported late.

Two JPEG decoders may differ by a level or two in a pixel. Letters in shapes: n rows, (h, w, c) height, width, channels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from parvae.errors import DataError, MissingExtraError
from parvae.schema import Column, ImageFacts, is_null

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
"""All that is ever opened: the other decoders of Pillow see no byte of a user's file."""
MAX_PIXELS = 50_000_000
"""Larger images are refused by their header: a few kilobytes can claim gigabytes."""
MAX_SIDE = 128
"""Larger images are scaled down until their longer side is this long."""
GREY_MODES = frozenset({"1", "L", "LA"})
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


def looks_like_image(content: bytes) -> bool:
    """Whether the first bytes are those of a PNG, JPEG or WebP file."""
    return content.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (
        content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    )


def content_of(value: object) -> bytes | None:
    """The bytes of one value: bytes, a view of them, or a mapping with `bytes` (and `path`); None where null."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if is_null(value):
        return None
    raise DataError(f"a {type(value).__name__} is no encoded image; give the bytes of a PNG, JPEG or WebP file")


def require_pillow(name: str) -> None:
    """Raise MissingExtraError, naming the column, where Pillow is not installed."""
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtraError(
            f"column {name!r} holds encoded images, which need Pillow: pip install 'parvae[image]'"
        ) from error
    assert PIL.Image


def open_image(content: bytes) -> Image:
    """The decoded image, upright, in mode L or RGB; what is transparent lies on white.

    Raises DataError saying what is wrong with the bytes.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    # A broken file may fail in any of these ways; the last two are warnings where warnings are errors.
    broken = (OSError, SyntaxError, ValueError, EOFError, struct.error)
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}; scale it down")
        if image.mode in DEEP_MODES:
            raise DataError(f"it has more than 8 bits a channel (mode {image.mode}); convert it")
        image.load()
        upright: Image.Image = ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"it has too many pixels ({error}); scale it down") from error
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("it cannot be decoded (its header is no PNG, JPEG or WebP); replace it") from error
    except broken as error:
        raise DataError(f"it cannot be decoded ({error}); replace it") from error
    mode = "L" if upright.mode in GREY_MODES else "RGB"
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright if upright.mode == mode else upright.convert(mode)


def fitting_size(height: int, width: int) -> tuple[int, int]:
    """The size at which an image is modelled: its own, or scaled down to MAX_SIDE."""
    scale = min(1.0, MAX_SIDE / max(height, width))
    return max(1, round(scale * height)), max(1, round(scale * width))


def pixels_of(image: Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w, c) pixels, resized to `size` (h, w) where the image has another."""
    from PIL import Image

    height, width = size
    if (image.width, image.height) != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels: NDArray[np.uint8] = np.asarray(image)
    return pixels.reshape(height, width, -1)


def decode_images(column: Column, values: Sequence[object], *, num_threads: int = 1) -> NDArray[np.uint8]:
    """(n, h * w * c) pixels of encoded images, as the model takes them.

    Raises DataError naming the column and the row when an image is null, broken, or of another size or colour than the
    model; MissingExtraError where Pillow is not installed.
    """
    require_pillow(column.name)
    facts = column.facts_as(ImageFacts)
    decoded = np.empty((len(values), facts.height, facts.width, facts.channels), np.uint8)

    def decode(row: int) -> None:
        try:
            decoded[row] = _fitted(values[row], facts)
        except DataError as error:
            raise DataError(f"column {column.name!r}, row {row}: {error}") from error

    if num_threads == 1:
        for row in range(len(values)):
            decode(row)
    else:
        with ThreadPoolExecutor(num_threads) as pool:  # Pillow lets go of the lock while it decodes
            for _ in pool.map(decode, range(len(values)), chunksize=64):
                pass
    return decoded.reshape(len(values), facts.height * facts.width * facts.channels)


def _fitted(value: object, facts: ImageFacts) -> NDArray[np.uint8]:
    content = content_of(value)
    if content is None:
        raise DataError("the image is null; fill or drop it")
    image = open_image(content)
    size = (facts.height, facts.width)
    if not facts.resizes and (image.height, image.width) != size:
        raise DataError(
            f"the image is {image.height} x {image.width}, but all were {facts.height} x {facts.width} in training; "
            "resize it"
        )
    if facts.channels == 3:
        image = image.convert("RGB")
    elif image.mode != "L":
        raise DataError("the image is in colour, but all were grey in training; convert it")
    return pixels_of(image, size)


def encode_png(pixels: NDArray[np.uint8]) -> list[bytes]:
    """(n, h, w, c) pixels as PNG files.

    Raises MissingExtraError where Pillow is not installed.
    """
    require_pillow("image")
    from PIL import Image

    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


def encoded_like(values: Any, pixels: NDArray[np.uint8]) -> Any:
    """`pixels` (n, h, w, c) in the form of `values`: PNG bytes or mappings with them as an object array, or arrays."""
    given = next((value for value in values if not is_null(value)), None) if _holds_files(values) else None
    if given is None:
        return pixels
    files = np.empty(len(pixels), dtype=object)
    for row, content in enumerate(encode_png(pixels)):
        files[row] = {"bytes": content, "path": None} if isinstance(given, Mapping) else content
    return files


def _holds_files(values: Any) -> bool:
    kind = getattr(values, "dtype", None)
    if kind is not None:
        return values.ndim == 1 and kind.kind in "OS"
    return any(isinstance(value, (bytes, Mapping)) for value in values)
