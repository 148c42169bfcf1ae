"""Why a row scores as it does: the columns most to blame, with what was observed and what was expected.

Letters in shapes: n rows, k columns named for each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from parvae.arrow import as_table, list_lengths
from parvae.schema import Role, Schema

if TYPE_CHECKING:
    from parvae.scores import Scores

EXPLANATION = "explanation"


def explanations(schema: Schema, table: pa.Table, scores: Scores, num_columns: int) -> pa.Array:
    """(n,) lists of `num_columns` structs, most to blame first: column, nats, observed, expected.

    The nats are those of `Scores.blame`. Values are text, whatever the type of the column; null stays null, and so do
    images and vectors.
    """
    columns = list(schema.modelled)
    order = scores.most_blamed(num_columns)  # (n, k)
    num_rows, k = order.shape
    which, rows = order.reshape(-1), np.repeat(np.arange(num_rows), k)
    fields = {
        "column": pa.array([column.name for column in columns], pa.string()).take(pa.array(which)),
        "nats": pa.array(scores.blame()[rows, which]),
        "observed": _texts(schema, table, which, rows),
        "expected": _texts(schema, as_table(scores.expected), which, rows),
    }
    return pa.FixedSizeListArray.from_arrays(pa.StructArray.from_arrays(list(fields.values()), list(fields)), k)


def _texts(schema: Schema, table: pa.Table, which: NDArray[np.int64], rows: NDArray[np.int64]) -> pa.Array:
    """(n * k,) the value of column `which` in each of `rows`, as text."""
    texts: NDArray[Any] = np.full(len(which), None, dtype=object)
    for index, column in enumerate(schema.modelled):
        places = np.flatnonzero(which == index)
        if len(places) and column.role not in (Role.VECTOR, Role.IMAGE):
            values = table.column(column.name).take(pa.array(rows[places]))
            if pa.types.is_dictionary(values.type):
                values = values.cast(values.type.value_type)
            if column.holds_lengths and not pa.types.is_integer(values.type):  # as expected it is a number already
                values = list_lengths(values)
            texts[places] = pc.cast(values, pa.string()).to_pylist()
    return pa.array(texts, pa.string())
