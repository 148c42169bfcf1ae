"""Joining: neighbouring symbols into groups, and contexts that foretell much the same into one table.

Only an encoder runs this; what it finds is written down (groups of symbols, a table number for every context), so a
decoder looks it up. Contexts are clustered by the bits that one table for all of them would cost (k-means with the
Kullback-Leibler divergence, "context quantisation": J. Chen, IEEE Data Compression Conference 2004).

A choice is weighed by its description length: the bits of the symbols and those of the tables.

Letters in shapes: C contexts, S symbols, T tables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_TABLES = 256
ROUNDS = 8
PRIOR_COUNT = 4.0
"""Symbols of the common distribution that every table has beside its own while contexts look for their table."""
MAP_BITS = 6.0
"""About what the table number of a context that occurs costs."""
CELL_COST_BITS = 5.0
"""About what a cell that is not zero costs in the stored tables; a zero costs a tenth."""


def groups_of(counts: NDArray[np.int64], num_groups: int) -> NDArray[np.uint8]:
    """(S,) neighbouring symbols joined into about `num_groups` groups of equal count; a heavy symbol is one alone."""
    if len(counts) <= num_groups:
        return np.arange(len(counts)).astype(np.uint8)
    light = np.ones(len(counts), bool)
    share = counts.sum() / num_groups
    while (heavy := light & (counts > share)).any():
        light &= ~heavy
        share = counts[light].sum() / max(1, num_groups - int((~light).sum()))
    spread = np.where(light, counts, 0)
    quantile = ((np.cumsum(spread) - spread / 2) / max(share, 1e-9)).astype(np.int64)
    is_edge = np.diff(quantile, prepend=quantile[0]) > 0
    is_edge |= np.diff(light, prepend=light[0]) | ~light
    is_edge[0] = False
    groups: NDArray[np.int64] = np.minimum(np.cumsum(is_edge), 255)
    return groups.astype(np.uint8)


def joined_contexts(counts: NDArray[np.int64], num_tables: int) -> NDArray[np.uint8]:
    """(C,) the table that each context with these `counts` (C, S) is coded with, by rising mean symbol; at most 256."""
    totals = counts.sum(axis=1)
    seen = np.flatnonzero(totals)
    own = counts[seen].astype(np.float32)
    num_tables = min(num_tables, len(seen), MAX_TABLES)
    if num_tables <= 1:
        return np.zeros(len(counts), np.uint8)
    means = own @ np.arange(own.shape[1], dtype=np.float32) / totals[seen]
    order = np.argsort(means, kind="stable")
    before = np.cumsum(totals[seen][order]) - totals[seen][order] / 2
    table = np.empty(len(seen), np.int64)
    table[order] = np.minimum(before * num_tables / totals.sum(), num_tables - 1).astype(np.int64)
    prior = PRIOR_COUNT * counts.sum(axis=0) / totals.sum() + 1e-6
    for _ in range(ROUNDS):
        weights = _summed(own, table, num_tables) + prior
        bits = np.log2(weights.sum(axis=1, keepdims=True)) - np.log2(weights)
        nearest = (own @ bits.T.astype(np.float32)).argmin(axis=1)
        if np.array_equal(nearest, table):
            break
        table = nearest
    weights = _summed(own, table, num_tables)
    used = np.flatnonzero(weights.sum(axis=1))
    by_mean = used[np.argsort(weights[used] @ np.arange(weights.shape[1]) / weights[used].sum(axis=1), kind="stable")]
    rank = np.zeros(num_tables, np.uint8)
    rank[by_mean] = np.arange(len(used))
    joined = np.zeros(len(counts), np.uint8)
    joined[seen] = rank[table]
    return joined


def _summed(rows: NDArray[np.floating[Any]], group: NDArray[np.int64], num_groups: int) -> NDArray[np.float64]:
    """(num_groups, S) sums of the rows of each group."""
    order = np.argsort(group, kind="stable")
    present, first = np.unique(group[order], return_index=True)
    sums = np.zeros((num_groups, rows.shape[1]))
    sums[present] = np.add.reduceat(rows[order].astype(np.float64), first, axis=0)
    return sums


def table_bits(joint: NDArray[np.int64], scale: float, *, cell_bits: float = CELL_COST_BITS) -> float:
    """What symbols with these counts (contexts, S) cost, times `scale`, and their tables."""
    totals = joint.sum(axis=1)
    entropy = _sum_x_log_x(totals) - _sum_x_log_x(joint)
    filled = int(np.count_nonzero(joint))
    rows = int(np.count_nonzero(totals))
    tables = cell_bits * filled + 0.1 * cell_bits * (rows * joint.shape[1] - filled)
    return float(scale * entropy + tables)


def _sum_x_log_x(counts: NDArray[np.int64]) -> float:
    above = counts[counts > 1].astype(np.float64)
    return float(np.sum(above * np.log2(above)))


def joined_bits(counts: NDArray[np.int64], table_of: NDArray[np.uint8], scale: float = 1.0) -> float:
    """What symbols with these counts (C, S) cost in these tables, times `scale`, and the tables and their map."""
    joined = _summed(counts.astype(np.float64), table_of.astype(np.int64), int(table_of.max()) + 1)
    return table_bits(joined.astype(np.int64), scale) + MAP_BITS * int(np.count_nonzero(counts.sum(axis=1)))
