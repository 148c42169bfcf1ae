"""Parents: what the context of a column comes from. The symbol of one column, or a weighted sum of several.

All of them were decoded before, at the same row. A sum is of whole numbers, its weights are whole numbers of 2**-shift,
so every machine finds the same group.

Letters in shapes: n rows, P symbols of a column, K columns of a sum, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.vaez.bins import read_varints, varint
from parvae.vaez.clusters import groups_of

GROUPINGS = (256, 32, 12, 5, 2)
"""How many groups the symbols of a parent may be joined into."""
MAX_SUMMED = 8
SAMPLE_ROWS = 4096
MIN_GAIN = 0.01
"""Of the variance that is left, what one more column must explain."""
PRECISION = 64.0
"""Weights are rounded so that no column shifts the sum by more than about this part of its spread."""
MAX_SHIFT = 40
MAX_LOOKUP = 1 << 12
"""Edges that lie no further apart are looked up, which is faster than a search."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """A decoded column at every row."""

    symbols: NDArray[np.int64]
    """(n,) where the column is null, `num_symbols`."""
    num_symbols: int
    numbers: NDArray[np.int64]
    """(n,) where the column is null, 0."""

    def occurrences(self) -> NDArray[np.int64]:
        """(num_symbols + 1,) how often each symbol occurs, the null last."""
        return np.bincount(self.symbols, minlength=self.num_symbols + 1)

    @cached_property
    def groupings(self) -> list[NDArray[np.uint8]]:
        """Groups of its symbols in several sizes, the finest first."""
        counts = self.occurrences()
        made = {int(groups[-1]): groups for groups in (groups_of(counts, size) for size in GROUPINGS)}
        return list(made.values())

    def every(self, step: int) -> Track:
        """Every `step`-th row."""
        return Track(symbols=self.symbols[::step], num_symbols=self.num_symbols, numbers=self.numbers[::step])


@dataclass(frozen=True, kw_only=True, eq=False)
class Symbol:
    """The group (P,) of each symbol of a column; its null, the last one, has a group too."""

    column: int
    groups: NDArray[np.uint8]

    @cached_property
    def num_groups(self) -> int:
        """How many groups there are."""
        return int(self.groups.max()) + 1

    def groups_at(self, tracks: Mapping[int, Track]) -> NDArray[np.int64]:
        """(n,) the group of every row."""
        return self.groups.astype(np.int64).take(tracks[self.column].symbols)

    def to_bytes(self) -> bytes:
        """One byte a symbol."""
        return self.groups.tobytes()


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """Groups of a weighted sum."""

    columns: Sequence[int]
    weights: NDArray[np.int64]
    """(K,)"""
    shift: int
    edges: NDArray[np.int64]
    """(G - 1,) rising; a sum belongs to the group of the edges that it reaches."""

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return len(self.edges) + 1

    def sums(self, tracks: Mapping[int, Track]) -> NDArray[np.int64]:
        """(n,) the weighted sums, modulo 2**64."""
        total: NDArray[np.int64] = tracks[self.columns[0]].numbers * self.weights[0]
        for column, weight in zip(self.columns[1:], self.weights[1:], strict=True):
            total += tracks[column].numbers * weight
        total >>= self.shift
        return total

    def groups_at(self, tracks: Mapping[int, Track]) -> NDArray[np.int64]:
        """(n,) the group of every row."""
        sums = self.sums(tracks)
        if self.shift and len(self.edges):
            first, last = int(self.edges[0]) - 1, int(self.edges[-1])
            if abs(first) < 1 << 61 and last - first < MAX_LOOKUP:  # sums of 63 bits: the difference is exact
                lookup = np.searchsorted(self.edges, np.arange(first, last + 1), side="right")
                return lookup.take(sums - first, mode="clip")
        return np.searchsorted(self.edges, sums, side="right")

    def cut(self, ordered_sums: NDArray[np.int64], num_groups: int) -> Self:
        """The same forecast, its groups holding about equally many of these sums (n,), which rise."""
        edges = np.unique(ordered_sums[np.arange(1, num_groups) * len(ordered_sums) // num_groups])
        edges = edges[edges > ordered_sums[0]]
        return type(self)(columns=self.columns, weights=self.weights, shift=self.shift, edges=edges)

    def to_bytes(self) -> bytes:
        """Shift, number of edges, weights, differences of edges, each a `varint` with its sign in the lowest bit."""
        gaps = np.diff(self.edges, prepend=np.int64(0)).tolist()
        return b"".join(map(_signed, [self.shift, len(self.edges), *self.weights.tolist(), *gaps]))

    @classmethod
    def from_bytes(cls, columns: Sequence[int], content: bytes, position: int) -> tuple[Self, int]:
        """The forecast from `columns` that `to_bytes` wrote at `position`, and where it ends."""
        found, position = read_varints(content, position, 2)
        shift, num_edges = map(_with_sign, found)
        if not columns or not 0 <= shift <= MAX_SHIFT or not 0 <= num_edges < 256:
            raise CorruptFileError(f"a forecast claims shift {shift} and {num_edges} edges; the file is damaged")
        found, position = read_varints(content, position, len(columns) + num_edges)
        numbers = np.array([_with_sign(number) for number in found], np.int64)
        weights, edges = numbers[: len(columns)], numbers[len(columns) :].cumsum()
        return cls(columns=columns, weights=weights, shift=shift, edges=edges), position


def fit_forecast(child: Track, tracks: Mapping[int, Track]) -> Forecast | None:
    """The sum of a few of `tracks` that explains most of the variance of `child`, where it is not null.

    Columns join one by one (forward selection), least squares weigh them. None where no column explains anything.
    """
    rows = np.flatnonzero(child.symbols < child.num_symbols)
    rows = rows[:: max(1, len(rows) // SAMPLE_ROWS)]
    if len(rows) < 8 or not tracks:
        return None
    columns = list(tracks)
    x = np.stack([tracks[column].numbers[rows] for column in columns], axis=1).astype(np.float64)
    y = child.numbers[rows].astype(np.float64)
    spread, reach = x.std(axis=0), float(y.std())
    usable = spread > 0
    if not reach or not usable.any():
        return None
    x = np.where(usable, (x - x.mean(axis=0)) / np.where(usable, spread, 1.0), 0.0)
    y = (y - y.mean()) / reach
    covariance, correlation = x.T @ x / len(rows), x.T @ y / len(rows)
    chosen: list[int] = []
    solution = np.zeros(0)
    left = 1.0
    while len(chosen) < MAX_SUMMED:
        explained = np.abs(correlation - covariance[:, chosen] @ solution)
        explained[chosen] = 0.0
        tried = [*chosen, int(explained.argmax())]
        weights = np.linalg.lstsq(covariance[np.ix_(tried, tried)], correlation[tried], rcond=1e-9)[0]
        still = 1.0 - float(weights @ correlation[tried])
        if not explained.any() or still > (1 - MIN_GAIN) * left:
            break
        chosen, left, solution = tried, still, weights
    if not chosen:
        return None
    widest = PRECISION * float(spread[chosen].max()) / reach
    shift = int(np.clip(np.ceil(np.log2(max(widest, 1.0))), 0, MAX_SHIFT))
    whole = np.rint(solution * reach / spread[chosen] * 2.0**shift)
    if not np.abs(whole).max() < 2.0**40:
        return None
    none: NDArray[Any] = np.zeros(0, np.int64)
    return Forecast(
        columns=[columns[place] for place in chosen], weights=whole.astype(np.int64), shift=shift, edges=none
    )


Parent = Symbol | Forecast


def context_of(parents: Sequence[Parent], tracks: Mapping[int, Track]) -> tuple[NDArray[np.int64], int]:
    """(n,) the context that one parent or more make at every row, and how many contexts there are."""
    context = parents[0].groups_at(tracks)
    num_contexts = parents[0].num_groups
    for parent in parents[1:]:
        context = context * parent.num_groups + parent.groups_at(tracks)
        num_contexts *= parent.num_groups
    return context, num_contexts


def _signed(number: int) -> bytes:
    return varint(2 * number if number >= 0 else -2 * number - 1)


def _with_sign(number: int) -> int:
    return number >> 1 ^ -(number & 1)
