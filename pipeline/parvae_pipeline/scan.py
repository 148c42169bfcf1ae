"""The statistics pass: every column of every row, read once, in bounded memory.

Units are merged into parts, and parts into the whole, always in the same order: who reads them, threads here or
processes elsewhere, changes no bit of the figures.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa

from parvae.errors import DataError
from parvae_pipeline.decode import UnitTables, threads_within
from parvae_pipeline.parallel import map_in_order
from parvae_pipeline.statistics import ColumnStatistics, statistics_of
from parvae_pipeline.units import Units

Statistics = dict[str, ColumnStatistics]
"""By column."""

PART_BYTES = 64 * 2**20
"""Size of a part, a second's work: what one process is given at a time where many share the pass."""


def scan(units: Units) -> Statistics:
    """Statistics of every column over all files; units are read in threads.

    Raises DataError naming the file when a row group is damaged, or changed since the plan.
    """
    tables = UnitTables(units, columns=None)
    found = map_in_order(lambda unit: _of_unit(tables, unit), range(len(units)), num_threads=pa.cpu_count())
    return merged(merged(islice(found, len(part))) for part in parts_of(units)) or empty_statistics(units)


def parts_of(units: Units) -> list[range]:
    """Neighbouring units, about PART_BYTES at a time."""
    starts = np.cumsum(units.num_bytes) - units.num_bytes
    (edges,) = np.nonzero(np.diff(starts // PART_BYTES))
    return [range(first, last) for first, last in pairwise([0, *(edges + 1).tolist(), len(units)]) if last > first]


def merged(parts: Iterable[Statistics]) -> Statistics:
    """The statistics of all rows from those of parts, taken in order; the first part is used up."""
    whole: Statistics = {}
    for part in parts:
        for name, statistics in part.items():
            if name in whole:
                whole[name].merge(statistics)
            else:
                whole[name] = statistics
    return whole


def empty_statistics(units: Units) -> Statistics:
    """Those of no rows."""
    return statistics_of(units.schema.empty_table())


def _of_unit(tables: UnitTables, unit: int) -> Statistics:
    def chunks() -> Iterable[Statistics]:
        for first, table in tables.chunks(unit):
            try:
                yield statistics_of(table, num_threads=threads_within(len(tables.units)))
            except DataError as error:
                raise tables.error(unit, first, error) from error

    return merged(chunks())
