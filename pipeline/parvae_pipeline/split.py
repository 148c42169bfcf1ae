"""Which rows are held out: a hash of a row's number in the data set, so that it needs no list and no order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 2**20
"""Rows hashed at a time: 8 MB a temporary, whatever the size of the data set."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The split of one data set into training rows and held-out rows; every reader asks it for the same answer."""

    num_rows: int
    share: float
    seed: int
    only_held_out_row: int | None = None
    """The row that is held out where the hash holds out none."""
    only_training_row: int | None = None
    """The row that is kept where the hash keeps none."""

    @classmethod
    def of(cls, num_rows: int, *, share: float, max_rows: int, seed: int) -> Self:
        """Hold out `share` of the rows, about `max_rows` at most; at least one row is held out and one is kept."""
        split = cls(num_rows=num_rows, share=min(share, max_rows / num_rows), seed=seed)
        lowest, highest = (2**64, 0), (-1, 0)
        for first in range(0, num_rows, CHUNK_ROWS):
            mixed = split._mixed(first, min(CHUNK_ROWS, num_rows - first))
            low, high = int(mixed.argmin()), int(mixed.argmax())
            lowest = min(lowest, (int(mixed[low]), first + low))
            highest = max(highest, (int(mixed[high]), first + high), key=lambda pair: pair[0])
            if lowest[0] < split._bound <= highest[0]:
                return split
        if lowest[0] >= split._bound:
            return cls(num_rows=num_rows, share=split.share, seed=seed, only_held_out_row=lowest[1])
        return cls(num_rows=num_rows, share=split.share, seed=seed, only_training_row=highest[1])

    def held_out(self, first_row: int = 0, num_rows: int | None = None) -> NDArray[np.bool_]:
        """(num_rows,) which rows from `first_row` on are held out; all that are left where no number is named."""
        count = self.num_rows - first_row if num_rows is None else num_rows
        mask: NDArray[np.bool_] = self._mixed(first_row, count) < np.uint64(self._bound)
        for row, is_held_out in ((self.only_held_out_row, True), (self.only_training_row, False)):
            if row is not None and first_row <= row < first_row + count:
                mask[row - first_row] = is_held_out
        return mask

    def count_held_out(self, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """(u,) held-out rows between neighbours in `bounds`: (u + 1,) rising row numbers from 0 to the last."""
        counts = np.zeros(len(bounds) - 1, np.int64)
        for first in range(0, self.num_rows, CHUNK_ROWS):
            size = min(CHUNK_ROWS, self.num_rows - first)
            before = np.concatenate([[0], np.cumsum(self.held_out(first, size))])
            low = max(0, int(np.searchsorted(bounds, first, side="right")) - 1)
            high = int(np.searchsorted(bounds, first + size, side="left"))
            counts[low:high] += np.diff(before[np.clip(bounds[low : high + 1] - first, 0, size)])
        return counts

    @property
    def _bound(self) -> int:
        return int(self.share * 2.0**64)

    def _mixed(self, first_row: int, num_rows: int) -> NDArray[np.uint64]:
        """Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators": splitmix64."""
        offset = np.uint64(self.seed * 0x9E3779B97F4A7C15 % 2**64)
        with np.errstate(over="ignore"):
            z = np.arange(first_row, first_row + num_rows, dtype=np.uint64) + offset + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            return z ^ (z >> np.uint64(31))
