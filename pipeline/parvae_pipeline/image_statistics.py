"""Statistics of a column of encoded images: what they are, and how many are something else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from parvae.errors import DataError, MissingExtraError
from parvae.images import fitting_size, looks_like_image, open_image, pixels_of, require_pillow

MAX_SIZES = 1_000
"""Distinct sizes that are counted one by one; images of more sizes are only known to be more."""
IMAGES_AT_A_TIME = 512


class Found(NamedTuple):
    """What one value turned out to be."""

    size: tuple[int, int] | None = None
    """(height, width)."""
    is_colour: bool = False
    pixels: NDArray[np.uint8] | None = None
    trouble: str | None = None
    """Why an image cannot be decoded."""


@dataclass(kw_only=True)
class ImageStatistics:
    """Counts over the values of a column; two halves can be merged."""

    num_rows: int = 0
    num_other: int = 0
    """Values that do not begin like an image."""
    num_grey: int = 0
    num_colour: int = 0
    num_broken: int = 0
    first_trouble: tuple[int, str] | None = None
    """The first row that is no image or cannot be decoded, and why."""
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    num_other_sizes: int = 0
    has_no_decoder: bool = False
    """Whether Pillow is missing: then images are counted as grey ones of no size."""

    @property
    def num_images(self) -> int:
        """Values that begin like an image, decoded or not."""
        return self.num_grey + self.num_colour + self.num_broken

    def add(self, values: Sequence[bytes | None], *, num_threads: int = 1) -> Iterator[NDArray[np.uint8]]:
        """Take in the values of some rows, decoded in `num_threads`; yields the pixels of all images, in parts."""
        look = partial(_look, decodes=self._can_decode())
        with ThreadPoolExecutor(num_threads) as pool:
            spread: Any = map if num_threads == 1 else pool.map
            for first in range(0, len(values), IMAGES_AT_A_TIME):
                found: list[Found | None] = list(spread(look, values[first : first + IMAGES_AT_A_TIME]))
                for row, one in enumerate(found):
                    if one is not None:
                        self._count(self.num_rows + row, one)
                self.num_rows += len(found)
                pixels = [one.pixels.reshape(-1) for one in found if one is not None and one.pixels is not None]
                if pixels:
                    yield np.concatenate(pixels)

    def merge(self, other: ImageStatistics) -> None:
        """Take in the statistics of the rows that follow."""
        if self.first_trouble is None and other.first_trouble is not None:
            self.first_trouble = (self.num_rows + other.first_trouble[0], other.first_trouble[1])
        self.num_rows += other.num_rows
        self.num_other += other.num_other
        self.num_grey += other.num_grey
        self.num_colour += other.num_colour
        self.num_broken += other.num_broken
        self.num_other_sizes += other.num_other_sizes
        self.has_no_decoder = self.has_no_decoder or other.has_no_decoder
        for size, count in other.sizes.items():
            self._count_size(size, count)

    def _can_decode(self) -> bool:
        try:
            require_pillow("")
        except MissingExtraError:  # raised with the column's name when it is known to be modelled
            self.has_no_decoder = True
        return not self.has_no_decoder

    def _count(self, row: int, found: Found) -> None:
        if found.trouble is not None and self.first_trouble is None:
            self.first_trouble = (row, found.trouble)
        if found.size is not None:
            self.num_colour += found.is_colour
            self.num_grey += not found.is_colour
            self._count_size(found.size, 1)
        elif found.trouble == NO_IMAGE:
            self.num_other += 1
        else:
            self.num_broken += 1

    def _count_size(self, size: tuple[int, int], count: int) -> None:
        if size in self.sizes or len(self.sizes) < MAX_SIZES:
            self.sizes[size] += count
        else:
            self.num_other_sizes += count


NO_IMAGE = "it does not begin like a PNG, JPEG or WebP file"


def _look(content: bytes | None, *, decodes: bool) -> Found | None:
    if content is None:
        return None
    if not looks_like_image(content):
        return Found(trouble=NO_IMAGE)
    if not decodes:
        return Found(size=(0, 0))
    try:
        image = open_image(content)
    except DataError as error:
        return Found(trouble=str(error))
    size = (image.height, image.width)
    return Found(size=size, is_colour=image.mode == "RGB", pixels=pixels_of(image, fitting_size(*size)))
