"""Images: every element in the context of its neighbours, many elements of all images at a time.

An element (y, x, c) is decoded at step (x + 2 y) * channels + c. All of one step are independent of one another, and
the neighbours left, above, and above to the right, belong to earlier steps: so a step decodes up to half a row in every
image at once (a wavefront). The symbols of the neighbours, each joined into groups, make a context; a map gives every
context its table. Outside of the image all is the first symbol.

Letters in shapes: n images, d elements of one image, S symbols of an element, C contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.rans import Decoder, Part, Tables

MAX_CONTEXTS = 1 << 16
Shape = tuple[int, int, int]
Offset = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelContexts:
    """How the context of an element comes from its neighbours."""

    shape: Shape
    """Height, width, channels."""
    offsets: Sequence[Offset]
    groups: Sequence[NDArray[np.uint8]]
    """(S,) for every neighbour the group of each symbol."""
    table_of: NDArray[np.uint8]
    """(C,) the table of each context."""

    def facts(self) -> dict[str, Any]:
        """What stands in the facts of a block; `to_bytes` holds the rest."""
        return {"pixels": {"shape": list(self.shape), "neighbours": [list(offset) for offset in self.offsets]}}

    def to_bytes(self) -> bytes:
        """The groups of every neighbour, then the map."""
        return b"".join(groups.tobytes() for groups in self.groups) + self.table_of.tobytes()

    @classmethod
    def from_bytes(cls, facts: dict[str, Any], num_symbols: int, content: bytes, position: int) -> tuple[Self, int]:
        """The contexts that `facts` and `to_bytes` describe, and where they end.

        Raises CorruptFileError when an element would have to be decoded before itself.
        """
        height, width, channels = (int(size) for size in facts["shape"])
        offsets = [(int(dy), int(dx), int(dc)) for dy, dx, dc in facts["neighbours"]]
        if any((dx + 2 * dy) * channels + dc >= 0 for dy, dx, dc in offsets):
            raise CorruptFileError("an image claims neighbours that come after it; the file is damaged")
        groups = []
        for _ in offsets:
            groups.append(np.frombuffer(content, np.uint8, num_symbols, position))
            position += num_symbols
        num_contexts = num_contexts_of(groups)
        if num_contexts > MAX_CONTEXTS:
            raise CorruptFileError(f"an image claims {num_contexts} contexts; the file is damaged")
        table_of = np.frombuffer(content, np.uint8, num_contexts, position)
        found = cls(shape=(height, width, channels), offsets=offsets, groups=groups, table_of=table_of)
        return found, position + num_contexts

    @property
    def num_tables(self) -> int:
        """How many tables the map names."""
        return int(self.table_of.max()) + 1

    @cached_property
    def steps(self) -> list[NDArray[np.int64]]:
        """For every step the places (in 0 .. d - 1) of its elements."""
        y, x, c = _coordinates(self.shape)
        step = (x + 2 * y) * self.shape[2] + c
        order = np.argsort(step, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(step[order])) + 1)

    @cached_property
    def sources(self) -> list[NDArray[np.int64]]:
        """For every neighbour (d,) its place; d where it lies outside."""
        return [places_at(self.shape, offset) for offset in self.offsets]

    def tables_at(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(d, n) the table of every element; `symbols` (d + 1, n), the last row 0."""
        return self.table_of[contexts_of(symbols, self.sources, self.groups)]

    def parts(self, symbols: NDArray[np.uint8], table_index: NDArray[np.uint8], tables: Tables) -> list[Part]:
        """What `read` reads: the elements of every step, image after image; `symbols` (d + 1, n), the last row 0."""
        return [
            Part(symbols=symbols[places].reshape(-1), tables=tables, table_index=table_index[places].reshape(-1))
            for places in self.steps
        ]

    def read(self, decoder: Decoder, num_images: int, tables: Tables) -> NDArray[np.uint8]:
        """(d, n) the symbols of all images."""
        symbols = np.zeros((prod(self.shape) + 1, num_images), np.uint8)
        lookups = _lookups(self.groups)
        for places in self.steps:
            context = np.zeros((len(places), num_images), np.uint16)
            for source, lookup in zip(self.sources, lookups, strict=True):
                context += lookup.take(symbols[source[places]])
            found = decoder.read(context.size, tables, self.table_of.take(context.reshape(-1)))
            symbols[places] = found.reshape(context.shape)
        return symbols[:-1]


def padded_symbols(symbols: NDArray[np.uint8], shape: Shape) -> NDArray[np.uint8]:
    """(d + 1, n) from (n * d,): what lies outside of an image is the last row, 0."""
    by_image = symbols.reshape(-1, prod(shape))
    padded = np.zeros((by_image.shape[1] + 1, len(by_image)), np.uint8)
    padded[:-1] = by_image.T
    return padded


def num_contexts_of(groups: Sequence[NDArray[np.uint8]]) -> int:
    """How many contexts the groups of all neighbours make."""
    return prod(int(of_symbol.max()) + 1 for of_symbol in groups)


def contexts_of(
    symbols: NDArray[np.uint8], sources: Sequence[NDArray[np.int64]], groups: Sequence[NDArray[np.uint8]]
) -> NDArray[np.uint16]:
    """(d, n) the context of every element; `symbols` (d + 1, n), the last row 0."""
    context = np.zeros((len(symbols) - 1, symbols.shape[1]), np.uint16)
    for source, lookup in zip(sources, _lookups(groups), strict=True):
        context += lookup.take(symbols[source])
    return context


def _lookups(groups: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint16]]:
    """For every neighbour what each symbol adds to the number of the context; the last neighbour counts by one."""
    sizes = [int(of_symbol.max()) + 1 for of_symbol in groups]
    return [(of_symbol * np.uint16(prod(sizes[place + 1 :]))) for place, of_symbol in enumerate(groups)]


def _coordinates(shape: Shape) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(d,) each: row, column and channel of every place."""
    y, x, c = (axis.reshape(-1) for axis in np.indices(shape))
    return y, x, c


def places_at(shape: Shape, offset: Offset) -> NDArray[np.int64]:
    """(d,) the place at a distance from every place; d where that is outside."""
    height, width, channels = shape
    y, x, c = (axis + distance for axis, distance in zip(_coordinates(shape), offset, strict=True))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (c >= 0) & (c < channels)
    return np.where(inside, (y * width + x) * channels + c, prod(shape))
