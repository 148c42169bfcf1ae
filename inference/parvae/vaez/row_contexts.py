"""The tables of a column of one number a row: its parents make a context, a map gives the context its table.

Letters in shapes: n rows, S symbols of the column, C contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.vaez.clusters import MAX_TABLES, groups_of, joined_bits, joined_contexts, table_bits
from parvae.vaez.contexts import best_grouping
from parvae.vaez.parents import Forecast, Parent, Symbol, Track, context_of, fit_forecast

SYMBOL_GROUPINGS = {1: ((256,), (64,), (24,)), 2: ((16, 16), (24, 8), (8, 24), (48, 48), (256, 16))}
"""Groups to try for the parents once they are chosen, by their number."""
FORECAST_GROUPS = (4, 8, 16, 32)
COMPANION_GROUPS = 8
BESIDE_FORECAST = (4, 8, 16)
"""Groups of the column beside a forecast."""
FIRST_NUM_TABLES = 16
NUM_TABLES = (2, 4, 8, 32, 64, 128, 256)
MAX_CONTEXTS = 1 << 16
SAMPLE_ROWS = 1 << 14


@dataclass(frozen=True, kw_only=True, eq=False)
class RowContexts:
    """Which table codes the column at every row."""

    parents: Sequence[Parent] = ()
    table_of: NDArray[np.integer[Any]] = field(default_factory=lambda: np.zeros(1, np.uint8))
    """(C,) the table of each context."""

    @cached_property
    def num_tables(self) -> int:
        """How many tables the map names."""
        return int(self.table_of.max()) + 1

    def tables_at(self, tracks: Mapping[int, Track]) -> NDArray[np.integer[Any]] | None:
        """(n,) the table of every row; None where there is only one."""
        return self.table_of.take(context_of(self.parents, tracks)[0]) if self.num_tables > 1 else None

    def facts(self) -> dict[str, Any]:
        """What stands in the facts of a block: a column for a symbol, a list of them for a forecast."""
        columns = [parent.column if isinstance(parent, Symbol) else list(parent.columns) for parent in self.parents]
        return {"parents": columns, "joined": 1}

    def to_bytes(self) -> bytes:
        """The groups or weights of the parents, then the map."""
        return b"".join(parent.to_bytes() for parent in self.parents) + self.table_of.tobytes()

    @classmethod
    def from_bytes(
        cls, facts: Mapping[str, Any], num_symbols_of: Mapping[int, int], content: bytes, position: int
    ) -> tuple[Self, int]:
        """The contexts that `facts` and `to_bytes` describe, and where they end; `num_symbols_of` the columns before.

        Raises CorruptFileError when they name a column that is not decoded yet, or too many contexts.
        """
        parents: list[Parent] = []
        for named in facts["parents"]:
            if any(column not in num_symbols_of for column in (named if isinstance(named, list) else [named])):
                raise CorruptFileError("a column claims parents that come after it; the file is damaged")
            if isinstance(named, list):
                forecast, position = Forecast.from_bytes(named, content, position)
                parents.append(forecast)
            else:
                size = num_symbols_of[named] + 1
                parents.append(Symbol(column=named, groups=np.frombuffer(content, np.uint8, size, position)))
                position += size
        num_contexts = prod(parent.num_groups for parent in parents)
        if num_contexts > MAX_CONTEXTS:
            raise CorruptFileError(f"a column claims {num_contexts} contexts; the file is damaged")
        if "joined" not in facts:  # before format 2 every context had a table of its own
            return cls(parents=parents, table_of=np.arange(num_contexts, dtype=np.uint16)), position
        table_of = np.frombuffer(content, np.uint8, num_contexts, position)
        return cls(parents=parents, table_of=table_of), position + num_contexts


def fit_rows(child: Track, parents: Sequence[Symbol], tracks: Mapping[int, Track]) -> RowContexts:
    """The contexts that code `child` in the fewest bits, from chosen parents and from a forecast by all `tracks`.

    They are chosen on a sample of the rows and fitted on all.
    """
    step = max(1, len(child.symbols) // SAMPLE_ROWS)
    best, num_tables = _choose(
        child.every(step), parents, {column: track.every(step) for column, track in tracks.items()}, float(step)
    )
    if not num_tables:
        return best
    table_of = joined_contexts(_Counts(child, tracks).of(best.parents), num_tables)
    return RowContexts(parents=best.parents, table_of=table_of)


class _Counts:
    """How often each symbol of a column comes in each context; the groups of every parent are found once."""

    def __init__(self, child: Track, tracks: Mapping[int, Track]) -> None:
        self._tracks, self._num_symbols = tracks, child.num_symbols
        self._present = child.symbols < child.num_symbols
        self._own = child.symbols[self._present]
        self._groups: dict[Parent, NDArray[np.int64]] = {}

    def of(self, parents: Sequence[Parent]) -> NDArray[np.int64]:
        """(C, S)"""
        key, num_contexts = np.zeros(len(self._own), np.int64), 1
        for parent in parents:
            if parent not in self._groups:
                self._groups[parent] = parent.groups_at(self._tracks)[self._present]
            key = key * parent.num_groups + self._groups[parent]
            num_contexts *= parent.num_groups
        key = key * self._num_symbols + self._own
        return np.bincount(key, minlength=num_contexts * self._num_symbols).reshape(num_contexts, -1)


def _choose(
    child: Track, parents: Sequence[Symbol], tracks: Mapping[int, Track], scale: float
) -> tuple[RowContexts, int]:
    """The contexts that need the fewest bits, and how many tables they are joined into; 0 where they are not joined."""
    counts_of = _Counts(child, tracks).of
    found = [(table_bits(child.occurrences()[None, :-1], scale), RowContexts(), 0)]

    def join(grouped: Sequence[Parent], num_tables: int) -> None:
        counts = counts_of(grouped)
        table_of = joined_contexts(counts, num_tables)
        num_bits = joined_bits(counts, table_of, scale) + 8.0 * sum(len(parent.to_bytes()) for parent in grouped)
        found.append((num_bits, RowContexts(parents=grouped, table_of=table_of), num_tables))

    if parents and len(counts := counts_of(parents)) <= MAX_TABLES:  # a table for each context: the map costs nothing
        apart = RowContexts(parents=parents, table_of=np.arange(len(counts), dtype=np.uint8))
        found.append((table_bits(counts, scale), apart, 0))
    for grouped in _groupings(child, parents, tracks):
        join(grouped, FIRST_NUM_TABLES)
    _, best, num_tables = min(found, key=lambda entry: entry[0])
    for number in NUM_TABLES if num_tables else ():
        join(best.parents, number)
    _, best, num_tables = min(found, key=lambda entry: entry[0])
    return best, num_tables


def _groupings(child: Track, parents: Sequence[Symbol], tracks: Mapping[int, Track]) -> Iterator[Sequence[Parent]]:
    """Finer groups than the parents were chosen with, alone and beside a forecast."""

    def regrouped(sizes: Sequence[int]) -> list[Symbol]:
        return [
            Symbol(column=parent.column, groups=groups_of(tracks[parent.column].occurrences(), size))
            for parent, size in zip(parents, sizes, strict=True)
        ]

    if parents:
        yield from (regrouped(sizes) for sizes in SYMBOL_GROUPINGS[len(parents)])
    forecast = fit_forecast(child, tracks)
    if forecast is None:
        return
    ordered = np.sort(forecast.sums(tracks))
    cuts = {len(cut.edges): cut for size in FORECAST_GROUPS if len((cut := forecast.cut(ordered, size)).edges)}
    beside: list[Symbol] = []
    if cuts:
        beside = _companions(child, forecast.cut(ordered, COMPANION_GROUPS), tracks)
    for cut in cuts.values():
        yield [cut]
        for size in BESIDE_FORECAST if beside else ():
            groups = groups_of(tracks[beside[0].column].occurrences(), size)
            yield [cut, Symbol(column=beside[0].column, groups=groups)]
            yield [cut, Symbol(column=beside[0].column, groups=groups), *beside[1:]]


def _companions(child: Track, forecast: Forecast, tracks: Mapping[int, Track]) -> list[Symbol]:
    """The column that saves most beside a forecast, then the one that saves most beside both."""
    chosen: list[Parent] = [forecast]
    for _ in range(2):
        context, num_contexts = context_of(chosen, tracks)
        named = {parent.column for parent in chosen if isinstance(parent, Symbol)}
        found = [
            (*best_grouping(child, track, context, num_contexts, 1.0), column)
            for column, track in tracks.items()
            if column not in named
        ]
        num_bits, groups, column = min(found, key=lambda entry: entry[0], default=(np.inf, np.zeros(1, np.uint8), -1))
        if not np.isfinite(num_bits):
            break
        chosen.append(Symbol(column=column, groups=groups))
    return [parent for parent in chosen if isinstance(parent, Symbol)]
