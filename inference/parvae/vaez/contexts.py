"""The order of the columns, and which of those before it tell most about a column.

What a parent saves is weighed against what its tables cost, as in a Chow-Liu tree (Chow and Liu 1968) with a
description length in place of a likelihood. `row_contexts` then refines how the parents are used.

Letters in shapes: n rows, S symbols of a column, P symbols of a parent, G groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from parvae.vaez.clusters import table_bits
from parvae.vaez.parents import Symbol, Track, context_of

MAX_TABLES = 512
MAX_CANDIDATES = 64
"""A column looks for its parents among this many columns before it."""
SAMPLE_ROWS = 1 << 14
MAX_JOINT_CELLS = 1 << 22


def choose_parents(tracks: Mapping[int, Track]) -> tuple[list[int], dict[int, list[Symbol]]]:
    """The order in which columns are best decoded, and the parents of each one.

    Greedy, as Prim's algorithm grows a tree: next comes the column that the ones before it save most of.
    """
    names = list(tracks)
    if len(names) > MAX_CANDIDATES:
        return _in_file_order(tracks)
    sampled = _sample(tracks)
    scale = _scale(tracks)
    alone = {name: table_bits(sampled[name].occurrences()[None, :-1], scale) for name in names}
    best = {
        (child, parent): best_grouping(sampled[child], sampled[parent], None, 1, scale)
        for child in names
        for parent in names
        if child != parent
    }
    order: list[int] = []
    parents: dict[int, list[Symbol]] = {}
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
        found = [Symbol(column=parent, groups=best[child, parent][1])] if order and saved > 0 else []
        if found:
            found += _second(child, found[0], order, sampled, best[child, parent][0], scale)
        parents[child] = found
        order.append(child)
    return order, parents


def _in_file_order(tracks: Mapping[int, Track]) -> tuple[list[int], dict[int, list[Symbol]]]:
    """For wide tables: every column looks at the few before it."""
    sampled, scale = _sample(tracks), _scale(tracks)
    order = list(tracks)
    parents: dict[int, list[Symbol]] = {}
    for place, child in enumerate(order):
        alone = table_bits(sampled[child].occurrences()[None, :-1], scale)
        found = [
            (*best_grouping(sampled[child], sampled[parent], None, 1, scale), parent)
            for parent in order[max(0, place - 8) : place]
        ]
        cost, groups, parent = min(found, key=lambda entry: entry[0], default=(alone, np.empty(0, np.uint8), -1))
        parents[child] = [Symbol(column=parent, groups=groups)] if cost < alone else []
    return order, parents


def _second(
    child: int, first: Symbol, order: Sequence[int], sampled: Mapping[int, Track], cost: float, scale: float
) -> list[Symbol]:
    """A second parent, where it saves more than its tables cost."""
    context, num_tables = context_of([first], sampled)
    found: list[Symbol] = []
    for parent in order:
        if parent == first.column:
            continue
        bits, groups = best_grouping(sampled[child], sampled[parent], context, num_tables, scale)
        if bits < cost:
            cost, found = bits, [Symbol(column=parent, groups=groups)]
    return found


def best_grouping(
    child: Track, parent: Track, context: NDArray[np.int64] | None, num_tables: int, scale: float
) -> tuple[float, NDArray[np.uint8]]:
    """The bits of `child` given `parent` (beside a context), and the groups of the parent's symbols that reach them."""
    num_parents = parent.num_symbols + 1
    best = (np.inf, np.zeros(num_parents, np.uint8))
    if num_tables * num_parents * child.num_symbols > MAX_JOINT_CELLS:
        return best
    key = parent.symbols if context is None else context * num_parents + parent.symbols
    present = child.symbols < child.num_symbols
    joint = np.bincount(
        key[present] * child.num_symbols + child.symbols[present],
        minlength=num_tables * num_parents * child.num_symbols,
    ).reshape(num_tables, num_parents, child.num_symbols)
    for groups in parent.groupings:
        if (int(groups[-1]) + 1) * num_tables > MAX_TABLES:
            continue
        edges = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
        bits = table_bits(np.add.reduceat(joint, edges, axis=1).reshape(-1, child.num_symbols), scale)
        if bits < best[0]:
            best = (bits, groups)
    return best


def _scale(tracks: Mapping[int, Track]) -> float:
    num_rows = max((len(track.symbols) for track in tracks.values()), default=0)
    return max(1.0, num_rows / SAMPLE_ROWS)


def _sample(tracks: Mapping[int, Track]) -> dict[int, Track]:
    """At most SAMPLE_ROWS rows, evenly spread."""
    step = int(np.ceil(_scale(tracks)))
    return {name: track.every(step) for name, track in tracks.items()}
