"""The tables of a vector column: elements at one place of every row share a table, and places that look alike do.

Letters in shapes: n elements of all rows, d elements of one row, S symbols of the column.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.errors import CorruptFileError
from parvae.vaez.clusters import joined_bits, joined_contexts, table_bits

NUM_TABLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MAX_CELLS = 1 << 22


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaceContexts:
    """Which table codes an element, by its place in the row."""

    table_of: NDArray[np.uint8]
    """(d,)"""

    @cached_property
    def num_tables(self) -> int:
        """How many tables the map names."""
        return int(self.table_of.max()) + 1

    def tables_at(self, num_elements: int) -> NDArray[np.uint8] | None:
        """(n,) the table of every element, row after row; None where there is only one."""
        return np.tile(self.table_of, num_elements // len(self.table_of)) if self.num_tables > 1 else None

    def facts(self) -> dict[str, Any]:
        """What stands in the facts of a block."""
        return {"places": len(self.table_of)}

    def to_bytes(self) -> bytes:
        """The map."""
        return self.table_of.tobytes()

    @classmethod
    def from_bytes(cls, facts: Mapping[str, Any], content: bytes, position: int) -> tuple[Self, int]:
        """The contexts that `facts` and `to_bytes` describe, and where they end.

        Raises CorruptFileError when the elements are no whole rows.
        """
        row_size = int(facts["places"])
        if row_size < 1 or facts["count"] % row_size:
            raise CorruptFileError(f"{facts['count']} elements are no rows of {row_size}; the file is damaged")
        return cls(table_of=np.frombuffer(content, np.uint8, row_size, position)), position + row_size


def fit_places(symbols: NDArray[np.uint8], num_symbols: int, row_size: int) -> tuple[PlaceContexts, float]:
    """The contexts that code `symbols` (n,) in the fewest bits, and about how many, tables and map included."""
    if row_size * num_symbols > MAX_CELLS:
        counts = np.bincount(symbols, minlength=num_symbols)[None]
        return PlaceContexts(table_of=np.zeros(row_size, np.uint8)), table_bits(counts, 1.0)
    key = symbols.reshape(-1, row_size) + np.arange(row_size) * num_symbols
    counts = np.bincount(key.reshape(-1), minlength=row_size * num_symbols).reshape(row_size, num_symbols)
    maps = (joined_contexts(counts, num_tables) for num_tables in NUM_TABLES)
    num_bits, table_of = min(((joined_bits(counts, found), found) for found in maps), key=lambda pair: pair[0])
    return PlaceContexts(table_of=table_of), num_bits
