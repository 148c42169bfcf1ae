"""The schema of rows made on the spot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from parvae.schema import (
    Column,
    Schema,
)
from parvae_pipeline.roles import infer_schema
from parvae_pipeline.statistics import statistics_of

NUM_ROWS = 60
RNG = np.random.default_rng(0)
ANCHOR = pa.array(RNG.normal(size=NUM_ROWS))
"""A column that is always modelled, so that the one under test may be ignored."""


def schema_of(
    table: pa.Table | dict[str, Any], *, overrides: dict[str, str] | None = None, label: str | None = None
) -> Schema:
    table = table if isinstance(table, pa.Table) else pa.table(table)
    return infer_schema(statistics_of(table), overrides=overrides or {}, label=label)


def column_of(values: Any, *, name: str = "c", override: str | None = None, anchor: bool = True) -> Column:
    """What becomes of one column."""
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
    table = {name: array, **({"anchor": pa.array(RNG.normal(size=len(array)))} if anchor else {})}
    return schema_of(table, overrides={name: override} if override else None)[name]
