"""What is counted while rows are scored: flagged rows, nulls, values that training never saw, drift since training."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from parvae.rows import Arrays, Columns, signed_log
from parvae.schema import NULL_TEXT, BooleanFacts, CategoryFacts, Column, Input, NumericFacts, Role, Schema


@dataclass(frozen=True, kw_only=True)
class ColumnTally:
    """One modelled column over some rows."""

    num_nulls: int = 0
    num_unseen: int = 0
    """Categories that are no level of the model, numbers outside the range of training."""
    num_values: int = 0
    """Numbers that `total` adds up; 0 for a category."""
    total: float = 0.0
    nats: float = 0.0
    """Sum of the contributions to the scores."""

    def __add__(self, other: ColumnTally) -> ColumnTally:
        names = [part.name for part in dataclasses.fields(self)]
        return ColumnTally(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Counts over some rows; tallies of parts add up to that of the whole."""

    num_rows: int = 0
    num_flagged: int = 0
    columns: Mapping[str, ColumnTally] = field(default_factory=dict)

    @classmethod
    def empty(cls) -> Self:
        """The tally of no rows."""
        return cls()

    def __add__(self, other: Tally) -> Tally:
        names = [*self.columns, *(name for name in other.columns if name not in self.columns)]
        nothing = ColumnTally()
        return Tally(
            num_rows=self.num_rows + other.num_rows,
            num_flagged=self.num_flagged + other.num_flagged,
            columns={name: self.columns.get(name, nothing) + other.columns.get(name, nothing) for name in names},
        )

    def to_text(self) -> str:
        """As it stands in the metadata of an output."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The tally that `to_text` wrote."""
        document = json.loads(text)
        columns = {name: ColumnTally(**counts) for name, counts in document.pop("columns").items()}
        return cls(columns=columns, **document)


def tally(
    schema: Schema, columns: Columns, inputs: Arrays, contributions: NDArray[np.float32], num_flagged: int
) -> Tally:
    """Count n rows: `inputs` are the tensors they were read into, `contributions` (n, parts) what the graph said."""
    nats = contributions.sum(axis=0, dtype=np.float64)
    counted: dict[str, ColumnTally] = {}
    for block in schema.inputs:
        for column, counts in zip(block.columns, _count_block(block, columns, inputs[block.name]), strict=True):
            counted[column.name] = dataclasses.replace(counts, nats=float(nats[len(counted)]))
    return Tally(num_rows=columns.num_rows, num_flagged=num_flagged, columns=counted)


def _count_block(block: Input, columns: Columns, values: NDArray[Any]) -> list[ColumnTally]:
    if block.role is Role.CATEGORY:
        return [_count_levels(column, columns) for column in block.columns]
    if block.role in (Role.VECTOR, Role.IMAGE):
        return [ColumnTally(num_values=values.size, total=float(values.sum(dtype=np.float64)))]
    known = np.isfinite(values)
    num_known = known.sum(axis=0)
    totals = values.sum(axis=0, dtype=np.float64, where=True if known.all() else known)
    unseen = np.zeros(len(block.columns), int)
    if block.role is Role.NUMERIC:
        facts = [column.facts_as(NumericFacts) for column in block.columns]
        low, high = np.array([(fact.minimum, fact.maximum) for fact in facts]).T
        unseen = ((values < low) | (values > high)).sum(axis=0, where=known)
    counted = []
    for index, column in enumerate(block.columns):
        num_values, total = int(num_known[index]), float(totals[index])
        if isinstance(column.facts, NumericFacts) and (column.facts.atoms or column.facts.transform != "none"):
            num_values, total = _sum_as_modelled(column.facts, values[known[:, index], index])
        counted.append(
            ColumnTally(
                num_nulls=len(values) - int(num_known[index]),
                num_unseen=int(unseen[index]),
                num_values=num_values,
                total=total,
            )
        )
    return counted


def _sum_as_modelled(facts: NumericFacts, values: NDArray[Any]) -> tuple[int, float]:
    """How many numbers are no atoms, and their sum after the transform: what `facts.mean` is the mean of."""
    numbers = values[~np.isin(values, facts.atoms)]
    total = signed_log(numbers).sum() if facts.transform == "log1p" else numbers.sum(dtype=np.float64)
    return len(numbers), float(total)


def _count_levels(column: Column, columns: Columns) -> ColumnTally:
    levels, rows = columns.levels(column)
    facts = column.facts_as(CategoryFacts)
    # A value that is told by its hash is told from others, not from those of training.
    seen = set(levels if facts.buckets else facts.levels)
    counts = np.bincount(rows, minlength=len(levels)).tolist()
    num_nulls = sum(count for text, count in zip(levels, counts, strict=True) if text == NULL_TEXT)
    unseen = [count for text, count in zip(levels, counts, strict=True) if text != NULL_TEXT and text not in seen]
    return ColumnTally(num_nulls=num_nulls, num_unseen=sum(unseen))


def drift(column: Column, counts: ColumnTally) -> float | None:
    """Mean minus that of training, in standard deviations of training; None for categories and where all is null.

    Numbers that the model takes in logarithms are compared so, and its atoms (such as a zero) are left out.
    """
    if not counts.num_values or isinstance(column.facts, CategoryFacts) or column.facts is None:
        return None
    mean = counts.total / counts.num_values
    if isinstance(column.facts, BooleanFacts):
        share = column.facts.share_true
        expected, stddev = share, math.sqrt(share * (1 - share))
    else:
        expected, stddev = column.facts.mean, column.facts.stddev
    return (mean - expected) / stddev if stddev > 0 else None


def drift_nats(column: Column, counts: ColumnTally, num_rows: int, metrics: Mapping[str, Any]) -> float | None:
    """Mean nats of the column above those of held-out rows at the end of training."""
    at_training = metrics.get("column_nats", {}).get(column.name)
    return None if at_training is None or not num_rows else counts.nats / num_rows - float(at_training)
