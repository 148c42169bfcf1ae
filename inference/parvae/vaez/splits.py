"""Symbols of a column by its mixture: a choice of four parts of the bins, then of four parts of the one chosen, ...

A choice needs the mass below three bins, where a table of all bins would need it below each of them.

Letters in shapes: n rows, S bins.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from parvae.rans import NUM_SLOTS, Decoder, SplitPart
from parvae.vaez.codec import WHOLE, Mixture

WAYS = 4
"""Parts of a choice: two would take more rounds of the coder, eight more evaluations of the mixture."""


def split_parts(mixture: Mixture, symbols: NDArray[np.uint8]) -> list[SplitPart]:
    """The parts of the stream that hold `symbols` (n,), the first choice first."""
    choices = _Choices(mixture, len(symbols))
    parts = []
    while choices.are_open:
        bounds = choices.bounds()
        chosen = choices.made_by(symbols)
        parts.append(SplitPart(symbols=chosen, bounds=bounds))
        choices.take(chosen)
    return parts


def read_splits(decoder: Decoder, mixture: Mixture, num_rows: int) -> NDArray[np.uint8]:
    """The symbols (n,) that `split_parts` split; a damaged stream may give any, but none beyond the last bin."""
    choices = _Choices(mixture, num_rows)
    while choices.are_open:
        choices.take(decoder.read_split(choices.bounds()))
    return np.minimum(choices.first, mixture.num_bins - 1).astype(np.uint8)


_INNER = np.arange(1, WAYS, dtype=np.int32)[:, None]
"""The parts that begin inside."""


class _Choices:
    """What is left of the bins for every row."""

    def __init__(self, mixture: Mixture, num_rows: int) -> None:
        self._mixture = mixture
        self._width = 1
        while self._width < mixture.num_bins:
            self._width *= WAYS
        self.first = np.zeros(num_rows, np.int32)
        """(n,) the first bin that is left."""
        self._low = np.zeros(num_rows, np.float32)
        self._high = np.full(num_rows, WHOLE, np.float32)
        self._masses = np.empty((WAYS + 1, num_rows), np.float32)

    @property
    def are_open(self) -> bool:
        """Whether more than one bin is left."""
        return self._width > 1

    def bounds(self) -> NDArray[np.uint32]:
        """(5, n) slots of the four parts; every part has one slot at least."""
        bins = self.first + self._width // WAYS * _INNER
        self._masses[0], self._masses[WAYS] = self._low, self._high
        self._masses[1:WAYS] = self._mixture.mass_below(np.minimum(bins, self._mixture.num_bins, out=bins))
        whole = (self._high - self._low).astype(np.float64)
        scale = (NUM_SLOTS - WAYS) / np.maximum(whole, 1.0)
        bounds = np.empty((WAYS + 1, len(self.first)), np.uint32)
        bounds[0], bounds[WAYS] = 0, NUM_SLOTS
        bounds[1:WAYS] = (self._masses[1:WAYS] - self._low) * scale
        bounds[1:WAYS] += _INNER.astype(np.uint32)
        nothing = np.flatnonzero(whole == 0)
        if len(nothing):  # no mass is left to tell the parts by
            bounds[1:WAYS, nothing] = _INNER.astype(np.uint32) * (NUM_SLOTS // WAYS)
        return bounds

    def made_by(self, symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(n,) the choices that lead to `symbols`."""
        return ((symbols - self.first) // (self._width // WAYS)).astype(np.uint8)

    def take(self, chosen: NDArray[np.integer[Any]]) -> None:
        """Go on with the parts (n,) that were chosen."""
        self._width //= WAYS
        self.first = self.first + chosen * np.int32(self._width)
        num_rows = len(self.first)
        place = chosen * np.int64(num_rows) + np.arange(num_rows)
        masses = self._masses.reshape(-1)
        self._low, self._high = masses.take(place), masses.take(place + num_rows)
