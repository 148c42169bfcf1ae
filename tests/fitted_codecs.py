"""A codec that is fitted in a few seconds, and the rows that it knows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from builders import boolean, numeric

from parvae.files import find_files
from parvae.schema import Schema
from parvae.vaez.codec import Codec
from parvae_export.codec import fit_codec

NAMES = ("size", "weight", "count", "member", "income")


def measured(num_rows: int, seed: int) -> dict[str, Any]:
    """Columns that tell of one another: floats, one with nulls, counts with many zeros, a flag, a heavy tail."""
    frozen = np.random.RandomState(seed)  # a stream that numpy promises never to change
    size = frozen.normal(170.0, 10.0, num_rows).round(1)
    weight = (0.9 * size - 85.0 + frozen.normal(0.0, 4.0, num_rows)).round(1)
    count = np.where(frozen.rand(num_rows) < 0.6, 0, frozen.poisson(np.clip(weight / 8.0, 0.1, 30.0)))
    return {
        "size": size.astype("f4"),
        "weight": np.ma.MaskedArray(weight, mask=frozen.rand(num_rows) < 0.1),
        "count": count.astype("i4"),
        "member": weight + frozen.normal(0.0, 5.0, num_rows) > 68.0,
        "income": np.exp(frozen.normal(8.0 + 0.05 * (size - 170.0), 0.3, num_rows)).round(),
    }


def table_of(rows: dict[str, Any]) -> pa.Table:
    return pa.table(
        {
            name: pa.array(np.ma.getdata(column), mask=np.ma.getmaskarray(column) if np.ma.isMA(column) else None)
            for name, column in rows.items()
        }
    )


def fitted_codec(folder: Path) -> Codec:
    """Fitted to 4,000 rows."""
    path = folder / "measured.parquet"
    pq.write_table(table_of(measured(4_000, seed=0)), path)
    columns = [boolean(name) if name == "member" else numeric(name) for name in NAMES]
    schema = Schema(columns=tuple(columns), num_rows=4_000)
    found, report = fit_codec(schema, find_files([str(path)]), seed=0, max_steps=400)
    assert (report.num_rows, report.num_columns) == (4_000, 5)
    assert tuple(found.names) == NAMES
    return found


class WithCodec:
    """As much of a model as the codec needs."""

    def __init__(self, codec: Codec | None) -> None:
        self.codec = codec

    def require_codec(self) -> Codec:
        assert self.codec is not None
        return self.codec


def with_other_means(codec: Codec, difference: float) -> Codec:
    """The same, but for the means of its columns."""
    columns = dataclasses.replace(codec.columns, means=codec.columns.means + difference)
    return dataclasses.replace(codec, columns=columns)
