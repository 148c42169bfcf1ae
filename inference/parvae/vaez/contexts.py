"""Contexts: which earlier columns tell most about a column, and the tables that this knowledge gives.

Every column's symbols are coded with one table for each context: the symbols of up to two columns decoded before it,
joined into groups. What a choice saves is weighed against what its tables cost, as in a Chow-Liu tree (Chow and Liu
1968) with a description length in place of a likelihood. A context is made of decoded symbols alone: no machine can
see another one.

Letters in shapes: n rows, S symbols of a column, P symbols of a parent, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_TABLES = 512
MAX_CANDIDATES = 64
"""A column looks for its parents among this many columns before it."""
SAMPLE_ROWS = 1 << 16
MAX_JOINT_CELLS = 1 << 22
GROUPINGS = (256, 32, 12, 5, 2)
"""How many groups the symbols of a parent may be joined into."""
CELL_COST_BITS = 5.0
"""About what a cell that is not zero costs in the stored tables; a zero costs a tenth."""

Symbols = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Parent:
    """A column decoded before, and the group (P,) of each of its symbols; its null, the last one, has a group too."""

    column: int
    groups: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Track:
    """The symbols of a column at every row: where it is null, the symbol is `num_symbols`."""

    symbols: NDArray[np.int64]
    num_symbols: int


def context_of(parents: Sequence[Parent], tracks: Mapping[int, Track]) -> tuple[NDArray[np.int64] | None, int]:
    """(n,) the table of every row, and how many tables there are; None without parents."""
    if not parents:
        return None, 1
    context: NDArray[np.int64] | None = None
    num_tables = 1
    for parent in parents:
        group = parent.groups[tracks[parent.column].symbols].astype(np.int64)
        num_groups = int(parent.groups.max()) + 1
        context = group if context is None else context * num_groups + group
        num_tables *= num_groups
    return context, num_tables


def choose_parents(tracks: Mapping[int, Track]) -> tuple[list[int], dict[int, list[Parent]]]:
    """The order in which columns are best decoded, and the parents of each one.

    Greedy, as Prim's algorithm grows a tree: next comes the column that the ones before it save most of.
    """
    names = list(tracks)
    if len(names) > MAX_CANDIDATES:
        return _in_file_order(tracks)
    sampled = _sample(tracks)
    scale = _scale(tracks)
    alone = {name: table_bits(_counts(sampled[name]), scale) for name in names}
    best = {
        (child, parent): _best_grouping(sampled[child], sampled[parent], None, 1, scale)
        for child in names
        for parent in names
        if child != parent
    }
    order: list[int] = []
    parents: dict[int, list[Parent]] = {}
    while len(order) < len(names):
        rest = [name for name in names if name not in parents]
        savings = {
            child: max((alone[child] - best[child, parent][0], parent) for parent in order) if order else (0.0, child)
            for child in rest
        }
        if not order:  # the root: the column that tells most about the others
            told = {
                root: sum(max(0.0, alone[name] - best[name, root][0]) for name in names if name != root)
                for root in names
            }
            child = max(told, key=told.__getitem__)
        else:
            child = max(rest, key=lambda name: savings[name][0])
        saved, parent = savings[child]
        found = [Parent(column=parent, groups=best[child, parent][1])] if order and saved > 0 else []
        if found:
            found += _second(child, found[0], order, sampled, best[child, parent][0], scale)
        parents[child] = found
        order.append(child)
    return order, parents


def _in_file_order(tracks: Mapping[int, Track]) -> tuple[list[int], dict[int, list[Parent]]]:
    """For wide tables: every column looks at the few before it."""
    sampled, scale = _sample(tracks), _scale(tracks)
    order = list(tracks)
    parents: dict[int, list[Parent]] = {}
    for place, child in enumerate(order):
        alone = table_bits(_counts(sampled[child]), scale)
        found = [
            (*_best_grouping(sampled[child], sampled[parent], None, 1, scale), parent)
            for parent in order[max(0, place - 8) : place]
        ]
        cost, groups, parent = min(found, key=lambda entry: entry[0], default=(alone, np.empty(0, np.uint8), -1))
        parents[child] = [Parent(column=parent, groups=groups)] if cost < alone else []
    return order, parents


def _second(
    child: int, first: Parent, order: Sequence[int], sampled: Mapping[int, Track], cost: float, scale: float
) -> list[Parent]:
    """A second parent, where it saves more than its tables cost."""
    context, num_tables = context_of([first], sampled)
    found: list[Parent] = []
    for parent in order:
        if parent == first.column:
            continue
        bits, groups = _best_grouping(sampled[child], sampled[parent], context, num_tables, scale)
        if bits < cost:
            cost, found = bits, [Parent(column=parent, groups=groups)]
    return found


def _best_grouping(
    child: Track, parent: Track, context: NDArray[np.int64] | None, num_tables: int, scale: float
) -> tuple[float, NDArray[np.uint8]]:
    """The bits of `child` given `parent` (beside a context), and the groups of the parent's symbols that reach them."""
    counts = np.bincount(parent.symbols, minlength=parent.num_symbols + 1)
    best = (np.inf, np.zeros(len(counts), np.uint8))
    num_parents = len(counts)
    if num_tables * num_parents * child.num_symbols > MAX_JOINT_CELLS:
        return best
    key = parent.symbols if context is None else context * num_parents + parent.symbols
    present = child.symbols < child.num_symbols
    joint = np.bincount(
        key[present] * child.num_symbols + child.symbols[present],
        minlength=num_tables * num_parents * child.num_symbols,
    ).reshape(num_tables, num_parents, child.num_symbols)
    tried = set()
    for num_groups in GROUPINGS:
        groups = _quantile_groups(counts, num_groups)
        made = int(groups.max()) + 1
        if made in tried or made * num_tables > MAX_TABLES:
            continue
        tried.add(made)
        edges = np.flatnonzero(np.diff(groups.astype(np.int64), prepend=-1))
        bits = table_bits(np.add.reduceat(joint, edges, axis=1).reshape(-1, child.num_symbols), scale)
        if bits < best[0]:
            best = (bits, groups)
    return best


def _quantile_groups(counts: NDArray[np.int64], num_groups: int) -> NDArray[np.uint8]:
    """(P,) neighbouring symbols joined so that groups hold about equally many rows; without gaps in their numbers."""
    if len(counts) <= num_groups:
        return np.arange(len(counts)).astype(np.uint8)
    before = np.cumsum(counts) - counts / 2
    wanted = np.minimum(before * num_groups / max(1, counts.sum()), num_groups - 1).astype(np.int64)
    groups: NDArray[np.uint8] = (np.cumsum(np.diff(wanted, prepend=wanted[0]) > 0)).astype(np.uint8)
    return groups


def _counts(child: Track) -> NDArray[np.int64]:
    present = child.symbols[child.symbols < child.num_symbols]
    return np.bincount(present, minlength=child.num_symbols)[None]


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


def _scale(tracks: Mapping[int, Track]) -> float:
    num_rows = max((len(track.symbols) for track in tracks.values()), default=0)
    return max(1.0, num_rows / SAMPLE_ROWS)


def _sample(tracks: Mapping[int, Track]) -> dict[int, Track]:
    """At most SAMPLE_ROWS rows, evenly spread."""
    step = int(np.ceil(_scale(tracks)))
    return {name: Track(symbols=track.symbols[::step], num_symbols=track.num_symbols) for name, track in tracks.items()}
