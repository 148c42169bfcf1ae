"""Sampled rows beside real ones: the distribution of every column, and how strongly each pair of columns goes together.

Letters in shapes: N rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

from parvae.rows import Arrays
from parvae.schema import FIRST_LEVEL_CODE, NULL_CODE, CategoryFacts, Column, Role, Schema

NUM_BINS, MAX_LEVELS = 20, 12


@dataclass(frozen=True, kw_only=True)
class Marginal:
    """One column in real and in sampled rows, as shares of the same bins."""

    name: str
    bins: tuple[str, ...]
    real: tuple[float, ...]
    sampled: tuple[float, ...]

    @property
    def overlap(self) -> float:
        """1 minus the total variation distance of the shares: 1 where they are equal."""
        return 1.0 - 0.5 * sum(abs(real - sampled) for real, sampled in zip(self.real, self.sampled, strict=True))


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two columns, and Cramer's V between their bins in real and in sampled rows (0: independent, 1: one tells all)."""

    names: tuple[str, str]
    real: float
    sampled: float


def compare_rows(schema: Schema, real: Arrays, sampled: Arrays) -> tuple[list[Marginal], list[Pair]]:
    """Marginals of all numeric, boolean and category columns, and all pairs of them."""
    marginals, binned = [], {}
    for column, ours, theirs in _columns(schema, real, sampled):
        names, edges = _bins(column, ours)
        real_bins, sampled_bins = (_assign(column, values, edges) for values in (ours, theirs))
        shares = [
            tuple((np.bincount(bins, minlength=len(names)) / max(1, len(bins))).tolist())
            for bins in (real_bins, sampled_bins)
        ]
        marginals.append(Marginal(name=column.name, bins=names, real=shares[0], sampled=shares[1]))
        binned[column.name] = (real_bins, sampled_bins)
    pairs = [
        Pair(names=(first, second), real=cramers_v(a[0], b[0]), sampled=cramers_v(a[1], b[1]))
        for (first, a), (second, b) in combinations(binned.items(), 2)
    ]
    return marginals, pairs


def cramers_v(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Association of two columns of bin numbers (N,), corrected for chance (Bergsma 2013)."""
    rows = np.unique(first, return_inverse=True)[1]
    columns = np.unique(second, return_inverse=True)[1]
    count, num_rows, num_columns = len(first), int(rows.max()) + 1, int(columns.max()) + 1
    if count < 2 or min(num_rows, num_columns) < 2:
        return 0.0
    table = np.bincount(rows * num_columns + columns, minlength=num_rows * num_columns).reshape(num_rows, num_columns)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / count
    phi_squared = float(((table - expected) ** 2 / expected).sum()) / count
    corrected = max(0.0, phi_squared - (num_rows - 1) * (num_columns - 1) / (count - 1))
    sizes = (size - (size - 1) ** 2 / (count - 1) for size in (num_rows, num_columns))
    return float(min(1.0, (corrected / max(1e-12, min(sizes) - 1)) ** 0.5))


def _columns(
    schema: Schema, real: Arrays, sampled: Arrays
) -> Iterator[tuple[Column, NDArray[np.float64], NDArray[np.float64]]]:
    for block in schema.inputs:
        if real[block.name].ndim == 2 and block.role not in (Role.VECTOR, Role.IMAGE):
            for index, column in enumerate(block.columns):
                ours, theirs = real[block.name][:, index], sampled[block.name][:, index]
                yield column, ours.astype(np.float64), theirs.astype(np.float64)


def _bins(column: Column, values: NDArray[np.float64]) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Names of the bins, the last one for null, and what tells them apart: levels, or edges of numbers."""
    if column.role is Role.CATEGORY:
        levels = column.facts_as(CategoryFacts).levels[:MAX_LEVELS]
        return (*levels, "others", "null"), np.arange(
            FIRST_LEVEL_CODE, FIRST_LEVEL_CODE + len(levels), dtype=np.float64
        )
    if column.role is Role.BOOLEAN:
        return ("false", "true", "null"), np.array([-0.5, 0.5, 1.5])
    present = values[np.isfinite(values)]
    low, high = np.quantile(present, [0.005, 0.995]) if len(present) else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1)
    return (*(f"{float(f'{(a + b) / 2:.3g}'):,.10g}" for a, b in pairwise(edges)), "null"), edges


def _assign(column: Column, values: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) the number of the bin of every value."""
    if column.role is Role.CATEGORY:
        known = np.isin(values, edges)
        bins = np.where(known, values - FIRST_LEVEL_CODE, len(edges))
        return np.where(values == NULL_CODE, len(edges) + 1, bins).astype(np.int64)
    inside = np.clip(np.digitize(np.nan_to_num(values), edges) - 1, 0, len(edges) - 2)
    return np.where(np.isfinite(values), inside, len(edges) - 1).astype(np.int64)
