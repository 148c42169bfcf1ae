"""Columns that a codec knows: from the numbers of a file to the values that its networks look at.

Letters in shapes: n rows, S bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.vaez.bins import Bins
from parvae.vaez.codec import Codec, Mixture
from parvae.vaez.columns import ColumnData, Numbers
from parvae.vaez.forms import Integers, Values, values_from

Valid = NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """A column of the file that is one of the codec, and its form."""

    codec: Codec
    column: int
    """Its number in the codec."""
    form: str
    facts: Mapping[str, Any]
    levels: Values | None
    dtype: Any

    @property
    def is_told(self) -> bool:
        """Whether numbers rise with values, as bins must."""
        return not self.facts.get("delta")

    def values(self, numbers: Integers) -> Values:
        """(n,) of numbers. Those of exceptions are what the numbers that fill their places stand for."""
        return values_from(self.form, numbers, self.facts, self.levels, self.dtype)

    def mixture(self, bins: Bins, parameters: NDArray[np.float32]) -> Mixture:
        """How likely each bin is in every row (n,)."""
        first = (bins.starts + np.uint64(bins.base % (1 << 64))).view(np.int64)
        last = (first.view(np.uint64) + (np.uint64(1) << bins.bits.astype(np.uint64)) - np.uint64(1)).view(np.int64)
        below, above = self.values(last[:-1]), self.values(first[1:])
        edges = self.codec.edges(self.column, below, above)
        atom_bins = self.codec.atom_bins(self.column, below, above)
        return Mixture(self.codec, self.column, parameters, edges, atom_bins)


@dataclass(frozen=True, kw_only=True, eq=False)
class CodecOfFile:
    """A codec, and the number that each column of the file has in it."""

    codec: Codec
    numbers: Mapping[int, int]

    @classmethod
    def of(cls, codec: Codec, names: Sequence[str]) -> Self:
        """For a file with columns of these names."""
        places = {name: place for place, name in enumerate(names)}
        return cls(codec=codec, numbers={places[name]: n for n, name in enumerate(codec.names) if name in places})

    def knows(self, place: int, column: ColumnData) -> bool:
        """Whether a column is one of the codec's, with one number a row."""
        return place in self.numbers and isinstance(column, Numbers) and column.values.ndim == 1

    def known(self, place: int, *, form: str, facts: Mapping[str, Any], levels: Values | None, dtype: Any) -> Known:
        """A column that it knows, in this form."""
        return Known(codec=self.codec, column=self.numbers[place], form=form, facts=facts, levels=levels, dtype=dtype)


class KnownRows:
    """What the networks see of the columns decoded so far."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._features: dict[int, NDArray[np.float32]] = {}

    def add(self, known: Known, numbers: NDArray[np.integer[Any]], valid: Valid) -> None:
        """A column that was decoded: numbers (present rows,)."""
        present = known.values(numbers.astype(np.int64, copy=False))
        values = present
        if valid is not None:
            values = np.zeros(self._num_rows, present.dtype)
            values[valid] = present
        self._features[known.column] = known.codec.features(known.column, values, valid)

    def mixture(self, known: Known, bins: Bins, valid: Valid) -> Mixture:
        """How likely each bin of a column is in the rows where it is present."""
        parameters = known.codec.parameters(known.column, self._features, self._num_rows)
        return known.mixture(bins, parameters if valid is None else parameters[valid])
