"""Discoveries in a file of scores: rows flagged so that few of them are false alarms, known once all rows are scored.

Letters in shapes: m distinct p-values.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from parvae.conformal import discovery_threshold
from parvae.stream import TALLY_KEY, open_writer, writing
from parvae.tally import Tally

P_VALUE, FLAG = "p_value", "is_anomaly"


def mark_discoveries(path: Path, counts: Tally, rate: float) -> Tally:
    """Add the column `is_anomaly` to a file of scores, and its number to `counts`, in bounded memory.

    A share `rate` of the flagged rows may be false alarms, in expectation; see `parvae.conformal.discoveries`.
    """
    with pq.ParquetFile(path) as scored:
        threshold = discovery_threshold(*_counted_p_values(scored), rate)
        marked = path.with_name(f"{path.name}.marked.tmp")
        num_flagged = 0
        try:
            with writing(path):
                schema = scored.schema_arrow.append(pa.field(FLAG, pa.bool_()))
                stamp = {key: value for key, value in (schema.metadata or {}).items() if key != TALLY_KEY.encode()}
                writer = open_writer(marked, schema.with_metadata(stamp), {})
                with writer:
                    for group in range(scored.num_row_groups):
                        table = scored.read_row_group(group, use_threads=False)
                        flags = table[P_VALUE].to_numpy() <= threshold
                        num_flagged += int(flags.sum())
                        table = table.append_column(FLAG, pa.array(flags))
                        writer.write_table(table.cast(writer.schema), row_group_size=max(1, table.num_rows))
                    counts = dataclasses.replace(counts, num_flagged=num_flagged)
                    writer.add_key_value_metadata({TALLY_KEY: counts.to_text()})
                marked.replace(path)
        finally:
            marked.unlink(missing_ok=True)
    return counts


def _counted_p_values(
    scored: pq.ParquetFile,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distinct p-values, rising, and how many rows have each: (m,) and (m,)."""
    values, counts = np.empty(0), np.empty(0, np.int64)
    for batch in scored.iter_batches(columns=[P_VALUE], use_threads=False):
        found, number = np.unique(batch.column(0).to_numpy(), return_counts=True)
        values, places = np.unique(np.concatenate([values, found]), return_inverse=True)
        counts = np.bincount(places, weights=np.concatenate([counts, number]), minlength=len(values)).astype(np.int64)
    return values, counts
