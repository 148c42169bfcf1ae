"""One streaming pass: pieces merged give what the whole gives, within a bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from builders import list_array
from hypothesis import given, settings
from hypothesis import strategies as st

from parvae_pipeline.statistics import MAX_DISTINCT, ColumnStatistics, Moments, statistics_of

KINDS: dict[str, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    "floats": (st.none() | st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf]), pa.float64()),
    "whole numbers": (st.none() | st.integers(-1000, 1000), pa.int32()),
    "texts": (st.none() | st.text("ab \u00e9", max_size=4), pa.string()),
    "truths": (st.none() | st.booleans(), pa.bool_()),
    "lists": (st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), pa.list_(pa.float32())),
}


def column(values: Any, kind: pa.DataType | None = None) -> ColumnStatistics:
    array = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values, type=kind)
    return statistics_of(pa.table({"c": array}))["c"]


@settings(max_examples=120, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_pieces_merged_equal_the_whole(data: st.DataObject, kind: str) -> None:
    strategy, arrow_type = KINDS[kind]
    values = data.draw(st.lists(strategy, max_size=40))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    whole = column(values, arrow_type)
    pieces = [
        column(values[start:end], arrow_type) for start, end in zip([0, *cuts], [*cuts, len(values)], strict=True)
    ]
    merged = pieces[0]
    for piece in pieces[1:]:
        merged.merge(piece)
    for name in ("num_rows", "num_nulls", "num_infinite", "levels", "num_rows_of_levels", "num_words", "list_sizes"):
        assert getattr(merged, name) == getattr(whole, name), name
    assert (merged.moments.count, merged.moments.minimum, merged.moments.maximum, merged.moments.are_whole) == (
        whole.moments.count,
        whole.moments.minimum,
        whole.moments.maximum,
        whole.moments.are_whole,
    )
    assert merged.moments.mean == pytest.approx(whole.moments.mean, rel=1e-9, abs=1e-6)
    assert merged.moments.stddev == pytest.approx(whole.moments.stddev, rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_moments_are_numpys(values: list[float]) -> None:
    moments = column(values, pa.float64()).moments
    array = np.array(values)
    assert moments.count == len(values)
    assert moments.mean == pytest.approx(array.mean(), rel=1e-12, abs=1e-12)
    assert moments.stddev == pytest.approx(array.std(), rel=1e-9, abs=1e-9)
    assert (moments.minimum, moments.maximum) == (array.min(), array.max())
    assert moments.are_whole == bool(np.all(array == np.rint(array)))


def test_a_small_spread_far_from_zero_survives_many_pieces() -> None:
    # Sums of squares would lose it: (1.7e9)^2 has no room for 1 in float64.
    rng = np.random.default_rng(0)
    values = 1.7e9 + rng.normal(size=10_000)
    merged = Moments()
    for piece in np.split(values, 100):
        merged.add(piece)
    assert merged.stddev == pytest.approx(values.std(), rel=1e-6)


def test_nothing_added_is_no_spread() -> None:
    moments = Moments()
    moments.add(np.array([]))
    moments.merge(Moments())
    assert (moments.count, moments.stddev) == (0, 0.0)


@pytest.mark.parametrize("largest", [1e150, 1e200, 1.7e308])
def test_very_large_numbers_have_a_finite_mean_and_spread(largest: float) -> None:
    moments = column([largest, -largest, 0.0]).moments
    assert math.isfinite(moments.mean)
    assert math.isfinite(moments.stddev)


# Nulls


def test_nan_and_infinities_count_as_null_and_infinities_are_told() -> None:
    found = column([1.0, None, math.nan, math.inf, -math.inf, 3.0])
    assert (found.num_rows, found.num_nulls, found.num_infinite) == (6, 4, 2)
    assert (found.moments.count, found.moments.mean) == (2, 2.0)
    assert found.levels == Counter({"1": 1, "3": 1})


def test_nan_and_infinities_inside_lists_are_counted() -> None:
    found = column(list_array(np.array([[1.0, math.nan], [math.inf, 3.0]])))
    assert found.num_infinite == 2
    assert found.moments.count == 2
    assert found.list_sizes == {2}


@pytest.mark.parametrize(
    "lists", [[[1.0, 2.0], None], [[1.0, 2.0], [1.0]], [[1.0, None], [1.0, 2.0]], [["a"], ["b"]], [[[1.0]], [[2.0]]]]
)
def test_lists_that_are_no_matrix_of_numbers_are_marked(lists: list[Any]) -> None:
    assert -1 in column(lists).list_sizes


def test_lists_of_other_lengths_in_other_pieces_are_seen() -> None:
    first, second = column([[1.0, 2.0]]), column([[1.0, 2.0, 3.0]])
    first.merge(second)
    assert first.list_sizes == {2, 3}


# Kinds of values


@pytest.mark.parametrize(
    ("array", "levels"),
    [
        (pa.array([1, 2, 2], pa.uint8()), {"1": 1, "2": 2}),
        (pa.array(np.array([1.0, 2.5], dtype=np.float16)), {"1": 1, "2.5": 1}),
        (pa.array([Decimal("1.50"), Decimal("2.00")], pa.decimal128(6, 2)), {"1.5": 1, "2": 1}),
        (pa.array([True, None, False, True]), {"true": 2, "false": 1}),
        (pa.array(["x", "y", "x"]).dictionary_encode(), {"x": 2, "y": 1}),
        (pa.array(["x", None], pa.large_string()), {"x": 1}),
        (pa.array([-0.0, 0.0]), {"0": 2}),
        (pa.array([2**63 + 1, 1], pa.uint64()), {"9223372036854775809": 1, "1": 1}),
    ],
    ids=["uint8", "halffloat", "decimal", "bool", "dictionary", "large_string", "signed zero", "uint64"],
)
def test_distinct_values_are_canonical_text(array: pa.Array, levels: dict[str, int]) -> None:
    assert column(array).levels == Counter(levels)


def test_a_level_spelled_in_two_pieces_of_a_dictionary_is_one_level() -> None:
    chunks = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["b", "c"]).dictionary_encode()])
    assert column(chunks).levels == Counter({"a": 1, "b": 2, "c": 1})


def test_words_are_counted_over_the_values_that_are_there() -> None:
    assert column(["one two three", None, "one"]).mean_words == 2.0


def test_dates_are_seconds() -> None:
    found = column(pa.array([0, None, 86_400_000], pa.timestamp("ms")))
    assert (found.num_rows, found.num_nulls, found.family) == (3, 1, "timestamp")
    assert (found.moments.minimum, found.moments.maximum) == (0.0, 86_400.0)


def test_bytes_are_counted_and_nothing_more() -> None:
    found = column(pa.array([b"x", None]))
    assert (found.num_rows, found.num_nulls, found.family) == (2, 1, "encoded")
    assert not found.levels


# Bounds


@pytest.mark.parametrize("text", [str, lambda number: number])
def test_distinct_values_are_kept_up_to_a_bound(text: Callable[[int], Any]) -> None:
    merged = column([text(number) for number in range(MAX_DISTINCT)])
    assert not merged.overflowed
    for first in (MAX_DISTINCT, 2 * MAX_DISTINCT, 3 * MAX_DISTINCT):
        merged.merge(column([text(number) for number in range(first, first + 1000)]))
    assert merged.overflowed
    assert len(merged.levels) <= MAX_DISTINCT + 1000
    assert merged.distinct_share == 1.0
    assert merged.num_rows == MAX_DISTINCT + 3000


def test_the_share_of_distinct_values_is_that_of_the_rows_counted() -> None:
    assert column(["a", "b", "a", None]).distinct_share == pytest.approx(2.0 / 3.0)


# Resolution


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, 4, 6], pa.int64(), 2.0),
        ([0.25, 0.5, 1.5], pa.float64(), 0.25),
        ([5.0, 5.0], pa.float64(), 0.0),
        ([], pa.float64(), 0.0),
        ([math.nan, 1.0, 4.0], pa.float64(), 3.0),
    ],
)
def test_resolution_is_the_smallest_step(values: list[float], kind: pa.DataType, expected: float) -> None:
    assert column(values, kind).resolution == expected


def test_rounding_errors_are_no_step() -> None:
    assert column([0.3, 0.1 + 0.2, 0.4]).resolution == pytest.approx(0.1)


def test_too_many_distinct_values_have_no_known_step_but_integers_have_one() -> None:
    floats = column(np.linspace(0.0, 1.0, MAX_DISTINCT + 2).tolist())
    integers = column(list(range(0, 3 * MAX_DISTINCT, 2)))
    assert (floats.overflowed, floats.resolution) == (True, 0.0)
    assert (integers.overflowed, integers.resolution) == (True, 1.0)


# Metadata


def test_the_shape_in_the_metadata_is_kept() -> None:
    field = pa.field("c", pa.list_(pa.uint8(), 6), metadata={"shape": "2,3", "other": "x"})
    table = pa.table([list_array(np.zeros((2, 6), np.uint8))], schema=pa.schema([field]))
    assert statistics_of(table)["c"].metadata == {"shape": "2,3"}


def test_the_metadata_of_a_column_goes_before_that_of_the_table() -> None:
    field = pa.field("c", pa.list_(pa.uint8(), 6), metadata={"shape": "2,3"})
    table = pa.table(
        [list_array(np.zeros((2, 6), np.uint8))], schema=pa.schema([field], metadata={"shape": "3,2", "pandas": "{}"})
    )
    assert statistics_of(table)["c"].metadata == {"shape": "2,3"}
