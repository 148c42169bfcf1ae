"""Choosing how images are coded: their sides, the groups of their neighbours, and how many tables they are worth.

Letters in shapes: n images, d elements of one image, S symbols of an element, C contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from parvae.vaez.clusters import groups_of, joined_bits, joined_contexts
from parvae.vaez.pixels import MAX_CONTEXTS, Offset, PixelContexts, Shape, contexts_of, num_contexts_of, places_at
from parvae.vaez.prediction import median

SAMPLE_ELEMENTS = 1 << 20
NEIGHBOURS = (
    (0, -1, 0), (-1, 0, 0), (-1, 1, 0), (-1, -1, 0), (-2, 0, 0), (0, -2, 0),
    (-2, 1, 0), (-2, -1, 0), (-1, -2, 0), (0, -3, 0), (-3, 0, 0), (-2, 2, 0),
)  # fmt: skip
"""Distances (dy, dx, dc) to elements decoded before, the nearest first."""
GROUPINGS = (
    (10, 10, 5, 5, 4),
    (10, 10, 4, 4),
    (6, 6, 4, 3),
    (3, 3, 2),
    (12, 12, 6, 6, 3),
    (3, 3, 3, 3, 3, 3, 2, 2),
    (2,) * 10,
    (2,) * 12,
)
"""Into how many groups the symbols of the first neighbours are joined; to compare forms, the first alone is tried."""
SHAPE_SAMPLE_ELEMENTS = 1 << 18
MAX_CHANNELS = 4
"""More than these, last in a shape, are no channels: the image may be stored plane after plane."""
FIRST_NUM_TABLES = 64
NUM_TABLES = (4, 16, 64, 128, 256)


def fit_pixels(symbols: NDArray[np.uint8], num_symbols: int, shape: Shape) -> tuple[PixelContexts, float]:
    """The contexts that code `symbols` (d + 1, n), the last row 0, in the fewest bits, and about how many."""
    stride = max(1, symbols.size // SAMPLE_ELEMENTS)
    sample = np.ascontiguousarray(symbols[:, ::stride])
    scale = symbols.shape[1] / sample.shape[1]
    tried = (_Trial.of(sample, num_symbols, shape, grouping, FIRST_NUM_TABLES, scale) for grouping in GROUPINGS)
    best = min((trial for trial in tried if trial is not None), key=lambda trial: trial.num_bits)
    num_tables = min(
        NUM_TABLES, key=lambda number: joined_bits(best.counts, joined_contexts(best.counts, number), scale)
    )
    counts = _context_counts(symbols, _sources(shape, best.groups), best.groups, num_symbols)
    table_of = joined_contexts(counts, num_tables)
    offsets = _neighbours(shape)[: len(best.groups)]
    contexts = PixelContexts(shape=shape, offsets=offsets, groups=best.groups, table_of=table_of)
    return contexts, joined_bits(counts, table_of)


def pixel_bits(symbols: NDArray[np.uint8], num_symbols: int, shape: Shape, scale: float) -> float:
    """About how many bits `scale` times as many symbols as these (d + 1, n) will take, the last row 0."""
    trial = _Trial.of(symbols, num_symbols, shape, GROUPINGS[0], FIRST_NUM_TABLES, scale)
    assert trial is not None
    return trial.num_bits


@dataclass(frozen=True, eq=False)
class _Trial:
    """What one grouping of the neighbours gives."""

    num_bits: float
    groups: list[NDArray[np.uint8]]
    counts: NDArray[np.int64]
    """(C, S)"""

    @classmethod
    def of(
        cls,
        symbols: NDArray[np.uint8],
        num_symbols: int,
        shape: Shape,
        grouping: Sequence[int],
        num_tables: int,
        scale: float,
    ) -> Self | None:
        """None where it makes too many contexts."""
        histogram = np.bincount(symbols[:-1].reshape(-1), minlength=num_symbols)
        groups = [groups_of(histogram, size) for size in grouping]
        if num_contexts_of(groups) > MAX_CONTEXTS:
            return None
        counts = _context_counts(symbols, _sources(shape, groups), groups, num_symbols)
        return cls(joined_bits(counts, joined_contexts(counts, num_tables), scale), groups, counts)


def shape_of(values: NDArray[np.uint8]) -> Shape:
    """Height, width and channels of images (n, d...): their own, or those whose neighbours foretell best."""
    if values.ndim == 4 and values.shape[3] <= MAX_CHANNELS:
        return values.shape[1], values.shape[2], values.shape[3]
    if values.ndim == 3:
        return values.shape[1], values.shape[2], 1
    vectors = values.reshape(len(values), -1)
    length = vectors.shape[1]
    sample = vectors[:: max(1, values.size // SHAPE_SAMPLE_ELEMENTS)].astype(np.int16)
    found = {(1, length, 1): np.inf}
    for channels in (1, 3):
        if length % channels:
            continue
        elements = length // channels
        planes = sample.copy()
        for channel in range(channels - 1, 0, -1):
            planes[:, channel::channels] -= planes[:, channel - 1 :: channels]
        for width in (width for width in range(2, elements // 2 + 1) if elements % width == 0):
            row = width * channels
            left, above, corner = (_beside(planes, distance) for distance in (channels, row, row + channels))
            away = np.abs(planes - median(left, above, corner))
            found[elements // width, width, channels] = float(away[:, row:].mean())
    return min(found, key=found.__getitem__)


def _beside(values: NDArray[np.int16], distance: int) -> NDArray[np.int16]:
    """(n, d) what stands `distance` places earlier; 0 before the first."""
    moved = np.zeros_like(values)
    moved[:, distance:] = values[:, :-distance]
    return moved


def _neighbours(shape: Shape) -> Sequence[Offset]:
    return NEIGHBOURS if shape[2] == 1 else ((0, 0, -1), *NEIGHBOURS)


def _sources(shape: Shape, groups: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.int64]]:
    return [places_at(shape, offset) for offset in _neighbours(shape)[: len(groups)]]


def _context_counts(
    symbols: NDArray[np.uint8],
    sources: Sequence[NDArray[np.int64]],
    groups: Sequence[NDArray[np.uint8]],
    num_symbols: int,
) -> NDArray[np.int64]:
    """(C, S) how often each symbol comes in each context."""
    contexts = contexts_of(symbols, sources[: len(groups)], groups)
    num_contexts = num_contexts_of(groups)
    counts = np.zeros(num_contexts * num_symbols, np.int64)
    for place in range(0, len(contexts), 64):  # bounded memory
        rows = slice(place, place + 64)
        own = symbols[:-1][rows]
        counts += np.bincount((contexts[rows].astype(np.int64) * num_symbols + own).reshape(-1), minlength=len(counts))
    return counts.reshape(num_contexts, num_symbols)
