"""Statistics of columns in one streaming pass: bounded memory, and two halves can be merged.

What is kept for every column: counts, moments (Chan et al. 1979 for the merge), extremes, and the distinct values up to
a bound. Roles are read off these figures, never off a second pass.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from parvae.arrow import TEMPORAL_FAMILIES, distinct_levels, image_files, list_elements, list_lengths, temporal_seconds
from parvae.errors import DataError
from parvae.rows import signed_log
from parvae.schema import NULL_TEXT, canonical_text, type_family
from parvae.times import seconds_from_levels, seconds_from_text
from parvae_pipeline.image_statistics import ImageStatistics

MAX_MAGNITUDE = 1e150
"""Larger numbers count as infinite: their squares would be."""
MAX_DISTINCT = 20_000
"""Distinct values kept for a column; a column with more is known to have more, and no count of them is needed."""

MIN_DATE_SHARE = 0.95
"""Of the values of a text column that must be dates or timestamps, in every piece that is read, for it to be one."""


@dataclass(kw_only=True)
class Moments:
    """Count, mean, spread and extremes of numbers."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""
    minimum: float = math.inf
    maximum: float = -math.inf
    are_whole: bool = True

    def add(self, values: NDArray[Any]) -> None:
        """Take in finite numbers of any shape."""
        if not values.size:
            return
        numbers = values.astype(np.float64, copy=False)
        mean = float(numbers.mean())
        self.merge(
            Moments(
                count=values.size,
                mean=mean,
                squares=float(np.square(numbers - mean).sum()),
                minimum=float(numbers.min()),
                maximum=float(numbers.max()),
                are_whole=values.dtype.kind in "iu" or bool(np.all(np.rint(numbers) == numbers)),
            )
        )

    def merge(self, other: Moments) -> None:
        """Take in the moments of other rows."""
        total = self.count + other.count
        if not total:
            return
        delta = other.mean - self.mean
        self.squares += other.squares + delta * delta * self.count * other.count / total
        self.mean += delta * other.count / total
        self.count = total
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self.are_whole = self.are_whole and other.are_whole

    @property
    def stddev(self) -> float:
        """Standard deviation over all that was added."""
        return math.sqrt(self.squares / self.count) if self.count else 0.0


@dataclass(kw_only=True)
class ColumnStatistics:
    """All that role inference wants to know of one column."""

    name: str
    arrow_type: pa.DataType
    metadata: dict[str, str] = field(default_factory=dict)
    num_rows: int = 0
    num_nulls: int = 0
    num_infinite: int = 0
    moments: Moments = field(default_factory=Moments)
    """Of the values, or of the elements of lists."""
    log_moments: Moments = field(default_factory=Moments)
    """Of sign(x) log(1 + |x|) of the values."""
    levels: Counter[str] = field(default_factory=Counter)
    """Distinct values as canonical text, and their counts, until MAX_DISTINCT is passed."""
    num_rows_of_levels: int = 0
    """Rows that were counted before the bound was passed."""
    overflowed: bool = False
    num_words: int = 0
    dates: Moments = field(default_factory=Moments)
    """Of a text column: seconds of the values that are dates or timestamps, as long as most are."""
    may_be_dates: bool = True
    list_sizes: set[int] = field(default_factory=set)
    lengths: ColumnStatistics | None = None
    """Of the numbers of values in lists whose type leaves them open."""
    images: ImageStatistics = field(default_factory=ImageStatistics)
    """Of the encoded images in a column of bytes; their pixels are in `moments`."""

    def __getstate__(self) -> dict[str, Any]:
        # Pickled, a list type loses the name of its field; in a schema it keeps it.
        return {**vars(self), "arrow_type": pa.schema([("", self.arrow_type)]).serialize().to_pybytes()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        (column,) = pa.ipc.read_schema(pa.py_buffer(state["arrow_type"]))
        vars(self).update({**state, "arrow_type": column.type})

    @property
    def family(self) -> str:
        """Family of the Arrow type."""
        return type_family(str(self.arrow_type))

    @property
    def distinct_share(self) -> float:
        """Distinct values for each value, over the rows counted before the bound was passed."""
        return len(self.levels) / max(1, self.num_rows_of_levels)

    @property
    def mean_words(self) -> float:
        """Words in a value of a text column."""
        return self.num_words / max(1, self.num_rows - self.num_nulls)

    @property
    def are_dates(self) -> bool:
        """Whether this is text, and in all files nearly all of it dates or timestamps."""
        return self.family == "text" and self.may_be_dates and self.dates.count > 0

    def as_timestamps(self) -> ColumnStatistics:
        """The statistics of the timestamps that the text stands for; other text is null."""
        levels: Counter[str] = Counter()
        for text, count in self.levels.items():
            seconds = seconds_from_text(text)
            if not math.isnan(seconds):
                levels[canonical_text(seconds)] += count
        return dataclasses.replace(
            self,
            arrow_type=pa.timestamp("us"),
            num_nulls=self.num_rows - self.dates.count,
            moments=self.dates,
            levels=levels,
            num_rows_of_levels=levels.total(),
        )

    def as_lengths(self) -> ColumnStatistics:
        """The statistics of the number of values in each list; those of the column itself where all have as many."""
        return self if self.lengths is None else dataclasses.replace(self.lengths, name=self.name)

    @property
    def resolution(self) -> float:
        """Smallest step between distinct values; 0 when too many were seen to know."""
        if self.overflowed:
            return 1.0 if self.family == "integer" else 0.0
        values = np.sort(np.array([float(text) for text in self.levels], dtype=np.float64))
        steps = np.diff(values)
        # Rounding in the file (0.1 + 0.2) is no step.
        steps = steps[steps > 1e-9 * max(1e-300, self.moments.stddev)]
        return float(steps.min()) if steps.size else 0.0

    def add(self, values: pa.ChunkedArray, *, num_threads: int = 1) -> None:
        """Take in the values of some rows; `num_threads` decode images.

        Raises DataError when the text of a column is not UTF-8.
        """
        try:
            self._add(values, num_threads)
        except UnicodeDecodeError as error:
            raise DataError(f"column {self.name!r} holds text that is not UTF-8 ({error}); convert it") from error

    def _add(self, values: pa.ChunkedArray, num_threads: int) -> None:
        self.num_rows += len(values)
        self.num_nulls += values.null_count
        if self.family in ("integer", "floating", *TEMPORAL_FAMILIES):
            self._add_numbers(values)
        elif self.family in ("text", "boolean"):
            self._add_levels(values)
        elif self.family == "list" and len(values):
            self._add_lists(values)
        elif self.family == "encoded":
            files = image_files(values)
            self.num_nulls += files.count(None) - values.null_count  # a struct may be there, and its bytes not
            for pixels in self.images.add(files, num_threads=num_threads):
                self.moments.add(pixels)

    def merge(self, other: ColumnStatistics) -> None:
        """Take in the statistics of the same column over other rows."""
        if pa.types.is_null(self.arrow_type):
            self.arrow_type = other.arrow_type
        self.num_rows += other.num_rows
        self.num_nulls += other.num_nulls
        self.num_infinite += other.num_infinite
        self.num_words += other.num_words
        self.dates.merge(other.dates)
        self.may_be_dates = self.may_be_dates and other.may_be_dates
        self.list_sizes |= other.list_sizes
        if self.lengths is None or other.lengths is None:
            self.lengths = self.lengths or other.lengths
        else:
            self.lengths.merge(other.lengths)
        self.images.merge(other.images)
        self.moments.merge(other.moments)
        self.log_moments.merge(other.log_moments)
        self._count(other.levels, other.num_rows_of_levels)
        self.overflowed = self.overflowed or other.overflowed

    def _add_numbers(self, values: pa.ChunkedArray) -> None:
        present = values.drop_null()
        if self.family in TEMPORAL_FAMILIES:
            present = pa.chunked_array([temporal_seconds(present)])
        if pa.types.is_integer(present.type):
            numbers = np.asarray(present.to_numpy())
        else:
            floats = np.asarray(present.cast(pa.float64(), safe=False).to_numpy())
            numbers = floats[np.abs(floats) <= MAX_MAGNITUDE]
            self.num_infinite += int((np.abs(floats) > MAX_MAGNITUDE).sum())
            # NaN is null to the model, whatever the file calls it.
            self.num_nulls += len(floats) - len(numbers)
        self.moments.add(numbers)
        self.log_moments.add(signed_log(numbers))
        if not self.overflowed:
            kind = present.type if not pa.types.is_decimal(present.type) else pa.float64()
            self._add_levels(pa.chunked_array([pa.array(numbers).cast(kind, safe=False)]))

    def _add_levels(self, values: pa.ChunkedArray) -> None:
        if self.family == "text":
            text = values.cast(pa.string()) if not pa.types.is_string(values.type) else values
            spaces = pc.sum(pc.count_substring_regex(text, r"\s+")).as_py() or 0
            self.num_words += spaces + len(values) - values.null_count
        reads_dates = self.family == "text" and self.may_be_dates
        if self.overflowed and not reads_dates:
            return
        texts, rows = distinct_levels(values)
        if reads_dates:
            self._add_dates(texts, rows, num_present=len(values) - values.null_count)
        if self.overflowed:
            return
        counts = np.bincount(rows, minlength=len(texts))
        found: Counter[str] = Counter()
        for text, count in zip(texts, counts.tolist(), strict=True):
            if count and text != NULL_TEXT:
                found[text] += count  # two values may share a text: 0.0 and -0.0
        self._count(found, len(values) - values.null_count)

    def _add_dates(self, texts: list[str], rows: NDArray[np.int64], *, num_present: int) -> None:
        seconds = seconds_from_levels(texts, rows)
        seconds = seconds[~np.isnan(seconds)]
        self.dates.add(seconds)
        self.may_be_dates = len(seconds) >= MIN_DATE_SHARE * num_present

    def _count(self, found: Counter[str], num_rows: int) -> None:
        if self.overflowed:
            return
        self.levels.update(found)
        self.num_rows_of_levels += num_rows
        self.overflowed = len(self.levels) > MAX_DISTINCT

    def _add_lists(self, values: pa.ChunkedArray) -> None:
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            self.lengths = self.lengths or ColumnStatistics(name=self.name, arrow_type=pa.int64())
            self.lengths.add(list_lengths(values))
        try:
            elements = list_elements(self.name, values)
        except DataError:
            self.list_sizes |= {-1}  # no matrix of numbers; the role says so, with the remedy
            return
        self.list_sizes.add(elements.shape[1])
        finite = elements if elements.dtype.kind in "iu" else elements[np.isfinite(elements)]
        self.num_infinite += elements.size - finite.size
        self.moments.add(finite)


def statistics_of(table: pa.Table, *, num_threads: int = 1) -> dict[str, ColumnStatistics]:
    """The statistics of every column of a table; `num_threads` decode images."""
    result = {}
    for index, column_field in enumerate(table.schema):
        metadata = {**(table.schema.metadata or {}), **(column_field.metadata or {})}
        text = {key.decode(): value.decode(errors="replace") for key, value in metadata.items() if key == b"shape"}
        statistics = ColumnStatistics(name=column_field.name, arrow_type=column_field.type, metadata=text)
        statistics.add(table.column(index), num_threads=num_threads)
        result[column_field.name] = statistics
    return result
