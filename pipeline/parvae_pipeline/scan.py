"""The statistics pass: every column of every row, read once, in bounded memory."""

from __future__ import annotations

import pyarrow as pa

from parvae.errors import DataError
from parvae_pipeline.decode import UnitTables, threads_within
from parvae_pipeline.parallel import map_in_order
from parvae_pipeline.statistics import ColumnStatistics, statistics_of
from parvae_pipeline.units import Units


def scan(units: Units) -> dict[str, ColumnStatistics]:
    """Statistics of every column over all files: units are read in threads and merged in the order of the files, so
    the figures do not depend on the number of threads.

    Raises DataError naming the file when a row group is damaged, or changed since the plan.
    """
    tables = UnitTables(units, columns=None)
    merged: dict[str, ColumnStatistics] = {}
    for found in map_in_order(
        lambda unit: _unit_statistics(tables, unit), range(len(units)), num_threads=pa.cpu_count()
    ):
        _merge(merged, found)
    return merged or statistics_of(units.schema.empty_table())


def _unit_statistics(tables: UnitTables, unit: int) -> dict[str, ColumnStatistics]:
    merged: dict[str, ColumnStatistics] = {}
    for first, table in tables.chunks(unit):
        try:
            _merge(merged, statistics_of(table, num_threads=threads_within(len(tables.units))))
        except DataError as error:
            raise tables.error(unit, first, error) from error
    return merged


def _merge(merged: dict[str, ColumnStatistics], found: dict[str, ColumnStatistics]) -> None:
    for name, statistics in found.items():
        if name in merged:
            merged[name].merge(statistics)
        else:
            merged[name] = statistics
